"""Rank changes are right wherever training takes place: accumulation, clipping, autocast, checkpointing, schedules,
optimizers, tied and shared weights, other adapters and whole modules trained beside ours.
"""

import copy
import math

import pytest
import torch
from peft import LoraConfig, PeftModel
from scripted import scripted
from tiny import ENCODER, WORDS, batch, build, logits, settings, tiny_data, tiny_model, tiny_tokenizer, trainer_for
from transformers import AlbertConfig, AlbertForSequenceClassification, Trainer, TrainerCallback

from rankwise.adapters.attach import ADAPTER, NEW_MODULES, adapted_layers
from rankwise.adapters.contract import METHODS
from rankwise.adapters.listen import GradientListener
from rankwise.adapters.resize import apply_resize
from rankwise.errors import AllocationError
from rankwise.training.callback import RankwiseCallback
from rankwise.training.fit import fit, training_arguments

QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PLAN = {3: (4, 1), 5: (2, 0, 3), 9: (1, 2)}
MOVING = {"scripted": {"plan": PLAN}, "glora": {"warmup": 4, "floor": 0}, "adalora": {}, "galora": {}}
slow = pytest.mark.slow
moving = pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "scripted" else slow) for n in MOVING])


def make(name, model=None, **fields):
    fields = MOVING.get(name, {}) | fields
    return scripted(model, **fields) if name == "scripted" else build(name, model, **fields)


class Watch(TrainerCallback):
    """After every step: the optimizer holds what is trained, nothing else, in the right groups, at the right rate."""

    def __init__(self, method):
        self.method, self.rates, self.norms = method, [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        trained = [p for p in self.method.model.parameters() if p.requires_grad]
        gradients = [p.grad for p in trained if p.grad is not None]
        self.norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        self.rates.append({group["lr"] for group in optimizer.param_groups})

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        named = {id(p): name for name, p in self.method.model.named_parameters() if p.requires_grad}
        held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        assert sorted(i for group in held for i in group) == sorted(named)
        for group, members in zip(optimizer.param_groups, held, strict=True):
            assert all(named[i].endswith("bias") is (group["weight_decay"] == 0) for i in members)
        for parameter, entry in optimizer.state.items():
            assert id(parameter) in named
            for value in entry.values():
                assert not torch.is_tensor(value) or value.dim() == 0 or value.shape == parameter.shape
                assert not torch.is_tensor(value) or value.dtype == torch.float32


def ended(rows):
    """With T5's end-of-text token, which its classifier looks for."""
    return rows.map(lambda row: {"input_ids": [*row["input_ids"][:-1], 1]})


def go(method, folder, data=None, **changes):
    """A run of 12 steps under `Watch`: (losses, events, watch)."""
    driver = RankwiseCallback(method, total_steps=12)
    watch = Watch(method)
    data = tiny_data(24, length=9) if data is None else data
    trainer = trainer_for(method, folder, settings(**changes), data=data, driver=driver, callbacks=[watch])
    trainer.train()
    assert sum(event.event == "resize" for event in driver.trace) >= 1
    return trainer.losses, driver.trace, watch


def ranks(trace):
    return [(event.step, event.event, dict(event.ranks)) for event in trace]


def assert_close(one, two, *, atol):
    (losses, trace, _), (others, other_trace, _) = one, two
    assert ranks(trace) == ranks(other_trace)
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in others], abs=atol)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOVING)
def test_accumulation_changes_nothing(tmp_path, name):
    """12 examples per step in 1, 2 and 3 parts."""
    runs = {}
    for parts in (1, 2, 3):
        method = make(name, tiny_model(**QUIET))
        runs[parts] = (
            go(method, tmp_path, batch_size=12 // parts, gradient_accumulation_steps=parts),
            logits(method.model),
        )
    for parts in (2, 3):
        assert_close(runs[parts][0], runs[1][0], atol=1e-5)
        torch.testing.assert_close(runs[parts][1], runs[1][1], rtol=0, atol=1e-4)


@moving
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(tmp_path, name, reentrant):
    def run(checkpointing):
        method = make(name, tiny_model(**QUIET))
        driver = RankwiseCallback(method, total_steps=12)
        changes = settings(gradient_checkpointing=checkpointing)
        trainer = trainer_for(method, tmp_path, changes, data=tiny_data(24, length=9), driver=driver)
        if checkpointing:
            late = hasattr(trainer.args, "activation_checkpointing_kwargs")
            kwargs = "activation_checkpointing_kwargs" if late else "gradient_checkpointing_kwargs"
            assert getattr(trainer.args, kwargs) == {"use_reentrant": False}
            setattr(trainer.args, kwargs, {"use_reentrant": reentrant})
            method.model.enable_input_require_grads()  # a reentrant checkpoint drops gradients of inputs without any
        trainer.train()
        assert any(getattr(m, "gradient_checkpointing", False) for m in method.model.modules()) is checkpointing
        return trainer.losses, driver.trace, None

    assert_close(run(True), run(False), atol=1e-6)


@moving
def test_clipping_covers_what_came_anew(tmp_path, name):
    _, _, free = go(make(name, tiny_model(**QUIET)), tmp_path, max_grad_norm=0.0)
    _, trace, clipped = go(make(name, tiny_model(**QUIET)), tmp_path, max_grad_norm=0.05)
    assert min(free.norms) > 0.05
    assert clipped.norms == pytest.approx([0.05] * 12, rel=1e-3)
    assert len(trace) > 2


@moving
@pytest.mark.parametrize("schedule", ["cosine", *(pytest.param(s, marks=slow) for s in ("linear", "constant"))])
def test_learning_rates_follow_the_schedule(tmp_path, name, schedule):
    _, _, watch = go(make(name), tmp_path, schedule=schedule, warmup=0.25)
    peak = 5e-3
    falling = {
        "linear": lambda k: peak * (1 - k / 9),
        "cosine": lambda k: peak * (1 + math.cos(math.pi * k / 9)) / 2,
        "constant": lambda k: peak,
    }[schedule]
    expected = [peak * k / 3 for k in range(3)] + [falling(k) for k in range(9)]
    assert all(len(rates) == 1 for rates in watch.rates)
    assert [rates.pop() for rates in watch.rates] == pytest.approx(expected)


@moving
def test_bf16_autocast_keeps_weights_and_moments_in_float32(tmp_path, name):
    method = make(name, tiny_model(**QUIET))
    losses, _, _ = go(method, tmp_path, precision="bf16")
    exact, _, _ = go(make(name, tiny_model(**QUIET)), tmp_path)
    assert {p.dtype for p in method.model.parameters()} == {torch.float32}
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in exact], abs=0.05)
    method.check_finished()


