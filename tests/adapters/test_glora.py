"""GLoRA: when it decides, on what, at which budget; and that with nothing to decide it is uniform LoRA."""

import dataclasses

import pytest
import torch
from pydantic import ValidationError
from tiny import batch, build, settings, tiny_data, tiny_model, tiny_tokenizer, trainer_for
from transformers import TrainerCallback

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.methods.glora import Glora, GloraConfig, window
from rankwise.adapters.observer import Observer
from rankwise.allocation.allocate import allocate
from rankwise.allocation.signals import SIGNALS
from rankwise.errors import AllocationError, ConfigError
from rankwise.training.fit import fit


def run(method, folder, *, on_step=None, **changes):
    changes, validation = settings(**changes), {"main": tiny_data(8, seed=3)}
    return fit(method, tiny_tokenizer(), tiny_data(20), validation, changes, work_dir=folder, on_step=on_step)


def test_uniform_lora_twice_is_identical(tmp_path):
    one, two = (run(build("lora"), tmp_path / name) for name in "ab")
    assert one.losses == two.losses
    assert (one.logits["main"] == two.logits["main"]).all()
    other = run(build("lora", seed=1), tmp_path / "c", seed=1)
    assert other.losses != one.losses


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Uniform LoRA."""
    return run(build("lora"), tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("signal", ["record", "estimate", "activation", "whitened", "random"])
def test_flat_score_is_uniform_lora_bit_for_bit(tmp_path, monkeypatch, plain, signal):
    monkeypatch.setattr(Glora, "scores", lambda self: dict.fromkeys(self.matrices, 0.3))
    flat = run(build("glora", signal=signal, warmup=4, every=2), tmp_path / "glora")
    assert [event.event for event in flat.trace] == ["start", "resize", "resize", "resize", "end"]
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


@pytest.mark.parametrize(
    "fields",
    [
        *({"warmup": 0}, {"warmup": 1.5}, {"floor": -1}, {"cap": 0}, {"beta": 1.0}, {"every": 0}, {"until": 1.5}),
        *({"smoothing": 1.0}, {"normalise": "block"}, {"per": "flop"}),
    ],
)
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


@pytest.mark.parametrize(
    ("signal", "budget"), [("estimate", "9%"), ("estimate", "2000"), ("record", "29 ranks"), ("whitened", "29 ranks")]
)
def test_scores_and_spectra_spend_every_budget_exactly(tmp_path, signal, budget):
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
    def scores(self):
        return {name: 0.0 if "query" in name else 1.0 for name in self.matrices}

    monkeypatch.setattr(Glora, "scores", scores)
    method = build("glora", floor=0, warmup=3)
    total = method.parameter_count().final
    run(method, tmp_path / "work")
    ranks = method.rank_pattern()
    assert [name for name, rank in ranks.items() if rank == 0] == [name for name in ranks if "query" in name]
    assert set(adapted_layers(method.model)) == {name for name, rank in ranks.items() if rank}
    assert method.parameter_count().final == total


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
    found = dict(zip(method.matrices, method.observer.take().gradients, strict=True))
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
    assert method.observer.gradients is None


def test_evaluation_in_the_warmup_is_not_listened_to():
    method = build("glora", signal="exact", warmup=3)
    method.model.eval()
    method.model(**batch()).loss.backward()
    assert not method.observer.gradients._sums


def test_adapter_without_gradient_is_named(tmp_path):
    method = build("glora", signal="record", warmup=3)
    name = next(iter(method.matrices))
    adapted_layers(method.model)[name].lora_B[ADAPTER].weight.requires_grad_(False)
    with pytest.raises(AllocationError, match=rf"{name}: lora_B has no gradient"):
        trainer_for(method, tmp_path).train()


def test_training_goes_on_smoothly_after_the_resize(tmp_path, plain):
    """The step after the reallocation is as good as uniform LoRA's."""
    moved = run(build("glora", warmup=6), tmp_path / "glora")
    assert moved.losses[:6] == plain.losses[:6]
    assert all(abs(a[1] - b[1]) < 0.05 for a, b in zip(moved.losses[6:9], plain.losses[6:9], strict=True))


