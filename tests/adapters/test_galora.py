"""GaLoRA: a penalty that cannot be gauged away, exact zeros, a share that is reached, modules that are really gone."""

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from peft import PeftModel
from pydantic import ValidationError
from tiny import batch, build, logits, settings, tiny_data, tiny_model, tiny_tokenizer
from torch.utils.flop_counter import FlopCounterMode

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.gated import gate_of
from rankwise.adapters.methods.galora import GaloraConfig, _Modules
from rankwise.adapters.resize import apply_resize
from rankwise.allocation.budget import spent
from rankwise.errors import AllocationError, ConfigError
from rankwise.training.fit import fit

FAST = {"warmup": 3, "final": 3, "patience": 1}
"""On twelve steps: shrinks after steps 4 to 9, removes as it goes, trims after step 9."""


def run(method, folder, *, on_step=None, **changes):
    changes = settings(**changes)
    data = tiny_data(20)
    return fit(
        method, tiny_tokenizer(), data, {"main": tiny_data(8, seed=3)}, changes, work_dir=folder, on_step=on_step
    )


def deep(**overrides):
    return tiny_model(num_hidden_layers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **overrides)


def fill(method, seed=0):
    """A B that is not zero, of a different size in every module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted_layers(method.model).values():
            b = layer.lora_B[ADAPTER].weight
            b.copy_(torch.randn(b.shape, generator=generator) * torch.rand(1, generator=generator))
    return method


def gates(method):
    return {name: gate_of(layer).gate.item() for name, layer in adapted_layers(method.model).items()}


def living(method):
    """Share of the first parameters whose gate is not zero."""
    ranks = method.rank_pattern()
    alive = {name: ranks[name] for name, gate in gates(method).items() if gate != 0}
    return spent(alive, method.price) / method.decline.total


def deltas(method):
    return {n: layer.get_delta_weight(ADAPTER).detach() for n, layer in adapted_layers(method.model).items()}


@pytest.mark.parametrize("penalty", ["adaptive", "lasso"])
@examples(max_examples=5)
@given(st.lists(st.floats(0.02, 50), min_size=12, max_size=12), st.integers(0, 50))
def test_penalty_cannot_be_gauged_away(penalty, factors, seed):
    """(g, B) -> (g / c, cB), a c for each module: the same function before the step and after it."""
    plain, gauged = (fill(build("galora", penalty=penalty, **FAST), seed) for _ in range(2))
    with torch.no_grad():
        for layer, c in zip(adapted_layers(gauged.model).values(), factors, strict=True):
            gate_of(layer).gate.div_(c)
            layer.lora_B[ADAPTER].weight.mul_(c)
    before = deltas(plain)
    assert (plain.after_optimizer_step(8) is None) == (gauged.after_optimizer_step(8) is None)
    after, other = deltas(plain), deltas(gauged)
    for name, value in after.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4 * float(before[name].abs().max()))
        assert float(value.norm()) < float(before[name].norm())
    assert {n for n, g in gates(plain).items() if g == 0} == {n for n, g in gates(gauged).items() if g == 0} != set()


def test_step_is_the_block_soft_threshold_of_what_modules_do():
    """Against norms of the products themselves, in float64."""
    method = fill(build("galora", penalty="lasso", **FAST))
    ranks, before = method.rank_pattern(), {n: d.double() for n, d in deltas(method).items()}
    method.after_optimizer_step(5)
    after = {n: d.double() for n, d in deltas(method).items()}
    weighted = {n: float(d.norm()) / (ranks[n] * method.costs[n]) ** 0.5 for n, d in before.items()}
    lost = {n: weighted[n] * (1 - float(after[n].norm() / before[n].norm())) for n in before}
    tau = max(lost.values())
    for name, value in lost.items():
        assert value == pytest.approx(min(tau, weighted[name]), rel=1e-4)
        torch.testing.assert_close(after[name], before[name] * (1 - value / weighted[name]), rtol=1e-3, atol=1e-6)


def test_dead_module_may_revive_until_it_is_removed():
    method = fill(build("galora", **(FAST | {"patience": 5})))
    assert method.after_optimizer_step(6) is None
    dead = [name for name, gate in gates(method).items() if gate == 0]
    alive = [name for name in gates(method) if name not in dead]
    assert dead
    assert alive
    b = adapted_layers(method.model)[dead[0]].lora_B[ADAPTER].weight
    assert b.count_nonzero() > 0  # what it had learned waits
    with torch.no_grad():
        gate_of(adapted_layers(method.model)[dead[0]]).gate.fill_(40.0)
    assert method.after_optimizer_step(7) is None
    assert gates(method)[dead[0]] > 0
    assert method._idle_steps()[dead[0]] == 0
    assert all(method._idle_steps()[name] == 2 for name in dead[1:])


def test_share_is_reached_by_shrinking_alone(tmp_path, monkeypatch):
    """Before the last exact step: the share of living parameters, seen at every step of a real training."""
    shares = {}
    inner = _Modules.scale

    def scale(self, factors):
        inner(self, factors)
        shares[len(shares) + 13] = living(method)

    monkeypatch.setattr(_Modules, "scale", scale)
    method = build("galora", deep(), total_steps=60, patience=60)  # nothing is removed, nothing trimmed yet
    run(method, tmp_path, total_steps=60)
    assert (method.decline.first, method.decline.last) == (12, 42)
    assert list(shares) == list(range(13, 43))
    wanted = {step: method.decline.left(step) / method.decline.total for step in shares}
    largest = max(method.costs.values()) * 6 / method.decline.total
    assert all(shares[step] < wanted[step] + largest for step in shares)  # never late
    keep = method.target.total / method.decline.total
    assert keep == pytest.approx(1 / 3)
    assert keep <= shares[42] < keep + largest < keep + 0.1
    assert shares[41] < keep + 0.1  # measured: 0.357 here and after the last step
    assert shares[20] > keep + 0.1


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("bert", {}),
        ("bert", {"budget": "29 ranks"}),
        ("bert", {"budget": "2000", "keep": "20%"}),
        ("bert", {"budget": "9%", "penalty": "lasso"}),
        ("bert", {"keep": 0.9}),
        ("bert", {"budget": "r=20", "keep": "35%"}),  # r=57 is above full rank: starts at 32 everywhere
        ("llama", {"target_modules": ["q_proj", "k_proj", "down_proj"]}),
        ("gpt2", {"budget": "r=1"}),
    ],
)
def test_budget_is_exact_and_the_peak_is_what_it_started_with(tmp_path, family, fields):
    method = build("galora", tiny_model(family), **(FAST | fields))
    first = method.parameter_count()
    assert first.final == first.peak == spent(method.rank_pattern(), method.costs)
    fitted = run(method, tmp_path)
    last = method.parameter_count()
    assert last.peak == first.peak >= last.final
    if method.target.unit == "ranks":
        assert sum(method.rank_pattern().values()) == 29
    else:
        assert last.final == method.target.total
        capped = fields.get("budget") == "r=20"
        assert capped or last.final / first.peak <= method.config.keep
    for event in fitted.trace:  # never less than is needed, at any time
        assert spent(event.ranks, method.price) >= method.target.total
    ranks = [event.ranks for event in fitted.trace]
    for earlier, later in itertools.pairwise(ranks):
        assert all(later[name] <= earlier[name] for name in later)


def test_strongest_are_kept_and_trimmed_a_little(tmp_path):
    method = build("galora", deep(), **FAST)
    fitted = run(method, tmp_path)
    events = [event for event in fitted.trace if event.event == "resize"]
    assert [event.step for event in events][-1] == 9
    assert len(events) > 1
    scores, ranks = events[-1].scores, events[-1].ranks
    assert min(scores[n] for n in ranks if ranks[n]) >= max(scores[n] for n in ranks if not ranks[n])
    assert {rank for rank in ranks.values() if rank} <= {4, 5, 6}
    for event in events[:-1]:
        assert set(event.ranks.values()) == {0, 6}
        assert all(event.scores[name] == 0 for name, rank in event.ranks.items() if rank == 0)
    assert sum(rank > 0 for rank in ranks.values()) < 12


def test_removed_modules_leave_nothing_behind(tmp_path):
    """Parameters, moments and wrappers go with the module, before shrinking has ended."""
    method, seen = build("galora", deep(), **FAST), []

    def look(step, loss):
        layers, ranks = adapted_layers(method.model), method.rank_pattern()
        trained = sum(p.numel() for n, p in method.model.named_parameters() if p.requires_grad and ".lora_" in n)
        assert set(layers) == {n for n, r in ranks.items() if r}
        assert trained == spent(ranks, method.costs) + len(layers)  # one gate each
        seen.append(len(layers))

    run(method, tmp_path, on_step=look)
    assert seen[2] == 24
    assert seen[7] < 18
    assert seen == sorted(seen, reverse=True)


def force(monkeypatch, weak):
    """Make the modules whose name contains one of `weak` the weakest."""
    inner = _Modules.norms

    def norms(self):
        scale = [1e-3 if any(w in n for w in weak) else 1.0 for n in self.names]
        return (inner(self) + 1e-6) * torch.tensor(scale)

    monkeypatch.setattr(_Modules, "norms", norms)


def backward_work(model):
    """FLOPs of one backward pass, and in which blocks' outputs it arrived."""
    reached, root = [], model.base_model.model.bert
    inputs = batch(8)

    def watch(index):
        def on_forward(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda gradient: reached.append(index))

        return on_forward

    hooks = [block.register_forward_hook(watch(i)) for i, block in enumerate(root.encoder.layer)]
    model.train()
    loss = model(**inputs).loss
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    return counter.get_total_flops(), sorted(reached)