OPTIMIZERS = {
    "for loop": lambda p: torch.optim.AdamW(p, lr=5e-3, foreach=False),
    "foreach": lambda p: torch.optim.AdamW(p, lr=5e-3, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=5e-3, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=5e-3, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=5e-2, momentum=0.9),
}


def with_optimizer(method, folder, make_optimizer):
    trained = [p for p in method.model.parameters() if p.requires_grad]
    optimizer = make_optimizer(trained)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = trainer_for(method, folder, data=tiny_data(24, length=9), optimizers=(optimizer, schedule))
    trainer.train()
    return [loss for _, loss in trainer.losses]


def test_implementations_of_adam_agree_through_resizes(tmp_path):
    losses = {
        name: with_optimizer(make("scripted", tiny_model(**QUIET)), tmp_path, OPTIMIZERS[name])
        for name in ("for loop", "foreach", "fused")
    }
    assert losses["foreach"] == pytest.approx(losses["for loop"], abs=1e-6)
    assert losses["fused"] == pytest.approx(losses["for loop"], abs=1e-6)


@moving
@pytest.mark.parametrize("optimizer", ["fused", "amsgrad", "momentum"])
def test_optimizers_go_on_after_resizes(tmp_path, name, optimizer):
    method = make(name)
    losses = with_optimizer(method, tmp_path, OPTIMIZERS[optimizer])
    assert all(math.isfinite(loss) and loss < 2 for loss in losses)
    method.check_finished()


