"""Training in block mode: two phases, a share that is met, a budget that is kept, checkpoints and exports."""

import json
import math
from typing import Literal

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny import batch, logits, settings, tiny_data, tiny_model, tiny_tokenizer, trainer_for
from torch.nn import functional
from transformers import DataCollatorWithPadding, Trainer

from rankwise.adapters.block_method import BlockMethod, merge_static
from rankwise.adapters.conditional.block_distil import distance, full_depth, share_of_step
from rankwise.adapters.conditional.block_living import living_blocks
from rankwise.adapters.conditional.block_settings import BlockSettings
from rankwise.adapters.contract import AdapterConfig
from rankwise.adapters.lora_method import resolve_budget
from rankwise.errors import AllocationError, BudgetError, ConfigError
from rankwise.training.callback import RankwiseCallback, load_method, save_method
from rankwise.training.fit import fit, training_arguments

STEPS = 20


class Config(AdapterConfig):
    name: Literal["block"] = "block"
    block: BlockSettings = BlockSettings()

    def build(self, model, *, total_steps, seed):
        return BlockMethod(model, self, total_steps=total_steps, seed=seed)


def bare(**fields):
    return tiny_model(num_hidden_layers=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **fields)


def made(model=None, *, steps=STEPS, seed=0, budget="r=8", **block):
    config = Config(budget=budget, block=BlockSettings(**({"router_hidden": 4, "keep_last": 0} | block)))
    return config.build(model or bare(), total_steps=steps, seed=seed)


