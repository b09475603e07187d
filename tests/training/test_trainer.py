"""What our Trainer adds: penalties and losses that do not depend on accumulation, divergence named, order by seed."""

import math
from typing import final

import pytest
import torch
from tiny import build, settings, tiny_data, tiny_model, tiny_tokenizer, trainer_for
from transformers import TrainerCallback

from rankwise.adapters.contract import AdapterConfig
from rankwise.adapters.lora_method import LoraMethod
from rankwise.errors import TrainingError
from rankwise.training.callback import RankwiseCallback
from rankwise.training.data import LengthGroupedSampler, encode
from rankwise.training.fit import fit

QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class PenaltyConfig(AdapterConfig):
    """A method with a penalty, not registered."""

    def build(self, model, *, total_steps, seed):
        return Penalty(model, self, seed=seed)


@final
class Penalty(LoraMethod):
    """LoRA with weight decay on every adapter, as a penalty."""

    weight = 3.0

    def penalty(self):
        return self.weight * sum(
            p.square().sum() for n, p in self.model.named_parameters() if ".lora_A." in n and p.requires_grad
        )


class Gradients(TrainerCallback):
    """Every step's gradients, before the optimizer uses them."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("family", ["bert", pytest.param("llama", marks=pytest.mark.slow)])
@pytest.mark.parametrize("weight", [pytest.param(0.0, marks=pytest.mark.slow), 3.0])
def test_accumulation_changes_neither_gradients_nor_losses(tmp_path, monkeypatch, kind, family, weight):
    """1 x 16 against 4 x 4 examples per step: same order, same gradients, same recorded losses."""
    monkeypatch.setattr(Penalty, "weight", weight)
    regression = kind == "regression"
    overrides = (QUIET if family == "bert" else {}) | (
        {"num_labels": 1, "problem_type": "regression"} if regression else {}
    )
    data = tiny_data(32, regression=regression, length=9)
    seen = []
    for size, accumulation in ((16, 1), (4, 4)):
        method = PenaltyConfig(name="penalty", budget="r=2").build(
            tiny_model(family, **overrides), total_steps=4, seed=0
        )
        recorder = Gradients()
        changes = settings(
            total_steps=4, batch_size=size, gradient_accumulation_steps=accumulation, max_grad_norm=0.0, warmup=0
        )
        trainer = trainer_for(method, tmp_path, changes, data=data, callbacks=[recorder])
        trainer.train()
        seen.append((recorder.steps, trainer.losses))
    (one, one_losses), (four, four_losses) = seen
    assert [s for s, _ in one_losses] == [s for s, _ in four_losses] == [1, 2, 3, 4]
    for name in one[0]:
        torch.testing.assert_close(one[0][name], four[0][name], rtol=1e-4, atol=1e-6)
    for (_, a), (_, b) in zip(one_losses, four_losses, strict=True):
        assert a == pytest.approx(b, abs=1e-3)
    penalised = any(n.endswith("lora_A.default.weight") and bool((g != 0).any()) for n, g in one[0].items())
    assert penalised is (weight > 0)  # lora_B is zero at first: only the penalty moves lora_A


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_gradients_are_those_of_the_mean_loss(tmp_path, kind):
    """Against a plain backward pass over the whole batch, without a Trainer."""
    regression = kind == "regression"
    overrides = QUIET | ({"num_labels": 1, "problem_type": "regression"} if regression else {})
    data = tiny_data(8, regression=regression, length=9)
    method = build("lora", tiny_model(**overrides), total_steps=1)
    recorder = Gradients()
    changes = settings(total_steps=1, batch_size=4, gradient_accumulation_steps=2, max_grad_norm=0.0, warmup=0)
    trainer = trainer_for(method, tmp_path, changes, data=data, callbacks=[recorder])
    trainer.train()
    reference = build("lora", tiny_model(**overrides), total_steps=1)
    reference.model.train()
    inputs = {c: torch.tensor(data[c][:]) for c in ("input_ids", "attention_mask", "labels")}
    loss = reference.model(**inputs).loss
    loss.backward()
    assert trainer.losses[0][1] == pytest.approx(loss.item(), abs=1e-5)
    for name, parameter in reference.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(recorder.steps[0][name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_penalty_is_not_in_losses_nor_in_evaluation(tmp_path):
    method = PenaltyConfig(name="penalty", budget="r=2").build(tiny_model(), total_steps=12, seed=0)
    data, held = tiny_data(20), tiny_data(8, seed=3)
    fitted = fit(method, tiny_tokenizer(), data, {"main": held}, settings(learning_rate=1e-9), work_dir=tmp_path)
    assert float(method.penalty().detach()) > 10
    assert all(loss < 2 for _, loss in fitted.losses)
    predicted, labels = torch.tensor(fitted.logits["main"]), torch.tensor(fitted.references["main"])
    assert fitted.eval_losses["main"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(predicted, labels)), abs=1e-6
    )


@pytest.mark.parametrize("name", ["lora", "full", "peft_adalora"])
def test_loss_that_is_not_a_number_stops_training(tmp_path, name):
    method = build(name)

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                with torch.no_grad():
                    next(p for p in method.model.parameters() if p.requires_grad).fill_(math.nan)

    trainer = trainer_for(method, tmp_path, callbacks=[Poison()])
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 5 \(learning rate .*\); lower training\.learning_"
    ):
        trainer.train()
    assert len(trainer.losses) == 5


def test_divergence_is_noticed_in_any_micro_batch(tmp_path):
    method = build("lora")
    changes = settings(gradient_accumulation_steps=2, batch_size=2, learning_rate=1e30, max_grad_norm=0.0, warmup=0)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step [23] "):
        trainer_for(method, tmp_path, changes).train()


def test_losses_once_per_step_with_a_ragged_epoch(tmp_path):
    """18 examples, 4 x 2 per step: the last step of an epoch has fewer micro-batches, and a smaller one."""
    changes = settings(gradient_accumulation_steps=2, batch_size=4, learning_rate=1e-12)
    method = build("lora", tiny_model(**QUIET))
    trainer = trainer_for(method, tmp_path, changes, data=tiny_data(18))
    trainer.train()
    assert [step for step, _ in trainer.losses] == list(range(1, 13))
    assert all(0.9 < loss < 1.4 for _, loss in trainer.losses)


def test_sampler_is_a_permutation_that_seed_and_epoch_decide():
    lengths = [3 + (7 * i) % 41 for i in range(200)]
    orders = {}
    for seed in (0, 1):
        sampler = LengthGroupedSampler(lengths, 8, seed)
        assert len(sampler) == 200
        for epoch in (0, 1, 2):
            sampler.set_epoch(epoch)
            torch.manual_seed(epoch + 17)
            orders[seed, epoch] = list(sampler)
            assert sorted(orders[seed, epoch]) == list(range(200))
            state = torch.get_rng_state()
            assert list(sampler) == orders[seed, epoch]
            assert torch.equal(state, torch.get_rng_state())
    assert len({tuple(order) for order in orders.values()}) == 6

    def padding(order):
        batches = [[lengths[i] for i in order[k : k + 8]] for k in range(0, 200, 8)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    assert padding(orders[0, 0]) < 0.3 * padding(
        torch.randperm(200, generator=torch.Generator().manual_seed(0)).tolist()
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_epochs_reach_the_sampler_through_the_data_loader(tmp_path, accumulation):
    data = tiny_data(16)
    method = build("lora", total_steps=12)
    size = 4 // accumulation
    trainer = trainer_for(
        method, tmp_path, settings(batch_size=size, gradient_accumulation_steps=accumulation), data=data
    )
    seen = []
    real = trainer.compute_loss

    def spy(model, inputs, *args, **kwargs):
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            seen.append(tuple(ids[mask.bool()].tolist()))
        return real(model, inputs, *args, **kwargs)

    trainer.compute_loss = spy
    trainer.train()
    index = {tuple(ids): i for i, ids in enumerate(data["input_ids"][:])}
    order = [index[ids] for ids in seen]
    for epoch in range(3):
        sampler = LengthGroupedSampler(data["length"][:], 4, 0)
        sampler.set_epoch(epoch)
        assert order[16 * epoch : 16 * (epoch + 1)] == list(sampler)


def test_encoding_keeps_labels_and_cuts_long_texts():
    from datasets import Dataset

    data = Dataset.from_dict({"text": ["w3 w4", "w5 " * 40], "text_pair": ["w6", "w7"], "label": [0, 1]})
    encoded = encode(data, tiny_tokenizer(), 8)
    assert encoded["labels"][:] == [0, 1]
    assert encoded["length"][:] == [3, 8] == [len(ids) for ids in encoded["input_ids"][:]]
    single = encode(data.remove_columns("text_pair"), tiny_tokenizer(), 8)
    assert single["length"][:] == [2, 8]


def test_wrong_model_and_untracked_parameters_are_refused(tmp_path):
    method = build("lora")
    driver = RankwiseCallback(build("lora"), total_steps=12)
    with pytest.raises(TrainingError, match=r"the trainer's model is not the method's: pass method\.model"):
        trainer_for(method, tmp_path, driver=driver).train()
    method = build("lora")
    few = [next(p for p in method.model.parameters() if p.requires_grad)]
    with pytest.raises(TrainingError, match=r"25 trainable parameters are not in the optimizer, first: "):
        trainer_for(method, tmp_path, optimizers=(torch.optim.AdamW(few), None)).train()


def test_events_are_reported_as_they_happen(tmp_path):
    method, events, steps = build("glora", warmup=5), [], []
    fitted = fit(
        method,
        tiny_tokenizer(),
        tiny_data(20),
        {},
        settings(),
        work_dir=tmp_path,
        on_event=lambda event: events.append((event, len(steps))),
        on_step=lambda step, loss: steps.append((step, loss)),
    )
    assert [event for event, _ in events] == fitted.trace
    assert [(event.event, after) for event, after in events] == [("start", 0), ("resize", 4), ("end", 12)]
    assert steps == fitted.losses
    assert fitted.train_seconds > 0
    assert (fitted.logits, fitted.references, fitted.eval_losses) == ({}, {}, {})


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules(tmp_path, schedule):
    method, rates = build("lora"), []

    class Rates(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            rates.append(optimizer.param_groups[0]["lr"])

    trainer_for(method, tmp_path, settings(schedule=schedule, warmup=0.25), callbacks=[Rates()]).train()
    peak = 5e-3
    assert rates[:4] == pytest.approx([0, peak / 3, 2 * peak / 3, peak])
    last = {"linear": peak / 9, "cosine": peak * (1 + math.cos(math.pi * 8 / 9)) / 2, "constant": peak}[schedule]
    assert rates[-1] == pytest.approx(last)


def test_bf16_trains(tmp_path):
    method = build("glora", warmup=3, signal="exact")
    trainer = trainer_for(method, tmp_path, settings(precision="bf16"))
    trainer.train()
    assert all(math.isfinite(loss) for _, loss in trainer.losses)