def test_learns_with_accumulation_and_checkpointing_alike(tmp_path):
    """Gradient checkpointing changes nothing but memory; `fit` drives it, the exact signal included."""
    model = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    results = []
    for checkpointing in (False, True):
        method = build("glora", tiny_model(**model), signal="exact", warmup=3)
        changes = vars(settings(gradient_checkpointing=checkpointing, gradient_accumulation_steps=2))
        fitted = run(method, tmp_path / str(checkpointing), **changes)
        results.append(([round(loss, 5) for _, loss in fitted.losses], method.rank_pattern()))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"warmup": 3, "every": 2}, [3, 5, 7]),  # until: 0.7 of 12 steps is step 8
        ({"warmup": 3, "every": 2, "until": 11}, [3, 5, 7, 9, 11]),
        ({"warmup": 0.25, "every": 0.25, "until": 0.5}, [3, 6]),
        ({"warmup": 1, "every": 1, "until": 4}, [1, 2, 3, 4]),
        ({"warmup": 11}, [11]),
    ],
)
def test_reallocates_again_and_again_at_exactly_the_budget(tmp_path, fields, steps):
    method = build("glora", budget="2000", **fields)
    fitted = run(method, tmp_path)
    assert [event.step for event in fitted.trace if event.event == "resize"] == steps
    spent_at = [sum(rank * method.costs[name] for name, rank in event.ranks.items()) for event in fitted.trace]
    assert spent_at == [method.target.total] * len(fitted.trace)
    assert method.parameter_count().peak == method.target.total
    assert len({tuple(event.ranks.values()) for event in fitted.trace}) > 1
    method.check_finished()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every": 3, "until": 12}, r"method\.until: 12 is step 12 of 12"),
        ({"warmup": 6, "every": 3}, r"method\.every: .*3 steps after the first at step 6, .*until. \(step 8\)"),
        ({"warmup": 3, "every": 2, "floor": 0}, r"method\.floor: 0 takes adapters off, .*cannot come back"),
        ({"warmup": 3, "smoothing": 0.5}, r"method\.smoothing: .*there is only one"),
        ({"warmup": 1, "signal": "variance"}, r"method\.signal: `variance` has to see 2 steps before the first"),
        ({"warmup": 2, "signal": "activation"}, r"method\.signal: `activation` has to see 3 steps"),
        ({"warmup": 4, "every": 1, "signal": "sensitivity"}, r"method\.signal: .*2 before any other"),
        ({"warmup": 4, "beta": 0.0, "signal": "variance"}, r"method\.signal: .*beta \(0\)"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        build("glora", **fields)


def test_every_contradiction_is_named_at_once():
    config = GloraConfig(warmup=10, every=1, until=20, floor=0, signal="variance")
    paths = {finding.path for finding in config.check(12)}
    assert paths == {"method.until", "method.floor", "method.signal"}


def test_stopping_between_two_reallocations_is_an_error(tmp_path):
    method = build("glora", warmup=3, every=2)
    trainer = trainer_for(method, tmp_path)
    trainer.add_callback(StopAfter(5))
    trainer.train()
    with pytest.raises(AllocationError, match="glora 2 of 3 times reallocated: it was to do so after step 7"):
        method.check_finished()


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_steps_that_hardly_count_are_not_listened_to(tmp_path, monkeypatch):
    """With beta 0.1 a step two before the last has 0.1² of its weight, one three before less than a hundredth."""
    assert [window(beta) for beta in (0, 0.1, 0.5, 0.9, 0.99)] == [1, 3, 7, 44, 459]
    seen = []
    take = Observer.take
    monkeypatch.setattr(Observer, "take", lambda self: (seen.append(len(hooks())), take(self))[1])
    method = build("glora", warmup=4, every=4, beta=0.1)

    def hooks():
        return [layer for layer in adapted_layers(method.model).values() if layer._forward_hooks]

    listened = []
    before = method.before_optimizer_step
    method.before_optimizer_step = lambda step: (listened.append((step, bool(hooks()))), before(step))[1]
    run(method, tmp_path)
    assert [step for step, hooked in listened if hooked] == [2, 3, 4, 6, 7, 8]
    assert seen == [12] * 6


def test_settling_comes_before_the_steps_that_count(tmp_path):
    method = build("glora", signal="activation", warmup=7, every=3, until=10, beta=0.1)
    listened, counts = [], []
    before = method.before_optimizer_step

    def watch(step):
        listened.append((step, method.observer.inputs is not None))
        before(step)
        counts.append(method.seen)

    method.before_optimizer_step = watch
    run(method, tmp_path)
    assert [step for step, on in listened if on] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert counts[2:10] == [0, 0, 1, 2, 3, 1, 2, 3]


def test_what_was_settled_once_stays_settled(tmp_path):
    method = build("glora", signal="activation", warmup=6, every=5, until=11, beta=0.1)
    listened = []
    before = method.before_optimizer_step
    method.before_optimizer_step = lambda step: (
        listened.append(step) if method.observer.inputs is not None else None,
        before(step),
    )[1]
    run(method, tmp_path)
    assert listened == [2, 3, 4, 5, 6, 9, 10, 11]


def test_squared_weights_of_the_corrected_average(tmp_path, monkeypatch):
    """Against the weights themselves: (1 - β) β^(n - i) / (1 - β^n) of step i."""
    beta, handed = 0.6, []
    method = build("glora", signal="variance", warmup=4, beta=beta)
    real = method.signal
    spy = dataclasses.replace(real, scores=lambda averaged: (handed.append(averaged), real.scores(averaged))[1])
    method.signal = spy
    run(method, tmp_path)
    n = method.seen or 4
    weights = [(1 - beta) * beta ** (n - i) / (1 - beta**n) for i in range(1, n + 1)]
    assert handed[0].squared_weights == pytest.approx(sum(w * w for w in weights))


def fixed_scores(monkeypatch, *rounds):
    """Let a method score its matrices by these functions of their names, one per reallocation."""
    monkeypatch.setattr(
        Glora, "scores", lambda self: {name: rounds[min(self.done, len(rounds) - 1)](name) for name in self.matrices}
    )


def test_normalised_by_family_every_kind_keeps_its_share(tmp_path, monkeypatch):
    """Scores that differ by a factor of 50 between kinds and 3 between blocks: only the latter moves ranks."""
    fixed_scores(monkeypatch, lambda name: (50.0 if "query" in name else 1.0) * (3 if ".1." in name else 1))
    plain = build("glora", warmup=3, budget="r=4")
    by_family = build("glora", warmup=3, budget="r=4", normalise="family")
    for method in (plain, by_family):
        fitted = run(method, tmp_path / method.config.normalise)
        scores = fitted.trace[1].scores
    assert all(score == pytest.approx(1.5 if ".1." in name else 0.5) for name, score in scores.items())
    ranks = by_family.rank_pattern()
    kinds = {
        name.partition(".0.")[2]: rank + ranks[name.replace(".0.", ".1.")]
        for name, rank in ranks.items()
        if ".0." in name
    }
    assert set(kinds.values()) == {8}
    assert all(rank == (6 if ".1." in name else 2) for name, rank in ranks.items())
    assert plain.rank_pattern() != ranks


@pytest.mark.parametrize("spectra", [False, True])
def test_smoothing_averages_relative_scores(tmp_path, monkeypatch, spectra):
    def score(number):
        return [number, number / 2, number / 4, number / 4] if spectra else number

    def one(name):
        return score(4.0 if "query" in name else 1.0)

    def two(name):
        return score(0.001 if "query" in name else 0.003)  # gradients have become a thousand times smaller

    fixed_scores(monkeypatch, one, two)
    fitted = run(build("glora", warmup=3, every=3, until=6, smoothing=0.25, budget="r=1"), tmp_path)
    first, second = (event.scores for event in fitted.trace if event.event == "resize")
    for name in first:  # 2 of 12 matrices are queries: the means are 1.5 and 0.002667
        relative_one = (4.0 if "query" in name else 1.0) / 1.5
        relative_two = (0.001 if "query" in name else 0.003) / (0.032 / 12)
        assert first[name] == pytest.approx(relative_one)
        assert second[name] == pytest.approx(0.25 * relative_one + 0.75 * relative_two)


def test_per_parameter_gives_wide_matrices_less(tmp_path, monkeypatch):
    fixed_scores(monkeypatch, lambda name: 1.0)
    by_rank, by_parameter = (build("glora", warmup=3, per=per, budget="r=4") for per in ("rank", "parameter"))
    run(by_rank, tmp_path / "a")
    run(by_parameter, tmp_path / "b")
    assert set(by_rank.rank_pattern().values()) == {4}
    ranks = by_parameter.rank_pattern()
    wide = [ranks[name] for name, cost in by_parameter.costs.items() if cost == 96]
    narrow = [ranks[name] for name, cost in by_parameter.costs.items() if cost == 64]
    assert max(wide) < min(narrow)
    assert ranks == allocate(dict.fromkeys(ranks, 1.0), by_parameter.costs, by_parameter.target, per="parameter")
    assert by_parameter.parameter_count().final == by_rank.parameter_count().final


def test_random_signal_is_random_and_the_seed_decides(tmp_path):
    patterns = []
    for number, seed in enumerate((0, 0, 1)):
        fitted = run(build("glora", signal="random", warmup=3, every=3, seed=seed), tmp_path / str(number))
        patterns.append([event.ranks for event in fitted.trace if event.event == "resize"])
    assert patterns[0] == patterns[1] != patterns[2]
    assert patterns[0][0] != patterns[0][1]


def test_sketched_spectra_speak_for_four_times_the_mean_rank(tmp_path):
    """Ranks above are neither asked of the sketch nor given; a cap of one's own takes precedence."""
    assert set(build("glora", signal="activation", warmup=4, budget="r=5")._caps().values()) == {20}
    assert set(build("glora", signal="activation", warmup=4)._caps().values()) == {16}
    assert set(build("glora", signal="activation", warmup=4, cap=3)._caps().values()) == {3}
    assert set(build("glora", warmup=4)._caps().values()) == {32}
    with pytest.raises(ConfigError, match="above the cap"):
        build("glora", signal="activation", warmup=4, budget="r=4", cap=3)


RESUMED = {"every": 3, "until": 9, "smoothing": 0.5, "normalise": "family", "beta": 0.7}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Signal -> the run that nobody interrupts, reallocating after steps 3, 6 and 9."""
    done = {}

    def of(signal):
        if signal not in done:
            method = build("glora", signal=signal, warmup=3, **RESUMED)
            done[signal] = run(method, tmp_path_factory.mktemp("whole"))
            for event in done[signal].trace:
                assert sum(rank * method.costs[name] for name, rank in event.ranks.items()) == method.target.total
        return done[signal]

    return of


@pytest.mark.parametrize(
    ("signal", "lost"),
    [(signal, 6) for signal in SIGNALS] + [("activation", 3), ("estimate", 4), ("estimate", 7)],
)
@pytest.mark.slow
def test_interrupted_run_resumes_to_the_same_run(whole, tmp_path, signal, lost):
    """Right before a reallocation, right after one and between two; step `lost` is not saved."""

    def die(step, loss):
        if step == lost:
            raise KeyboardInterrupt

    fields = {"signal": signal, "warmup": 3, **RESUMED}
    with pytest.raises(KeyboardInterrupt):
        run(build("glora", **fields), tmp_path, on_step=die, save_every=1)
    method = build("glora", **fields)
    torch.manual_seed(99)
    resumed, expected = run(method, tmp_path, save_every=1), whole(signal)
    assert resumed.losses == expected.losses
    assert resumed.trace == expected.trace
    assert (resumed.logits["main"] == expected.logits["main"]).all()
    method.check_finished()