def train(method, folder, **changes):
    data = tiny_data(40)
    how = settings(total_steps=STEPS, **changes)
    return fit(method, tiny_tokenizer(), data, {"main": tiny_data(9, seed=3)}, how, work_dir=folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Patterns -> (method, what `fit` returned)."""
    folder = tmp_path_factory.mktemp("block")
    done = {}
    for patterns in ("any", "exit", 3):
        method = made(patterns=patterns, router_after=1, keep=0.6)
        done[patterns] = (method, train(method, folder / str(patterns)))
    return done


@pytest.mark.parametrize("patterns", ["any", "exit", 3])
def test_share_is_met_and_patterns_are_what_was_asked_for(trained, patterns):
    method, fitted = trained[patterns]
    method.check_finished()
    assert method.measured == pytest.approx(0.6, abs=0.05)
    assert [step for step, _ in fitted.losses] == list(range(1, STEPS + 1))
    data = tiny_data(40)
    seen = []
    for row in range(40):
        logits(method.model, {name: torch.tensor([data[name][row]]) for name in ("input_ids", "attention_mask")})
        (bits,) = method.context.kept.values()
        seen.append(tuple(bits[0].tolist()))
    assert sum(map(sum, seen)) / 120 == pytest.approx(method.measured, abs=1e-6)
    if patterns == "exit":
        assert all(list(bits) == sorted(bits, reverse=True) for bits in seen)
    if patterns == 3:
        assert len(set(seen)) <= 3
    usage = dict(zip(method.peft.blocks, torch.tensor(seen).mean(0).tolist(), strict=True))
    assert method.peft.usage == pytest.approx(usage)


def test_budget_holds_router_and_bypasses(trained):
    method, _ = trained["any"]
    asked = resolve_budget(bare(), method.config, method.matrices)
    count = method.parameter_count().final
    assert asked.total - max(method.costs.values()) - min(method.costs.values()) < count <= asked.total
    factors = sum(rank * method.costs[name] for name, rank in method.rank_pattern().items())
    router = 4 * 33 + 3 * 5
    bypasses = 3 * 2 * 32 * 4
    assert count == factors + router + bypasses
    with pytest.raises(BudgetError, match=r"router and bypasses take 1,\d+"):
        made(budget="r=1")


@pytest.mark.parametrize("patterns", ["any", 3])
def test_compact_checkpoint_decides_alike_and_static_is_full_depth(trained, tmp_path, patterns):
    method, _ = trained[patterns]
    expected = logits(method.model)
    method.export(tmp_path / "compact")
    again = PeftModel.from_pretrained(bare(), tmp_path / "compact")
    assert torch.equal(logits(again), expected)
    torch.testing.assert_close(logits(merge_static(again)), expected, rtol=0, atol=1e-5)
    method.export(tmp_path / "static", "static")
    plain = PeftModel.from_pretrained(bare(), tmp_path / "static")
    assert json.loads((tmp_path / "static" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    with full_depth(method.peft):
        torch.testing.assert_close(logits(plain), logits(method.model), rtol=0, atol=1e-5)
    assert torch.equal(logits(method.model), expected)
    with pytest.raises(ConfigError, match="every block to every input"):
        method.export(tmp_path / "merged", "merged")
    stored = load_file(tmp_path / "compact" / "adapter_model.safetensors")
    assert sum(t.numel() for key, t in stored.items() if ".lora_" in key) == method.parameter_count().final


@pytest.mark.parametrize("patterns", ["any", 3])
def test_state_comes_back(trained, tmp_path, patterns):
    method, _ = trained[patterns]
    save_method(method, tmp_path)
    fresh = made(patterns=patterns, router_after=1, keep=0.6, seed=5)
    load_method(fresh, tmp_path)
    assert torch.equal(logits(fresh.model), logits(method.model))
    assert (fresh.measured, fresh.peft.usage) == (method.measured, method.peft.usage)
    fresh.check_finished()


@pytest.mark.parametrize("lost", [4, pytest.param(13, marks=pytest.mark.slow)])
def test_interrupted_run_resumes_to_the_same_run(trained, tmp_path, lost):
    """Cut in the first phase, and in the second."""
    _, whole = trained["any"]

    def die(step, loss):
        if step == lost:
            raise KeyboardInterrupt

    data, validation = tiny_data(40), {"main": tiny_data(9, seed=3)}
    how = settings(total_steps=STEPS, save_every=1)
    first = made(router_after=1, keep=0.6)
    with pytest.raises(KeyboardInterrupt):
        fit(first, tiny_tokenizer(), data, validation, how, work_dir=tmp_path, on_step=die)
    second = made(router_after=1, keep=0.6)
    resumed = fit(second, tiny_tokenizer(), data, validation, how, work_dir=tmp_path)
    assert resumed.losses == whole.losses
    assert (resumed.logits["main"] == whole.logits["main"]).all()


def test_first_phase_is_plain_lora(tmp_path):
    """Same losses as LoRA with these factors: bypasses and router learn beside it, and change nothing."""
    method = made(full_depth=10, annealing=15)
    losses = train(method, tmp_path / "block", max_grad_norm=0.0).losses  # the norm would be that of all gradients
    plain = made(full_depth=18, annealing=19)
    plain.distillation.stop()
    assert losses[:10] == train(plain, tmp_path / "plain", max_grad_norm=0.0).losses[:10]
    assert losses[10:] != train(made(full_depth=18, annealing=19), tmp_path / "longer", max_grad_norm=0.0).losses[10:]


def test_bypasses_learn_to_imitate_their_blocks(tmp_path):
    method = made(full_depth=18, annealing=19)
    before = _missed(method)
    train(method, tmp_path, learning_rate=2e-2)
    assert before == pytest.approx(1.0)  # B = 0: the block is left out
    assert _missed(method) < 0.95


def _missed(method):
    """Mean of ‖h + bypass(h) - Block(h)‖² / ‖Block(h) - h‖², from the hidden states."""
    with torch.no_grad(), full_depth(method.peft):
        states = method.model.eval()(**batch(), output_hidden_states=True).hidden_states
        ratios = []
        for number, record in enumerate(living_blocks(method.model.base_model.model).values()):
            h, result = states[number + 1], states[number + 2]
            ratios.append(((record.around(h) - result).square().sum() / (result - h).square().sum()).item())
    method.model.train()
    return sum(ratios) / len(ratios)


def test_every_step_gives_everything_a_gradient(tmp_path):
    """DDP and optimizers expect it."""
    method = made()
    trainer = trainer_for(method, tmp_path, settings(total_steps=STEPS), data=tiny_data(40))
    missing = []
    hook = method.before_optimizer_step
    method.before_optimizer_step = lambda step: (
        missing.extend(n for n, p in method.model.named_parameters() if p.requires_grad and p.grad is None),
        hook(step),
    )
    trainer.train()
    assert missing == []


def second_phase(method):
    """As if the first phase were over."""
    method.before_optimizer_step(method.tracker.first)
    return method


def gradients(method, inputs, *, seed=0):
    torch.manual_seed(seed)
    method.model.train().zero_grad()
    loss = method.model(**inputs).loss
    loss.backward()
    return loss, {n: p.grad.clone() for n, p in method.model.named_parameters() if p.grad is not None}


def test_distillation_is_in_the_gradient_and_not_in_the_loss():
    """Against a loss written out: task + w τ² KL(full depth ‖ this pass)."""
    inputs = batch()
    with_, without = (second_phase(made(distillation=weight, keep=0.3)) for weight in (0.7, 0.0))
    for method in (with_, without):
        method.tracker.price = method.context.price = 2.0
        method.peft.threshold = 0.99  # of inference: everything would be skipped
    loss, found = gradients(with_, inputs)
    plain_loss, _ = gradients(without, inputs)
    assert torch.equal(loss, plain_loss)
    with torch.no_grad(), full_depth(without.peft):
        taught = without.model.eval()(**inputs).logits
    torch.manual_seed(0)
    without.model.train().zero_grad()
    output = without.model(**inputs)
    assert not torch.allclose(output.logits, taught, atol=1e-4)
    soft, student = functional.softmax(taught / 2, -1), functional.log_softmax(output.logits / 2, -1)
    apart = 4 * (soft * (soft.log() - student)).sum() / len(soft)
    (output.loss + 0.7 * apart).backward()
    for name, parameter in without.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("phase", ["imitate", "distil"])
def test_an_output_that_is_a_tuple_teaches_alike(phase):
    """Asked for in the call, or by the config."""
    inputs, gained = batch(), []
    for asked, config in (({}, True), ({"return_dict": False}, True), ({}, False)):
        method = made(keep=0.3)
        method.model.config.return_dict = config
        if phase == "distil":
            second_phase(method)
            method.tracker.price = method.context.price = 2.0
        torch.manual_seed(0)
        output = method.model.train()(**inputs, **asked)
        loss = output[0]
        loss.backward()
        gained.append({n: p.grad for n, p in method.model.named_parameters() if p.grad is not None})
        assert isinstance(output, tuple) is (bool(asked) or not config)
        assert output[1].shape == method.model(input_ids=inputs["input_ids"], **asked)[0].shape == (4, 3)
    for other in gained[1:]:
        assert gained[0].keys() == other.keys()
        for name, gradient in gained[0].items():
            assert torch.equal(gradient, other[name]), name


def test_full_depth_pass_leaves_no_weight_without_a_gradient_under_autocast(monkeypatch):
    """Autocast keeps what it made of a weight; what it made without a graph would serve the pass that is trained.

    Torch 2.13 keeps the two apart by itself, older ones do not: hence the count.
    """
    method = second_phase(made(distillation=1.0))
    cleared, clear = [], torch.clear_autocast_cache
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (clear(), cleared.append(1)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.model.train()(**batch()).loss
        assert len(cleared) == 1  # leaving autocast clears it too
        loss.backward()
    for name, parameter in method.model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
        if ".layer.0." in name and ".lora_B." in name:
            assert parameter.grad.abs().max() > 0, name


def test_distances():
    teacher, student = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    labels = torch.tensor([[-100, -100, 4], [-100, 2, -100]])
    each = torch.tensor(
        [
            functional.kl_div(
                functional.log_softmax(student[row, at] / 3, -1),
                functional.softmax(teacher[row, at] / 3, -1),
                reduction="sum",
            )
            for row, at in ((0, 1), (1, 0))  # the tokens before those with a label
        ]
    )
    torch.testing.assert_close(distance(student, teacher, 3.0, labels), 9 * each.mean())
    torch.testing.assert_close(
        distance(student[:, 0, :1], teacher[:, 0, :1], 3.0), ((student - teacher)[:, 0, 0] ** 2).mean()
    )
    assert float(distance(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-6)


def test_tokens_of_a_language_model_count_alike_over_accumulated_batches():
    """Transformers hands such a model the number of tokens of the whole step, and its loss is a sum over it."""
    student, teacher = torch.randn(4, 6, 5), torch.randn(4, 6, 5)
    labels = torch.randint(5, (4, 6))
    labels[0, :5] = labels[3, :2] = -100
    items = (labels[:, 1:] != -100).sum()
    parts = [
        distance(student[rows], teacher[rows], 2.0, labels[rows])
        * share_of_step({"labels": labels[rows], "num_items_in_batch": items}, student[rows])
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), distance(student, teacher, 2.0, labels))
    assert share_of_step({"labels": labels[:, 0], "num_items_in_batch": items}, student[:, 0]) == 1.0


def test_full_depth_pass_leaves_no_trace():
    """Neither training mode, nor random numbers, nor what routers saw."""
    inputs = batch()
    states = []
    for weight in (0.0, 1.0):
        method = second_phase(made(distillation=weight))
        modes = [m.training for m in method.model.train().modules()]
        torch.manual_seed(4)
        method.model(**inputs)
        states.append((torch.rand(2).tolist(), [m.training for m in method.model.modules()] == modes))
        (recorded,) = method.context.recorded.values()
        assert len(recorded) == 1
    assert states[0] == states[1]
    assert states[0][1]


@pytest.mark.slow
def test_stock_trainer_learns_the_same(tmp_path):
    """With RankwiseCallback; gradients of one step are the same as with our own trainer."""
    weights = []
    for own in (True, False):
        method = made()
        how = settings(total_steps=STEPS, max_grad_norm=0.0)
        if own:
            trainer_for(method, tmp_path / "own", how, data=tiny_data(40, length=8)).train()
        else:
            Trainer(
                model=method.model,
                args=training_arguments(how, tmp_path / "stock"),
                train_dataset=tiny_data(40, length=8),
                data_collator=DataCollatorWithPadding(tiny_tokenizer()),
                callbacks=[RankwiseCallback(method, total_steps=STEPS)],
            ).train()
        method.check_finished()
        weights.append(method)
    assert abs(weights[0].tracker.price - weights[1].tracker.price) < 0.5
    assert weights[0].parameter_count() == weights[1].parameter_count()


def test_accumulated_steps_are_one_large_step():
    """The distance is a mean per example, as the loss is."""
    inputs = batch(8)
    whole = second_phase(made(keep=0.3))
    whole.context.temperature = 1e-6  # no chance: every draw is sure
    _, found = gradients(whole, inputs)
    parts = second_phase(made(keep=0.3))
    parts.context.temperature = 1e-6
    parts.model.train().zero_grad()
    for half in range(2):
        part = {name: value[4 * half : 4 * half + 4] for name, value in inputs.items()}
        (parts.model(**part).loss / 2).backward()
    for name, parameter in parts.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, found[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"full_depth": 0.8, "annealing": 0.5}, "full_depth has to end before the annealing"),
        ({"temperature": (1.0, 0.0)}, "must be positive"),
    ],
)
def test_settings_that_cannot_work(block, message):
    with pytest.raises(ConfigError, match=message):
        made(**block)
    with pytest.raises(ValidationError, match="2 or more"):
        BlockSettings(patterns=1)


def test_never_driven_or_off_target_is_an_error(trained):
    with pytest.raises(AllocationError, match="RankwiseCallback"):
        made().check_finished()
    method, _ = trained["any"]
    measured, method.measured = method.measured, 0.2
    with pytest.raises(AllocationError, match=r"20\.0% of the blocks after the router executed, its target is 60\.0%"):
        method.check_finished()
    method.measured = measured


def test_draws_stay_open_however_large_logits_become():
    method = second_phase(made())
    before = method.context.temperature
    with torch.no_grad():
        method.router.up.normal_(std=1e3)
    for step in range(method.tracker.first + 1, method.tracker.first + 5):
        method.model.train()(**batch(8))
        method.penalty()
        spread = float(method._logits.std())
        method.before_optimizer_step(step)
    assert spread > 100
    assert before < 3
    assert method.context.temperature > 0.1 * spread


def test_half_trained_state_goes_on_alike(tmp_path):
    """With logits so large that they stretch the temperature."""

    def go_on(method, steps):
        for step in steps:
            torch.manual_seed(step)
            loss = method.model.train()(**batch(8, seed=step)).loss
            method.penalty()
            method.before_optimizer_step(step)
            yield loss.item(), method.spread, method.tracker.price, method.context.temperature, method.peft.threshold

    method = second_phase(made())
    first = method.tracker.first + 1
    with torch.no_grad():
        method.router.up.normal_(std=1e2)
    list(go_on(method, range(first, first + 3)))
    assert method.spread > 2
    save_method(method, tmp_path)
    fresh = made(seed=5)
    load_method(fresh, tmp_path)
    for name in ("price", "temperature", "all_open"):
        assert getattr(fresh.context, name) == getattr(method.context, name), name
    rest = range(first + 3, first + 6)
    assert list(go_on(fresh, rest)) == list(go_on(method, rest))


def test_threshold_follows_the_price_while_training():
    method = second_phase(made())
    method.model.train()(**batch())
    penalty = method.penalty()
    assert penalty.requires_grad
    assert float(penalty.detach()) >= 0
    method.before_optimizer_step(method.tracker.first + 1)
    assert method.tracker.price != 0
    assert method.peft.threshold == pytest.approx(1 / (1 + math.exp(-method.tracker.price)))
    assert method.penalty() is None


def test_the_router_enters_adam_when_it_begins_to_decide(tmp_path):
    """Gradients of zero before would leave it a second moment of 0, and first steps of several learning rates."""
    method = made()
    router = method.router.up
    trainer = trainer_for(method, tmp_path, settings(total_steps=STEPS), data=tiny_data(40))
    counts = {}
    hook = method.after_optimizer_step
    method.after_optimizer_step = lambda step: (
        counts.update({step: float(trainer.optimizer.state.get(router, {}).get("step", 0))}),
        hook(step),
    )[1]
    trainer.train()
    first = method.tracker.first
    assert counts[first] == 0
    assert counts[STEPS] == STEPS - first