def test_backward_stops_above_the_lowest_living_module(tmp_path, monkeypatch):
    """With the adapters of blocks 0 and 1 gone, autograd does not get there: counted, not timed."""
    force(monkeypatch, ["layer.0.", "layer.1."])
    method = build("galora", deep(), keep="50%", **FAST)
    before, reached = backward_work(method.model)
    assert reached == [0, 1, 2, 3]
    run(method, tmp_path)
    ranks = method.rank_pattern()
    assert {n.split("layer.")[1][0] for n, r in ranks.items() if r} == {"2", "3"}
    after, reached = backward_work(method.model)
    assert reached == [2, 3]
    assert after < 0.6 * before


def test_removal_stops_at_what_the_budget_can_be_spent_on(tmp_path, monkeypatch):
    """Matrices of 64 a rank cannot spend an odd multiple of 32: one of 96 a rank has to stay, dead or not."""
    force(monkeypatch, ["intermediate", "output.dense"])
    method = build("galora", budget="1056", keep="40%", **FAST)
    assert method.target.total % 64 == 32
    run(method, tmp_path)
    assert method.parameter_count().final == method.target.total
    assert any(rank and method.costs[name] == 96 for name, rank in method.rank_pattern().items())


WAITING = FAST | {"patience": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with removals after steps 6 and 8, while other gates are at zero and wait."""
    return run(build("galora", deep(), **WAITING), tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [5, 6, 8, 10])
def test_killed_in_any_phase_it_resumes_to_the_same_run(whole, tmp_path, lost):
    """Before, during and after the shrinking."""

    def die(step, loss):
        if step == lost:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(build("galora", deep(), **WAITING), tmp_path / "cut", save_every=1, on_step=die)
    torch.manual_seed(999)
    method = build("galora", deep(), **WAITING)
    resumed = run(method, tmp_path / "cut", save_every=1)
    assert resumed.losses == whole.losses
    assert (resumed.logits["main"] == whole.logits["main"]).all()
    assert resumed.trace == whole.trace
    assert [event.step for event in whole.trace if event.event == "resize"] == [6, 8, 9]


def test_state_knows_how_long_gates_have_been_zero():
    fields = FAST | {"patience": 5}
    method = fill(build("galora", **fields))
    for step in (4, 6, 7):
        method.after_optimizer_step(step)
    state = method.state_dict()
    assert set(state["rankwise.idle"].tolist()) >= {0, 2}
    fresh = build("galora", **fields)
    fresh.load_state_dict(state)
    assert all(torch.equal(state[key], value) for key, value in fresh.state_dict().items())
    one, two = method.after_optimizer_step(8), fresh.after_optimizer_step(8)
    assert one == two is None
    assert all(
        torch.equal(a, b) for a, b in zip(method.state_dict().values(), fresh.state_dict().values(), strict=True)
    )


def test_gates_are_folded_into_a_plain_checkpoint(tmp_path):
    """Stock PEFT computes the same; the gates have learned something, so this is not for want of a gate."""
    method = build("galora", **FAST)
    run(method, tmp_path / "work", learning_rate=3e-2)
    assert all(abs(gate - 1) > 1e-3 for gate in gates(method).values())
    folder = method.export(tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == len(gates(method)) < 12
    expected = logits(method.model)
    plain = PeftModel.from_pretrained(tiny_model(), str(folder))
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(plain.merge_and_unload()), expected, rtol=0, atol=1e-5)


def test_nothing_shrinks_before_the_warmup_ends_or_after_the_trim():
    method = fill(build("galora", **FAST))
    before = deltas(method)
    for step in (1, 2, 3):
        assert method.after_optimizer_step(step) is None
    assert all(torch.equal(before[name], value) for name, value in deltas(method).items())
    resize = method.after_optimizer_step(9)
    apply_resize(method.model, resize.ranks, step=9)
    after = deltas(method)
    for step in (10, 11, 12):
        assert method.after_optimizer_step(step) is None
    assert all(torch.equal(after[name], value) for name, value in deltas(method).items())


def test_unfinished_or_off_budget_is_an_error():
    method = fill(build("galora", **FAST))
    with pytest.raises(
        AllocationError, match=r"galora never came to its final ranks: .* after step 9.*RankwiseCallback"
    ):
        method.check_finished()
    method.after_optimizer_step(9)  # asks for a resize that nobody carries out
    with pytest.raises(AllocationError, match=r"galora ended at 5,376 parameters, its budget is 1,792"):
        method.check_finished()


@pytest.mark.parametrize("fields", [{"warmup": 9, "final": 3}, {"warmup": 0.7, "final": 0.3}, {"final": 12}])
def test_schedule_without_room_is_refused(fields):
    with pytest.raises(ConfigError, match=r"method\.warmup, method\.final: .*leaves none .*at most 11"):
        build("galora", **fields)


@pytest.mark.parametrize(
    "fields", [{"keep": 0}, {"keep": "100%"}, {"keep": 35}, {"keep": "much"}, {"patience": 0}, {"penalty": "l2"}]
)
def test_senseless_settings_are_refused(fields):
    with pytest.raises(ValidationError):
        GaloraConfig(**fields)


def test_share_is_read_alike_however_it_is_written():
    assert GaloraConfig(keep="35%") == GaloraConfig(keep=0.35) == GaloraConfig(keep=" 0.35") == GaloraConfig()
    assert GaloraConfig(keep="12.5%").keep == 0.125
