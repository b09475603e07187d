"""Shrinking modules away: norms, the proximal step against its definition, the controller against brute force."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from rankwise.allocation.allocate import allocate
from rankwise.allocation.budget import Target, spent
from rankwise.allocation.shrinkage import (
    Decline,
    can_hold,
    delta_norms,
    shrink_factors,
    surviving_ranks,
    threshold,
)
from rankwise.errors import BudgetError


@given(
    st.integers(1, 6), st.integers(1, 8), st.integers(1, 12), st.integers(1, 12), st.integers(-6, 6), st.integers(0, 99)
)
def test_norms_of_products_without_the_products(modules, rank, in_, out, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(modules, rank, in_, generator=generator)
    b = torch.randn(modules, out, rank, generator=generator) * 10.0**exponent
    expected = torch.linalg.matrix_norm(b.double() @ a.double())
    torch.testing.assert_close(delta_norms(a, b).double(), expected, rtol=2e-5, atol=0)
    torch.testing.assert_close(delta_norms(a.double(), b.double()), expected, rtol=1e-12, atol=0)


def test_norms_of_nothing_of_opposites_and_of_half_precision():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 9), torch.zeros(2, 7, 4)
    assert delta_norms(a, b).tolist() == [0.0, 0.0]
    row, column = torch.randn(1, 1, 9), torch.randn(1, 7, 1)
    left, right = torch.randn(500, 7, 1), torch.randn(500, 1, 9)
    opposites = delta_norms(right.repeat(1, 2, 1) * torch.tensor([[1.0], [3.0]]), torch.cat([3 * left, -left], 2))
    sizes = (left * right).norm(dim=(1, 2))
    assert bool((opposites < 5e-3 * sizes).all())  # none is the root of a negative rounding error
    low = delta_norms(row.bfloat16(), column.bfloat16())
    assert low.dtype is torch.float32
    assert float(low) == pytest.approx(float(row.norm() * column.norm()), rel=2e-2)


@pytest.mark.parametrize("power", [1, 2])
@given(st.integers(0, 999), st.floats(0.01, 3))
def test_step_is_the_minimum_of_the_penalised_distance(power, seed, tau):
    """Optimality of X for ½‖X - ΔW‖² + τ·w·√p·‖X‖: at X = 0 a subgradient vanishes, elsewhere the gradient does."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(5, 3, generator=generator).double()
    parameters = 7
    norm = delta.norm() / math.sqrt(parameters)
    weight = 1.0 if power == 1 else tau / float(norm)
    tau_ = torch.tensor(tau, dtype=torch.float64)
    x = delta * shrink_factors(norm[None], tau_, (norm <= tau_)[None], power=power)
    strength = tau * weight * math.sqrt(parameters)
    if float(x.norm()) == 0:
        assert float(delta.norm()) <= strength * (1 + 1e-9)
    else:
        gradient = x - delta + strength * x / x.norm()
        assert float(gradient.norm()) < 1e-9


def test_factors_of_the_strong_the_dead_and_the_needed():
    norms, tau = torch.tensor([0.5, 2.0, 2.0, 8.0, 0.0]), torch.tensor(2.0)
    dies = torch.tensor([True, True, False, False, False])
    assert shrink_factors(norms, tau, dies, power=1).tolist() == [0, 0, 1, 0.75, 1]
    assert shrink_factors(norms, tau, dies, power=2).tolist() == [0, 0, 1, 0.9375, 1]


@given(st.integers(0, 30), st.integers(1, 60), st.integers(1, 5000), st.floats(0, 1), st.data())
def test_deadline_is_the_first_step_that_allows_it(first, length, total, share, data):
    decline = Decline(first, first + length, total, max(1, int(share * total)))
    gone = data.draw(st.integers(1, total))
    found = float(decline.deadlines(torch.tensor([gone])))
    allowed = [t for t in range(first + 1, first + length + 1) if decline.left(t) <= total - gone + 1e-9 * total]
    if gone > total - decline.final:
        assert found == math.inf
    else:
        assert first < found <= first + length
        assert found in (allowed[0], allowed[0] - 1)  # a thousandth of a step is forgiven, see below
        assert decline.left(found + 2e-3) <= total - gone + 1e-6 * total
    assert decline.left(0) == total
    assert decline.left(first + length) == decline.left(10**6) == decline.final


