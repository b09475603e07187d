"""GLoRA: when it decides, on what, at which budget; and that with nothing to decide it is uniform LoRA."""

import dataclasses

import pytest
import torch
from pydantic import ValidationError
from tiny import batch, build, settings, tiny_data, tiny_model, tiny_tokenizer, trainer_for

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.contract import generator_for
from rankwise.adapters.listen import GradientListener
from rankwise.adapters.methods.glora import Glora, GloraConfig
from rankwise.allocation.signals import SIGNALS, projection
from rankwise.errors import AllocationError, ConfigError
from rankwise.training.fit import fit


def run(method, folder, **changes):
    changes = settings(**changes)
    return fit(method, tiny_tokenizer(), tiny_data(20), {"main": tiny_data(8, seed=3)}, changes, work_dir=folder)


def test_uniform_lora_twice_is_identical(tmp_path):
    one, two = (run(build("lora"), tmp_path / name) for name in "ab")
    assert one.losses == two.losses
    assert (one.logits["main"] == two.logits["main"]).all()
    other = run(build("lora", seed=1), tmp_path / "c", seed=1)
    assert other.losses != one.losses


@pytest.mark.parametrize("signal", SIGNALS)
def test_flat_score_is_uniform_lora_bit_for_bit(tmp_path, monkeypatch, signal):
    plain = run(build("lora"), tmp_path / "lora")
    monkeypatch.setattr(Glora, "scores", lambda self, step: dict.fromkeys(self.matrices, 0.3))
    flat = run(build("glora", signal=signal, warmup=4), tmp_path / "glora")
    assert flat.losses == plain.losses
    assert (flat.logits["main"] == plain.logits["main"]).all()


@pytest.mark.parametrize(("warmup", "step"), [(5, 5), (0.25, 3), (0.5, 6), (11, 11), (0.01, 1)])
def test_reallocates_once_at_the_end_of_the_warmup(tmp_path, warmup, step):
    fitted = run(build("glora", warmup=warmup), tmp_path)
    assert [(event.step, event.event) for event in fitted.trace] == [(0, "start"), (step, "resize"), (12, "end")]
    assert fitted.trace[1].scores.keys() == fitted.trace[1].ranks.keys()
    assert all(score > 0 for score in fitted.trace[1].scores.values())
    assert fitted.trace[1].ranks == fitted.trace[2].ranks != fitted.trace[0].ranks


@pytest.mark.parametrize("warmup", [12, 500, 0.99])
def test_warmup_that_never_ends_is_refused(warmup):
    with pytest.raises(ConfigError, match=r"method\.warmup: .*ranks would never be reallocated; use at most 11"):
        build("glora", warmup=warmup)


@pytest.mark.parametrize("fields", [{"warmup": 0}, {"warmup": 1.5}, {"floor": -1}, {"cap": 0}, {"beta": 1.0}])
def test_senseless_settings_are_refused(fields):
    with pytest.raises(ValidationError):
        GloraConfig(**fields)


def test_unknown_signal_has_a_suggestion():
    with pytest.raises(ValidationError, match="unknown signal 'exakt', did you mean 'exact'"):
        GloraConfig(signal="exakt")


@pytest.mark.parametrize(("fields", "message"), [({"floor": 3}, "below the floor"), ({"cap": 1}, "above the cap")])
def test_bounds_that_cannot_meet_the_budget_are_refused_before_training(fields, message):
    with pytest.raises(ConfigError, match=message):
        build("glora", **fields)


@pytest.mark.parametrize("budget", ["r=2", "9%", "2000", "29 ranks"])
@pytest.mark.parametrize("signal", SIGNALS)
def test_every_signal_spends_every_budget_exactly(tmp_path, signal, budget):
    method = build("glora", signal=signal, budget=budget, warmup=3, cap=6)
    run(method, tmp_path)
    ranks = method.rank_pattern()
    assert all(1 <= rank <= 6 for rank in ranks.values())
    count = method.parameter_count()
    if budget.endswith("ranks"):
        assert sum(ranks.values()) == 29
    else:
        uniform = build("lora", budget=budget).parameter_count().final
        assert count.final == count.peak == method.target.total == uniform


def test_floor_of_zero_lets_adapters_go(tmp_path, monkeypatch):
    def scores(self, step):
        return {name: 0.0 if "query" in name else 1.0 for name in self.matrices}

    monkeypatch.setattr(Glora, "scores", scores)
    method = build("glora", floor=0, warmup=3)
    total = method.parameter_count().final
    run(method, tmp_path / "work")
    ranks = method.rank_pattern()
    assert [name for name, rank in ranks.items() if rank == 0] == [name for name in ranks if "query" in name]
    assert set(adapted_layers(method.model)) == {name for name, rank in ranks.items() if rank}
    assert method.parameter_count().final == total