@pytest.mark.parametrize("kind", ["adafactor", *(pytest.param(k, marks=slow) for k in ("rmsprop", "adagrad"))])
@pytest.mark.parametrize("name", ["lora", "scripted", "glora"])
def test_optimizer_that_cannot_follow_is_refused_before_the_first_step(tmp_path, name, kind):
    method = make(name)
    arguments = training_arguments(settings(), tmp_path)
    arguments.optim = kind
    steps = []

    class Steps(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            steps.append(1)

    trainer = Trainer(
        model=method.model,
        args=arguments,
        train_dataset=tiny_data(20, length=9),
        callbacks=[RankwiseCallback(method, total_steps=12), Steps()],
    )
    if kind == "adafactor" and name != "lora":
        with pytest.raises(AllocationError, match=r"state '\w+' of shape .* cannot follow a resize; use AdamW"):
            trainer.train()
        assert steps == []
    else:
        trainer.train()
        assert len(steps) == 12


def albert():
    """Every block is the same module, run three times."""
    torch.manual_seed(0)
    sizes = ENCODER | {"num_hidden_layers": 3, "embedding_size": 16}
    return AlbertForSequenceClassification(AlbertConfig(vocab_size=WORDS, pad_token_id=0, num_labels=3, **sizes))


SHARED = {"albert": albert, "t5": lambda: tiny_model("t5"), "opt": lambda: tiny_model("opt")}


@pytest.mark.parametrize("model", SHARED)
@moving
def test_shared_and_tied_weights(tmp_path, name, model):
    """Ranks are per module, however often it runs; what is saved gives the same logits."""
    method = make(name, SHARED[model]())
    assert len(method.matrices) == len({id(method.model.base_model.model.get_submodule(n)) for n in method.matrices})
    go(method, tmp_path, ended(tiny_data(24, length=9)))
    method.check_finished()
    inputs = batch()
    inputs["input_ids"][:, -1] = 1
    expected = logits(method.model, inputs)
    method.export(tmp_path / "out")
    again = PeftModel.from_pretrained(SHARED[model](), tmp_path / "out")
    torch.testing.assert_close(logits(again, inputs), expected, rtol=0, atol=1e-5)


def test_listener_sums_over_the_uses_of_a_shared_module():
    """Against autograd: ∂L/∂W of an ALBERT matrix is the sum over the three passes through it."""
    model = albert().eval()
    name = "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn"
    layer = model.get_submodule(name)
    listener = GradientListener({name: layer}, {})
    layer.train()
    model(**batch()).loss.backward()
    torch.testing.assert_close(listener.take()[0], layer.weight.grad, rtol=1e-4, atol=1e-7)


def only(adapter, model):
    """Logits with one adapter alone."""
    active = model.active_adapter
    model.set_adapter(adapter)
    values = logits(model)
    model.set_adapter(active)
    return values


@moving
def test_another_adapter_on_the_model_is_left_alone(tmp_path, name):
    method = make(name)
    theirs = LoraConfig(r=3, target_modules=["query", "output.dense"], init_lora_weights=False, task_type="SEQ_CLS")
    method.model.add_adapter("theirs", theirs)
    method.model.set_adapter(ADAPTER)
    before, config = only("theirs", method.model), copy.deepcopy(theirs.to_dict())
    go(method, tmp_path / "work", save_every=6)
    assert torch.equal(only("theirs", method.model), before)
    assert method.model.peft_config["theirs"].to_dict() == config
    method.model.save_pretrained(tmp_path / "both")
    again = PeftModel.from_pretrained(tiny_model(), tmp_path / "both")
    torch.testing.assert_close(logits(again), logits(method.model), rtol=0, atol=1e-5)
    other = PeftModel.from_pretrained(tiny_model(), tmp_path / "both" / "theirs")
    torch.testing.assert_close(logits(other), before, rtol=0, atol=1e-6)


def test_another_adapter_lives_on_where_ours_is_taken_off():
    method = build("lora")
    method.model.add_adapter("theirs", LoraConfig(r=3, target_modules=["query"], init_lora_weights=False))
    method.model.set_adapter(ADAPTER)
    before = only("theirs", method.model)
    apply_resize(method.model, dict.fromkeys(method.matrices, 0) | {"bert.encoder.layer.0.output.dense": 2})
    assert sum(method.rank_pattern().values()) == 2
    assert torch.equal(only("theirs", method.model), before)
    assert torch.equal(logits(method.model), logits(tiny_model()))  # ours: B is 0, and theirs has not moved in
    assert all("default" in name for name, p in method.model.named_parameters() if p.requires_grad)


def test_stock_trainer_with_two_adapters_resumes(tmp_path):
    """The checkpoint then holds ours, and the other in a folder of its own."""

    def trained(folder, resume):
        method = make("scripted")
        method.model.add_adapter("theirs", LoraConfig(r=3, target_modules=["query"], init_lora_weights=True))
        method.model.set_adapter(ADAPTER)
        arguments = training_arguments(settings(save_every=6), folder)
        driver = RankwiseCallback(method, total_steps=12)
        Trainer(method.model, arguments, train_dataset=tiny_data(20, length=9), callbacks=[driver]).train(resume)
        return logits(method.model)

    whole = trained(tmp_path, None)
    assert (tmp_path / "checkpoint-6" / "theirs" / "adapter_model.safetensors").is_file()
    assert torch.equal(trained(tmp_path / "more", str(tmp_path / "checkpoint-6")), whole)


@moving
def test_modules_trained_whole_beside_the_head(tmp_path, name):
    def base():
        model = tiny_model(**QUIET)
        setattr(model, NEW_MODULES, ("classifier", "bert.pooler"))
        return model

    def run(method, **kwargs):
        changes = settings(save_every=6, **kwargs)
        fit(method, tiny_tokenizer(), tiny_data(20, length=9), {}, changes, work_dir=tmp_path / "work")
        return method

    method = run(make(name, base()))
    expected = logits(method.model)
    pooler = method.model.base_model.model.bert.pooler.modules_to_save[ADAPTER].dense.weight
    assert not torch.equal(pooler, base().bert.pooler.dense.weight)
    assert "bert.pooler.dense" not in method.matrices
    method.export(tmp_path / "out")
    again = PeftModel.from_pretrained(tiny_model(), tmp_path / "out")
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5)
    assert torch.equal(logits(run(make(name, base())).model), expected)  # goes on from step 6