def test_deadlines_stay_inside_the_schedule():
    decline = Decline(0, 4, 1_000_000, 100_000)
    assert decline.deadlines(torch.tensor([1, 900_000, 900_001])).tolist() == [1, 4, math.inf]


def smallest_tau(norms, sizes, decline, step):
    """Smallest constant τ whose soft thresholding (lasso) is never late, by bisection over simulated trainings."""

    def on_time(tau):
        now = sorted(zip(norms, sizes, strict=True))
        for t in range(step, decline.last + 1):
            now = [(n - tau, size) for n, size in now if n - tau > 0]
            if now and sum(size for _, size in now[1:]) >= decline.left(t) - 1e-6:  # the weakest had to be dead
                return False
        return True

    low, high = 0.0, max(norms)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if on_time(middle) else (middle, high)
    return high


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 12), st.integers(0, 3))
def test_threshold_is_the_smallest_that_meets_every_deadline(seed, count, length, offset):
    generator = torch.Generator().manual_seed(seed)
    norms = torch.rand(count, generator=generator) + 0.01
    sizes = torch.randint(1, 20, (count,), generator=generator)
    total = int(sizes.sum())
    decline = Decline(5, 5 + length, total, max(1, total // 3))
    step = min(6 + offset, decline.last)
    tau, dies = threshold(norms, sizes, decline, step, power=1)
    expected = smallest_tau(norms.tolist(), sizes.tolist(), decline, step)
    assert float(tau) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert bool((norms[dies] <= tau).all())
    assert int(sizes[~dies].sum()) >= decline.final


@given(st.integers(0, 10**6), st.sampled_from([1, 2]), st.floats(0, 0.3), st.integers(1, 40))
def test_never_late_however_norms_move_and_never_below_what_is_needed(seed, power, drift, length):
    """Late means: one more module could be dead. Sizes differ, all norms drift, the dead stir at every step."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 50, (14,), generator=generator)
    norms = torch.rand(14, generator=generator)
    total = int(sizes.sum())
    decline = Decline(3, 3 + length, total, max(1, total // 3))
    for step in range(4, decline.last + 1):
        norms = norms + drift * torch.rand(14, generator=generator)
        tau, dies = threshold(norms, sizes, decline, step, power=power)
        factors = shrink_factors(norms, tau, dies, power=power)
        assert torch.equal(factors == 0, dies)
        alive, weakest = int(sizes[~dies].sum()), sizes[~dies][norms[~dies].argmin()]
        assert alive >= decline.final
        assert alive - int(weakest) < decline.left(step) + 1e-3 * total
        assert not dies.any() or bool(norms[dies].max() <= norms[~dies].min())
        norms = norms * factors
    assert alive - int(weakest) < decline.final


def test_strong_modules_pay_less_when_adaptive():
    norms, sizes = torch.tensor([0.1, 0.2, 0.3, 1.0, 2.0]), torch.full((5,), 10)
    left = {}
    for power in (1, 2):
        now = norms
        for step in range(1, 21):
            tau, dies = threshold(now, sizes, Decline(0, 20, 50, 20), step, power=power)
            now = now * shrink_factors(now, tau, dies, power=power)
        assert (now > 0).tolist() == [False, False, False, True, True]
        left[power] = float(now[4])
    assert left[1] == pytest.approx(1.7, abs=1e-3)  # the lasso takes the norm of the last to die from everybody
    assert left[2] > 1.95


@pytest.mark.parametrize("power", [1, 2])
def test_pressure_is_even_where_norms_do_not_move_by_themselves(power):
    """One module has to die within 60 steps: τ is about the same at all of them, and it dies at the end."""
    now, taus, decline = torch.tensor([1.0, 5.0]), [], Decline(0, 60, 20, 10)
    for step in range(1, 61):
        tau, dies = threshold(now, torch.full((2,), 10), decline, step, power=power)
        taus.append(float(tau))
        assert dies.tolist() == [step == 60, False]
        now = now * shrink_factors(now, tau, dies, power=power)
    assert max(taus) / min(taus) < (1.0001 if power == 1 else 1.4)


def test_nothing_trained_yet_dies_only_when_due():
    norms, sizes, decline = torch.zeros(4), torch.full((4,), 10), Decline(2, 10, 40, 20)
    tau, dies = threshold(norms, sizes, decline, 3, power=2)
    assert (float(tau), int(dies.sum())) == (0.0, 0)
    tau, dies = threshold(norms, sizes, decline, 10, power=2)
    assert int(dies.sum()) == 2


def test_ties_and_modules_already_gone_leave_what_is_needed():
    sizes = torch.full((6,), 10)
    for present in (6, 4, 3):
        norms = torch.ones(present)
        _, dies = threshold(norms, sizes[:present], Decline(0, 5, 60, 30), 5, power=1)
        assert int(dies.logical_not().sum()) == 3


def test_controller_never_waits_for_the_device():
    """Fake tensors have no values: reading one (`.item()`, `if tensor`) raises."""
    with FakeTensorMode():
        norms = delta_norms(torch.rand(5, 2, 8), torch.rand(5, 6, 2))
        tau, dies = threshold(norms, torch.ones(5, dtype=torch.int64), Decline(0, 9, 5, 2), 4, power=2)
        assert shrink_factors(norms, tau, dies, power=2).shape == (5,)


MODULES = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 6), st.sampled_from([8, 12, 20])), min_size=1, max_size=8
)


@given(MODULES, st.data())
def test_survivors_spend_the_budget_exactly_on_the_strongest(modules, data):
    names = [f"m{i}" for i in range(len(modules))]
    norms, ranks, costs = ({n: m[i] for n, m in zip(names, modules, strict=True)} for i in range(3))
    wanted = {n: data.draw(st.integers(0, rank)) for n, rank in ranks.items()}
    unit = data.draw(st.sampled_from(["parameters", "ranks"]))
    price = costs if unit == "parameters" else dict.fromkeys(names, 1)
    target = Target(spent(wanted, price), unit)
    if target.total == 0:
        return
    found = surviving_ranks({n: float(v) for n, v in norms.items()}, ranks, costs, target)
    assert spent(found, price) == target.total
    assert all(0 <= found[n] <= ranks[n] for n in names)
    assert can_hold(names, ranks, costs, target)
    order = sorted(names, key=lambda n: -norms[n])
    live = [rank > 0 for rank in (found[n] for n in order)]
    if live != sorted(live, reverse=True):  # whole ranks of a prefix did not add up
        assert not all(cost == next(iter(costs.values())) for cost in costs.values())
        return
    shorter = order[: sum(live) - 1]
    if spent({n: ranks[n] for n in shorter}, price) >= target.total:  # not needed, unless fewer cannot spend it exactly
        with pytest.raises(BudgetError):
            allocate(dict.fromkeys(shorter, 1.0), costs, target, floor=1, cap=ranks)


def test_survivors_share_equally_below_their_ranks():
    ranks, costs = dict.fromkeys("abcd", 6), dict.fromkeys("abcd", 10)
    norms = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 0.0}
    assert surviving_ranks(norms, ranks, costs, Target(150, "parameters")) == {"a": 5, "b": 5, "c": 5, "d": 0}
    assert surviving_ranks(norms, ranks, costs, Target(60, "parameters")) == {"a": 0, "b": 6, "c": 0, "d": 0}
    assert surviving_ranks(norms, ranks, costs, Target(90, "parameters")) == {"a": 0, "b": 5, "c": 4, "d": 0}


def test_next_strongest_joins_where_whole_ranks_do_not_add_up():
    """Two modules of 10 a rank cannot spend 47; with the next one, of 27 a rank, they can."""
    norms = {"weak": 0.5, "strong": 2.0, "second": 1.0}
    costs = {"weak": 27, "strong": 10, "second": 10}
    ranks = dict.fromkeys(norms, 4)
    found = surviving_ranks(norms, ranks, costs, Target(47, "parameters"))
    assert found == {"weak": 1, "strong": 1, "second": 1}
    assert not can_hold(["strong", "second"], ranks, costs, Target(47, "parameters"))
    with pytest.raises(BudgetError):
        surviving_ranks({"strong": 1.0}, {"strong": 2}, costs, Target(30, "parameters"))