def test_moving_average_is_the_bias_corrected_mean(tmp_path):
    """Against scores computed from the gradients themselves, for each kind of signal."""
    for signal in SIGNALS:
        method = build("glora", signal=signal, warmup=3, beta=0.7, budget="r=2")
        full, seen = GradientListener(adapted_layers(method.model), {}), []
        method.model.train()
        for step in (1, 2, 3):
            method.model.zero_grad()
            method.model(**batch(6, seed=step)).loss.backward()
            layers = adapted_layers(method.model)
            exact = dict(zip(method.matrices, full.take(), strict=True))
            seen.append((exact, {n: layers[n].lora_B[ADAPTER].weight.grad.clone() for n in method.matrices}))
            method.before_optimizer_step(step)
        weights = [0.3 * 0.7**2, 0.3 * 0.7, 0.3]
        for index, (name, score) in enumerate(method.scores(3).items()):
            gradients = [entry[1 if signal == "record" else 0][name] for entry in seen]
            if signal in ("estimate", "norm_of_mean"):
                p = projection(gradients[0].shape[1], generator_for(method.seed, index))
                gradients = [gradient @ p.T for gradient in gradients]
            if signal == "norm_of_mean":
                value = float(sum(w * g for w, g in zip(weights, gradients, strict=True)).norm())
            else:
                value = sum(w * float(g.norm()) for w, g in zip(weights, gradients, strict=True))
            assert score == pytest.approx(value / (1 - 0.7**3), rel=1e-4)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_exact_signal_is_autograds_gradient_of_the_weight(family, accumulation, checkpointing):
    """Summed over micro-batches, under both kinds of gradient checkpointing (`use_reentrant`)."""
    overrides = (
        {}
        if family == "llama"
        else {"bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}.get(
            family, {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        )
    )
    method = build("glora", tiny_model(family, **overrides), signal="exact", warmup=3)
    model = method.model
    model.train()
    batches = [batch(4, seed=s) for s in range(accumulation)]
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.base_model.model.activation_checkpointing_enable({"use_reentrant": checkpointing})
    for inputs in batches:
        model(**inputs).loss.backward()
    found = dict(zip(method.matrices, method._listener.take(), strict=True))
    assert set(found) == set(method.matrices)
    model.zero_grad()
    if checkpointing is not None:
        model.base_model.model.activation_checkpointing_disable()
    layers = adapted_layers(model)
    for layer in layers.values():
        layer.get_base_layer().weight.requires_grad_(True)
    for inputs in batches:
        model(**inputs).loss.backward()
    for name, layer in layers.items():
        expected = layer.get_base_layer().weight.grad
        expected = expected.T if family == "gpt2" else expected
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7)


def test_exact_signal_stops_listening_after_the_warmup(tmp_path):
    method = build("glora", signal="exact", warmup=3)
    layers = adapted_layers(method.model).values()
    assert all(layer._forward_hooks for layer in layers)
    run(method, tmp_path)
    assert not any(layer._forward_hooks for layer in adapted_layers(method.model).values())
    assert not method._listener._sums


def test_evaluation_in_the_warmup_is_not_listened_to():
    method = build("glora", signal="exact", warmup=3)
    method.model.eval()
    method.model(**batch()).loss.backward()
    assert not method._listener._sums


def test_adapter_without_gradient_is_named(tmp_path):
    method = build("glora", signal="record", warmup=3)
    name = next(iter(method.matrices))
    adapted_layers(method.model)[name].lora_B[ADAPTER].weight.requires_grad_(False)
    with pytest.raises(AllocationError, match=rf"{name}: lora_B has no gradient"):
        trainer_for(method, tmp_path).train()


def test_training_goes_on_smoothly_after_the_resize(tmp_path):
    """The step after the reallocation is as good as uniform LoRA's."""
    plain = run(build("lora"), tmp_path / "lora", total_steps=12)
    moved = run(build("glora", warmup=6), tmp_path / "glora", total_steps=12)
    assert moved.losses[:6] == plain.losses[:6]
    assert all(abs(a[1] - b[1]) < 0.05 for a, b in zip(moved.losses[6:9], plain.losses[6:9], strict=True))


def test_learns_with_accumulation_and_checkpointing_alike(tmp_path):
    """Gradient checkpointing changes nothing but memory; `fit` drives it, the exact signal included."""
    model = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    results = []
    for checkpointing in (False, True):
        method = build("glora", tiny_model(**model), signal="exact", warmup=3)
        changes = dataclasses.asdict(settings(gradient_checkpointing=checkpointing, gradient_accumulation_steps=2))
        fitted = run(method, tmp_path / str(checkpointing), **changes)
        results.append(([round(loss, 5) for _, loss in fitted.losses], method.rank_pattern()))
    assert results[0] == results[1]
