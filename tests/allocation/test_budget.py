"""Budgets are exact, deterministic and bounded; checked against brute force on small cases."""

import itertools
import math

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


SCORES = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=24)


@given(SCORES, st.integers(0, 3), st.integers(0, 200), st.randoms())
def test_ranks_are_spent_exactly(values, floor, extra, random):
    scores = {f"m{i}": v for i, v in enumerate(values)}
    costs = {name: random.choice([768, 1920, 1024]) for name in scores}
    total = floor * len(scores) + extra
    ranks = allocate(scores, costs, Target(total, "ranks"), floor=floor)
    assert sum(ranks.values()) == total
    assert min(ranks.values()) >= floor
    assert ranks == allocate(scores, costs, Target(total, "ranks"), floor=floor)


@settings(deadline=None)
@given(SCORES, st.integers(0, 2), st.integers(1, 12), st.sampled_from([(768, 1920), (1024, 1792, 5760), (1536,)]))
def test_parameters_are_spent_exactly(values, floor, rank, kinds):
    scores = {f"m{i}": v for i, v in enumerate(values)}
    costs = {name: kinds[i % len(kinds)] for i, name in enumerate(scores)}
    total = max(rank, floor) * sum(costs.values())
    ranks = allocate(scores, costs, Target(total, "parameters"), floor=floor)
    assert spent(ranks, costs) == total
    assert min(ranks.values()) >= floor


@given(st.integers(1, 30), st.integers(1, 9))
def test_flat_scores_are_uniform_lora(count, rank):
    costs = {f"m{i}": (768, 1920)[i % 2] for i in range(count)}
    ranks = allocate(dict.fromkeys(costs, 0.37), costs, Target(rank * sum(costs.values()), "parameters"))
    assert set(ranks.values()) == {rank}


@given(SCORES, st.integers(1, 100))
def test_within_one_rank_of_the_ideal_without_bounds(values, total):
    """Largest remainder satisfies quota: every share is its ideal rounded down or up."""
    scores = {f"m{i}": v + 0.01 for i, v in enumerate(values)}
    ranks = allocate(scores, dict.fromkeys(scores, 1), Target(total, "ranks"), floor=0)
    whole = sum(scores.values())
    for name, score in scores.items():
        ideal = total * score / whole
        assert math.floor(ideal - 1e-6) <= ranks[name] <= math.ceil(ideal + 1e-6)


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=12, unique=True), st.permutations(range(12)))
def test_order_of_modules_does_not_matter(values, order):
    scores = {f"m{i}": v for i, v in enumerate(values)}
    shuffled = {f"m{i}": values[i] for i in order if i < len(values)}
    ones = dict.fromkeys(scores, 1)
    first, second = (allocate(s, ones, Target(40, "ranks")) for s in (scores, shuffled))
    remainders = sorted((40 * v / sum(values)) % 1 for v in values)
    if min((b - a for a, b in itertools.pairwise(remainders)), default=1) > 1e-6:
        assert first == {name: second[name] for name in first}


def test_higher_score_never_gets_less():
    scores = {"a": 5.0, "b": 1.0, "c": 3.0, "d": 3.0}
    ranks = allocate(scores, dict.fromkeys(scores, 1), Target(17, "ranks"))
    assert ranks["a"] >= ranks["c"] >= ranks["d"] >= ranks["b"]


def test_floor_and_cap_hold_under_a_skewed_score():
    scores = {f"m{i}": 1e9 if i == 0 else 1e-9 for i in range(10)}
    ranks = allocate(scores, dict.fromkeys(scores, 1), Target(40, "ranks"), floor=1, cap=8)
    assert ranks["m0"] == 8
    assert sum(ranks.values()) == 40
    assert all(1 <= r <= 8 for r in ranks.values())


def test_zero_scores_count_as_equal():
    scores = dict.fromkeys("abcd", 0.0)
    assert allocate(scores, dict.fromkeys(scores, 3), Target(24, "parameters")) == dict.fromkeys("abcd", 2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"target": Target(3, "ranks")}, "below the floor"),
        ({"target": Target(90, "ranks"), "cap": 8}, "above the cap"),
        ({"target": Target(20, "ranks"), "floor": 5, "cap": 4}, "floor 5 is above cap 4"),
        ({"target": Target(11, "parameters"), "costs": dict.fromkeys("abcd", 2)}, "cannot be spent exactly"),
        ({"target": Target(8, "ranks"), "scores": dict.fromkeys("abcd", float("nan"))}, "score of a is nan"),
        ({"target": Target(8, "ranks"), "scores": {}}, "nothing to allocate"),
    ],
)
def test_impossible_budgets_are_refused(kwargs, message):
    arguments = {"scores": dict.fromkeys("abcd", 1.0), "costs": dict.fromkeys("abcd", 1)} | kwargs
    with pytest.raises(BudgetError, match=message):
        allocate(**arguments)


def test_class_totals_deviate_least():
    """Against every way to spend the budget: no other class totals are nearer to the ideals."""
    scores = {"a": 3.0, "b": 1.0, "c": 2.0}
    costs = {"a": 5, "b": 3, "c": 3}
    total = 47
    ranks = allocate(scores, costs, Target(total, "parameters"), floor=0)
    factor = total / sum(scores[n] * costs[n] for n in scores)
    small = (scores["b"] + scores["c"]) * factor
    best = min(
        (abs(x - scores["a"] * factor) * 5 + abs(y - small) * 3, x, y)
        for x in range(11)
        for y in range(17)
        if 5 * x + 3 * y == total
    )
    assert (ranks["a"], ranks["b"] + ranks["c"]) == best[1:]


@settings(max_examples=150)
@given(st.data(), st.lists(st.sampled_from([1, 2, 3, 5, 7, 9]), min_size=1, max_size=5), st.integers(0, 2))
def test_whatever_floor_and_cap_allow_is_spent(data, prices, floor):
    """Never a refusal in mid-training for scores that happen to be awkward: every reachable budget is reached."""
    costs = {f"m{i}": price for i, price in enumerate(prices)}
    cap = {name: data.draw(st.integers(floor, floor + 4)) for name in costs}
    reachable = {0}
    for name, price in costs.items():
        reachable = {used + price * rank for used in reachable for rank in range(floor, cap[name] + 1)}
    total = data.draw(st.sampled_from(sorted(reachable)))
    scores = {name: data.draw(st.floats(0, 1e6, allow_subnormal=False)) for name in costs}
    ranks = allocate(scores, costs, Target(total, "parameters"), floor=floor, cap=cap)
    assert spent(ranks, costs) == total
    assert all(floor <= ranks[name] <= cap[name] for name in costs)
