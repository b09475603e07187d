"""Budgets are read and resolved exactly; checked against brute force on small cases."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.allocation.budget import Budget, Target, allocate, largest_reachable, parse_budget, spent
from rankwise.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("0.5%", Budget(0.5, "percent")),
        (" 0.5 % ", Budget(0.5, "percent")),
        ("r=4", Budget(4, "rank")),
        ("R = 16", Budget(16, "rank")),
        ("200k", Budget(200_000, "parameters")),
        ("1.5M", Budget(1_500_000, "parameters")),
        ("165,888 parameters", Budget(165_888, "parameters")),
        ("1_000", Budget(1000, "parameters")),
        ("144 ranks", Budget(144, "ranks")),
    ],
)
def test_budget_is_read(text, budget):
    assert parse_budget(text) == budget
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "four", "r=0", "0%", "200%", "-5", "r=2.5", "4r", "0", "k", "r=", ",", "0.0001"])
def test_bad_budget_says_what_is_allowed(text):
    with pytest.raises(BudgetError, match=r"write it as '0\.5%'"):
        parse_budget(text)


def test_resolve_units():
    costs = [768] * 4 + [1920] * 2
    assert parse_budget("r=4").resolve(costs, 10**6) == Target(4 * 6912, "parameters")
    assert parse_budget("1%").resolve(costs, 1_000_000) == Target(6912 + 4 * 768, "parameters")
    assert parse_budget("12 ranks").resolve(costs, 1) == Target(12, "ranks")
    with pytest.raises(BudgetError, match="one rank in each of the 6 matrices costs 6,912"):
        parse_budget("100").resolve(costs, 10**6)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.integers(0, 90),
)
def test_largest_reachable_matches_brute_force(costs, total):
    best = 0
    ranges = [range(total // cost + 1) for cost in costs]
    for counts in itertools.product(*ranges):
        value = sum(count * cost for count, cost in zip(counts, costs, strict=True))
        if value <= total:
            best = max(best, value)
    assert largest_reachable(total, costs) == best


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 30), st.sampled_from([(768, 1920), (1024, 1792, 5760), (1536,), (64, 65)]))
def test_what_a_budget_resolves_to_can_be_allocated(count, rank, kinds):
    """`largest_reachable` and `allocate` agree on what whole ranks add up to, in parameters and in `r=k`."""
    costs = {f"m{i}": kinds[i % len(kinds)] for i in range(count)}
    flat = dict.fromkeys(costs, 1.0)
    target = parse_budget(str(rank * sum(costs.values()) + 37)).resolve(list(costs.values()), 10**9)
    assert spent(allocate(flat, costs, target), costs) == target.total
    target = parse_budget(f"r={rank}").resolve(list(costs.values()), 10**9)
    assert allocate(flat, costs, target) == dict.fromkeys(costs, rank)
