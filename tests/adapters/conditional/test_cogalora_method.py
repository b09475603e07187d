"""CoGaLoRA's training: the unit of its temperature, its price, its threshold, and what holds it back from collapse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import batch, build, settings, tiny_data, tiny_model, tiny_tokenizer
from torch.optim import AdamW

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.conditional.tuner import ROUTER
from rankwise.adapters.conditional_method import between
from rankwise.adapters.deciding_method import TOLERANCE, measured_examples
from rankwise.allocation.tracking import fair_price
from rankwise.errors import AllocationError, BudgetError, ConfigError
from rankwise.training.fit import fit

FAST = {"budget": "r=8", "warmup": 2, "annealing": 9}


def driven(steps=12, **fields):
    """A method trained by hand on two batches in turn, and what the layers were told at every step."""
    method = build("cogalora", **(FAST | fields))
    optimizer = AdamW([p for p in method.model.parameters() if p.requires_grad], lr=5e-3)
    told = []
    for step in range(1, steps + 1):
        method.model.train()
        context = method.context
        told.append((context.all_open, context.temperature, context.price))
        loss = method.model(**batch(8, seed=step % 2)).loss
        penalty = method.penalty()
        (loss if penalty is None else loss + penalty).backward()
        method.before_optimizer_step(step)
        optimizer.step()
        optimizer.zero_grad()
        method.after_optimizer_step(step)
    return method, told


def test_the_warm_up_holds_gates_open_then_temperatures_fall_by_a_constant_factor():
    method, told = driven(temperature=(2.0, 0.5))
    assert [is_open for is_open, _, _ in told] == [True, True] + [False] * 10
    assert {price for _, _, price in told[:3]} == {0.0}
    assert told[2][1] == pytest.approx(2.0 * 0.25 ** (1 / 7))  # its unit is 1 until logits were seen
    assert method.context.temperature == pytest.approx(0.5 * method.spread)


def test_the_temperature_is_in_units_of_the_spread_of_logits():
    method = build("cogalora", **FAST)
    generator = torch.Generator().manual_seed(0)
    widths = [3.0, 5.0, 0.0]
    found = []
    for step, width in zip((3, 4, 5), widths, strict=True):
        method._logits = torch.randn(40, 12, generator=generator, dtype=torch.float64) * width
        found.append(max(float(method._logits.var(correction=0)) ** 0.5, 0.01))
        method.before_optimizer_step(step)
    first, second, third = found
    smoothed = 0.8 * (0.8 * first + 0.2 * second) + 0.2 * third
    assert method.spread == pytest.approx(smoothed)
    assert method.context.temperature == pytest.approx(smoothed * 2.0 * (0.1 / 2.0) ** (4 / 7))


def test_at_the_end_the_price_is_that_of_the_hard_gates():
    """A quarter of the logits is above the price, although probabilities around it are far from 0 and 1."""
    method = build("cogalora", active=0.25, **FAST)
    logits = torch.randn(64, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in range(1, 80):
        method._logits = logits
        method.before_optimizer_step(step)
    assert float((logits > method.tracker.price).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert method.peft.threshold == pytest.approx(1 / (1 + math.exp(-method.tracker.price)))


def skewed(count=64, modules=12):
    """Logits of which few are far above the others: draws and hard gates disagree about the price."""
    noise = torch.rand(count, modules, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return -noise.log()


@pytest.mark.parametrize("name", ["cogalora", "radlora"])
def test_the_price_is_that_of_hard_gates_however_soft_the_draws_are(name):
    """The temperature stays above what logits are apart; drawn gates would be fair at another price."""
    method = build(name, active=0.5, temperature=(2.0, 2.0), **FAST)
    logits = skewed()
    for step in range(1, 80):
        method._logits = logits
        method.before_optimizer_step(step)
    assert method.context.temperature == pytest.approx(2.0, rel=0.1)
    share = float((logits > method.tracker.price).double().mean())
    fair = fair_price(logits, method.context.temperature, 0.5)
    assert share == pytest.approx(0.5, abs=0.03)
    assert float((logits > fair).double().mean()) < 0.42, "or the test could not tell"


def test_a_resumed_method_goes_on_in_the_same_units():
    """The spread of logits is the unit of the temperature; without it gates would be drawn in another one."""
    method, _ = driven(7)
    assert method.spread not in (0.0, 1.0)
    fresh = build("cogalora", **FAST)
    fresh.load_state_dict(method.state_dict())
    assert fresh.spread == method.spread
    assert fresh.context.temperature == method.context.temperature
    for each in (fresh, method):
        each._logits = skewed()
        each.before_optimizer_step(8)
    assert (fresh.spread, fresh.tracker.price) == (method.spread, method.tracker.price)
    assert fresh.context.temperature == method.context.temperature


@pytest.mark.parametrize(("name", "options"), [("cogalora", {}), ("cogalora", {"router": "shared"}), ("radlora", {})])
def test_a_price_that_goes_far_goes_into_the_biases(name, options):
    """Logits that drift away take their gates along, not out of what probabilities can tell apart."""
    method = build(name, **(FAST | {"active": 0.5} | options))
    before = [bias.detach().clone() for bias in method.gate_biases()]
    other = {n: p.clone() for n, p in method.model.named_parameters() if not n.endswith("up_bias")}
    noise = torch.randn(64, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in range(1, 60):
        moved = float(before[0][0] - method.gate_biases()[0].detach()[0])  # what the method has charged so far
        method._logits = noise + 500.0 - moved
        method.before_optimizer_step(step)
        assert abs(method.tracker.price) <= 8.0
        assert 0.0 < method.peft.threshold < 1.0
    charged = [was - bias.detach() for was, bias in zip(before, method.gate_biases(), strict=True)]
    assert float(charged[0][0]) + method.tracker.price == pytest.approx(500.0, abs=1.0)
    for each in charged:
        torch.testing.assert_close(each, charged[0][0].expand_as(each))
    now = dict(method.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in other.items())


def written_out(method, goal, weight):
    """What the penalty should be for what was recorded."""
    layers = adapted_layers(method.model)
    seen = {name: torch.cat(method.context.recorded[name, ADAPTER]) for name in layers}
    logits = torch.stack([layer.lora_router[ADAPTER](seen[name])[:, 0] for name, layer in layers.items()], 1)
    chances = torch.sigmoid((logits - method.tracker.price) / method.context.temperature)
    mean = chances.mean(0)
    bonus = (torch.special.entr(mean) + torch.special.entr(1 - mean)).mean()
    return 0.5 * (chances.mean() - goal) ** 2 - weight * bonus


def test_the_penalty_is_the_cost_of_the_share_less_the_fading_bonus():
    method = build("cogalora", entropy=0.3, **FAST)
    method.model.train()
    for step in range(1, 13):
        method.model(**batch(8))
        penalty = method.penalty()
        assert (penalty is None) == (step <= 2)
        if penalty is not None:
            fading = max(1 - min((step - 2) / 7, 1), 0.2)
            torch.testing.assert_close(penalty, written_out(method, method.tracker.target_at(step), 0.3 * fading))
        method.before_optimizer_step(step)


def test_routers_get_gradients_of_task_and_penalty_and_give_none_to_what_they_see():
    method, _ = driven(3)
    method.model.train()
    method.model(**batch(8)).loss.backward()
    layers = adapted_layers(method.model)
    routers = [p for layer in layers.values() for p in layer.lora_router.parameters()]
    assert sum(float(p.grad.abs().max()) > 0 for p in routers) > len(routers) / 2
    method.model.zero_grad()
    method.penalty().backward()
    names = {n for n, p in method.model.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}
    assert names
    assert all(".lora_router." in name for name in names)


chance_lists = st.lists(st.integers(1, 999), min_size=2, max_size=60, unique=True)


@given(chance_lists, st.floats(0.05, 0.95))
def test_a_moved_threshold_meets_the_share_half_way_between_two(values, share):
    chances = torch.tensor(values, dtype=torch.float64) / 1000
    threshold = between(torch.logit(chances), share)
    count = int((chances > threshold).sum())
    assert abs(count - share * len(values)) <= max(0.5, 1 - share * len(values), 1 - (1 - share) * len(values)) + 1e-9
    assert float((chances - threshold).abs().min()) >= 0.0004


@pytest.mark.parametrize("name", ["cogalora", "radlora"])
def test_shares_are_met_where_the_price_is_so_high_that_chances_are_one_in_single_precision(name):
    method = build(name, **(FAST | {"active": 0.5}))
    generator = torch.Generator().manual_seed(0)
    for layer in adapted_layers(method.model).values():
        router = getattr(layer, ROUTER)[ADAPTER]
        with torch.no_grad():
            router.up.copy_(torch.randn(router.up.shape, generator=generator) * 0.5)
            router.up_bias[0] += 25.0
    method.tracker.price, method.step = 24.0, 12
    method._at(13)
    method.model.eval()
    inputs = {key: value for key, value in batch(64, seed=3).items() if key != "labels"}
    method.conclude(lambda: [inputs])
    assert abs(method.measured - 0.5) <= TOLERANCE
    assert len({round(value, 3) for value in method.peft.usage.values()}) > 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["module", "shared"])
@pytest.mark.parametrize("active", [0.2, 0.5, 0.8])
def test_a_longer_training_meets_its_target_before_the_threshold_is_moved(tmp_path, monkeypatch, kind, active):
    method = build("cogalora", tiny_model(), total_steps=60, budget="r=8", active=active, router=kind, entropy=0.1)
    shares = []
    inner = method.conclude

    def conclude(batches):
        method.context.all_open = False
        shares.append(float((torch.sigmoid(method.observe(batches)) > method.peft.threshold).double().mean()))
        inner(batches)

    monkeypatch.setattr(method, "conclude", conclude)
    fit(method, tiny_tokenizer(), tiny_data(40), {}, settings(total_steps=60), work_dir=tmp_path)
    assert shares[0] == pytest.approx(active, abs=TOLERANCE)
    assert method.measured == pytest.approx(active, abs=TOLERANCE)
    assert any(0.1 < share < 0.9 for share in method.peft.usage.values())


def test_a_share_that_cannot_be_met_is_an_error(monkeypatch):
    """All gates alike: any threshold opens all or none."""
    method = build("cogalora", **FAST)
    monkeypatch.setattr(method, "observe", lambda batches: torch.zeros(16, 12))
    method.conclude(lambda: [])
    with pytest.raises(AllocationError, match=r"ended with 0\.0% of its adapters open, its target is 50\.0%"):
        method.check_finished()


def test_routers_that_leave_too_little_for_ranks_are_an_error():
    with pytest.raises(BudgetError, match=r"routers take 1,900, and .* router: shared"):
        build("cogalora", budget="r=1")
    assert set(build("cogalora", budget="r=2", router="shared").rank_pattern().values()) <= {1, 2}


def test_budgets_in_ranks_are_ranks():
    assert sum(build("cogalora", budget="30 ranks").rank_pattern().values()) == 30


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"warmup": 9}, "warmup has to end before"),
        ({"annealing": 30}, "annealing"),
        ({"temperature": (1, 0)}, "positive"),
    ],
)
def test_settings_that_make_no_sense(fields, words):
    with pytest.raises(ConfigError, match=words):
        build("cogalora", **(FAST | fields))


def test_measuring_ends_with_enough_examples():
    def batches():
        return ({"x": torch.zeros(8)} for _ in range(5))

    assert len(list(measured_examples(batches, lambda x: x, 10))) == 2
    assert len(list(measured_examples(batches, lambda x: x))) == 5