def test_merged_adapter_is_refused():
    method = build("lora")
    name = next(iter(method.matrices))
    method.model.merge_adapter()
    with pytest.raises(AllocationError, match="its adapter is merged into the weights; unmerge it first"):
        apply_resize(method.model, {name: 1})
    method.model.unmerge_adapter()
    apply_resize(method.model, {name: 1})
    assert adapted_layers(method.model)[name].r[ADAPTER] == 1


class Faithful(TrainerCallback):
    """After every step: the model, its saved copy and its merged copy give the same logits."""

    def __init__(self, method, folder):
        self.method, self.folder, self.steps = method, folder, 0

    def on_step_end(self, args, state, control, **kwargs):
        model = self.method.model
        expected = logits(model)
        folder = self.folder / str(state.global_step)
        model.save_pretrained(folder)
        fresh = PeftModel.from_pretrained(tiny_model(**QUIET), folder)
        merged = copy.deepcopy(model).merge_and_unload()
        for other in (fresh, merged):
            torch.testing.assert_close(logits(other), expected, rtol=0, atol=1e-5)
        assert torch.equal(logits(model), expected)
        self.steps += 1


PEERS = {"peft_adalora": "PEFT's own saves what its last masking left, not what the optimizer's momentum revived since"}
UNMERGED = ("cogalora", "radlora")
"""What decides per input cannot be merged; it has tests of its own."""
ADAPTERS = [name for name in METHODS if "budget" in METHODS[name].model_fields and name not in (*PEERS, *UNMERGED)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("scripted", "adalora") else slow)
        for name in dict.fromkeys([*MOVING, *ADAPTERS])
    ],
)
def test_in_memory_saved_and_merged_agree_at_every_step(tmp_path, name):
    method = make(name, tiny_model(**QUIET))
    faithful = Faithful(method, tmp_path / "saved")
    trainer_for(method, tmp_path / "work", data=tiny_data(24, length=9), callbacks=[faithful]).train()
    assert faithful.steps == 12
