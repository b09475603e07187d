"""Allocations are exact, nested, bounded and indifferent to order; checked against brute force and exact fractions."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.allocation import exchange
from rankwise.allocation.allocate import Target, allocate, spent
from rankwise.errors import BudgetError

SCORES = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=24)
WHOLE = st.lists(st.integers(0, 20), min_size=1, max_size=8)
SMALL_COSTS = st.lists(st.sampled_from([1, 2, 3, 5, 7, 9]), min_size=1, max_size=4) | st.lists(
    st.sampled_from([3, 5]), min_size=3, max_size=5
)
ODD = (1531, 51025, 3001, 4999, 7919, 6007)


def named(values):
    return {f"m{i}": value for i, value in enumerate(values)}


def webster(scores, count, floor):
    """Seats given one by one to the highest quotient, in exact fractions: an independent reference."""
    ranks = dict.fromkeys(scores, floor)
    flat = not any(scores.values())
    for _ in range(count - floor * len(scores)):
        quotient = {n: Fraction(2 * (1 if flat else Fraction(scores[n])), 2 * ranks[n] + 1) for n in scores}
        best = max(quotient.values())
        lowest = min(ranks[n] for n in scores if quotient[n] == best)
        ranks[next(n for n in scores if quotient[n] == best and ranks[n] == lowest)] += 1
    return ranks


def reachable(costs, floor, cap):
    sums = {0}
    for name, cost in costs.items():
        sums = {used + cost * rank for used in sums for rank in range(floor, cap[name] + 1)}
    return sorted(sums)


def gains_of(score, index):
    return score[index] if isinstance(score, tuple) else score / (index + 0.5)


def total_gain(ranks, scores, costs):
    return sum(costs[n] * gains_of(scores[n], i) for n in ranks for i in range(ranks[n]))


@st.composite
def small_problems(draw, most=4):
    """Scores (numbers and spectra), costs, floor and caps small enough to try every allocation."""
    costs = named(draw(SMALL_COSTS))
    floor = draw(st.integers(0, 2))
    cap = {name: draw(st.integers(floor, floor + most)) for name in costs}
    value = st.integers(0, 9) | st.floats(0, 1e3, allow_subnormal=False)
    scores = {}
    for name in costs:
        spectrum = st.lists(value, min_size=cap[name], max_size=cap[name])
        scores[name] = draw(value | spectrum.map(lambda gains: tuple(sorted(gains, reverse=True))))
    return scores, costs, floor, cap


# In ranks


@given(SCORES, st.integers(0, 3), st.integers(0, 200), st.randoms())
def test_ranks_are_spent_exactly(values, floor, extra, random):
    scores = named(values)
    costs = {name: random.choice([768, 1920, 1024]) for name in scores}
    total = floor * len(scores) + extra
    ranks = allocate(scores, costs, Target(total, "ranks"), floor=floor)
    assert sum(ranks.values()) == total
    assert min(ranks.values()) >= floor
    assert ranks == allocate(scores, costs, Target(total, "ranks"), floor=floor)


@given(WHOLE, st.integers(0, 2), st.integers(0, 60))
def test_ranks_are_websters(values, floor, extra):
    """Also where many quotients are tied: the lower component first, then the earlier name."""
    scores = named(values)
    total = floor * len(scores) + extra
    found = allocate(scores, dict.fromkeys(scores, 7), Target(total, "ranks"), floor=floor)
    assert found == webster(scores, total, floor)


@given(small_problems(), st.booleans())
def test_one_rank_more_is_one_rank_more_for_one_matrix(problem, per_parameter):
    """House monotonicity, which largest remainder lacks (the Alabama paradox)."""
    scores, costs, floor, cap = problem
    per = "parameter" if per_parameter else "rank"
    before = None
    for total in range(floor * len(costs), sum(cap.values()) + 1):
        ranks = allocate(scores, costs, Target(total, "ranks"), floor=floor, cap=cap, per=per)
        assert sum(ranks.values()) == total
        assert all(floor <= ranks[name] <= cap[name] for name in costs)
        if before is not None:
            assert sorted(ranks[name] - before[name] for name in costs) == [0] * (len(costs) - 1) + [1]
        before = ranks


def test_alabama_paradox_is_gone():
    """Scores 6, 6, 2: largest remainder gives the last 2 of 10 ranks, but 1 of 11."""
    scores = {"a": 6.0, "b": 6.0, "c": 2.0}
    ten, eleven = (allocate(scores, dict.fromkeys(scores, 1), Target(n, "ranks"), floor=0) for n in (10, 11))
    assert ten["c"] <= eleven["c"]


@given(SCORES, st.integers(1, 100))
def test_no_rank_is_better_placed_elsewhere(values, total):
    """Webster's min-max inequality: nobody's last rank is worth less than somebody else's next."""
    scores = {name: value + 0.01 for name, value in named(values).items()}
    ranks = allocate(scores, dict.fromkeys(scores, 1), Target(total, "ranks"), floor=0)
    last = min(scores[n] / (ranks[n] - 0.5) for n in scores if ranks[n])
    following = max(scores[n] / (ranks[n] + 0.5) for n in scores)
    assert last >= following * (1 - 1e-12)


# In parameters


@settings(deadline=None)
@given(SCORES, st.integers(0, 2), st.integers(1, 12), st.sampled_from([(768, 1920), (1024, 1792, 5760), (1536,)]))
def test_parameters_are_spent_exactly(values, floor, rank, kinds):
    scores = named(values)
    costs = {name: kinds[i % len(kinds)] for i, name in enumerate(scores)}
    total = max(rank, floor) * sum(costs.values())
    ranks = allocate(scores, costs, Target(total, "parameters"), floor=floor)
    assert spent(ranks, costs) == total
    assert min(ranks.values()) >= floor


@settings(max_examples=100, deadline=None)
@given(small_problems(most=3), st.data(), st.booleans())
def test_every_reachable_budget_is_spent_at_the_largest_gain(problem, data, per_parameter):
    """Against every allocation there is. Never a refusal in mid-training for scores that happen to be awkward."""
    scores, costs, floor, cap = problem
    total = data.draw(st.sampled_from(reachable(costs, floor, cap)))
    per = "parameter" if per_parameter else "rank"
    ranks = allocate(scores, costs, Target(total, "parameters"), floor=floor, cap=cap, per=per)
    assert spent(ranks, costs) == total
    assert all(floor <= ranks[name] <= cap[name] for name in costs)
    weights = dict.fromkeys(costs, 1) if per_parameter else costs
    choices = itertools.product(*(range(floor, cap[name] + 1) for name in costs))
    gains = [
        total_gain(choice, scores, weights)
        for values in choices
        if spent(choice := dict(zip(costs, values, strict=True)), costs) == total
    ]
    if any(any(s) if isinstance(s, tuple) else s for s in scores.values()):
        assert total_gain(ranks, scores, weights) == pytest.approx(max(gains), rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(small_problems())
def test_where_the_ranking_lands_it_is_the_answer_and_nested(problem):
    """The ranking, made here by sorting all components once: each prefix is the allocation of what it costs."""
    scores, costs, floor, cap = problem
    if not any(any(s) if isinstance(s, tuple) else s for s in scores.values()):
        return
    ranking = sorted(
        (-gains_of(scores[name], i), i, position)
        for position, name in enumerate(costs)
        for i in range(floor, cap[name])
    )
    names, ranks = list(costs), dict.fromkeys(costs, floor)
    for _, _, position in [(0, 0, None), *ranking]:
        if position is not None:
            ranks[names[position]] += 1
        total = spent(ranks, costs)
        assert allocate(scores, costs, Target(total, "parameters"), floor=floor, cap=cap) == ranks


def greedy(scores, costs, total):
    """Longest prefix of the ranking that fits, and whether it is all."""
    ranks, left = dict.fromkeys(costs, 0), total
    while True:
        name = min(costs, key=lambda n: (-scores[n] / (ranks[n] + 0.5), ranks[n]))
        if costs[name] > left:
            return ranks
        ranks[name] += 1
        left -= costs[name]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=4, max_size=8), st.sampled_from([(2, 3), (3, 5, 7), (4, 6, 9)]), st.data())
def test_a_budget_off_the_ranking_moves_no_more_than_the_bound(values, kinds, data):
    """2Δ - 1 components from the ranking's prefix at most, so no growing budget takes more than 4Δ - 2 from any."""
    scores = {name: float(value) for name, value in named(values).items()}
    costs = {name: kinds[i % len(kinds)] for i, name in enumerate(scores)}
    bound = 2 * max(kinds) - 1
    totals = sorted(data.draw(st.lists(st.integers(60, 200), min_size=2, max_size=2)))
    found = [allocate(scores, costs, Target(total, "parameters"), floor=0) for total in totals]
    for total, ranks in zip(totals, found, strict=True):
        prefix, per_class = greedy(scores, costs, total), Counter()
        for name in costs:
            per_class[costs[name]] += ranks[name] - prefix[name]
        assert sum(abs(moved) for moved in per_class.values()) <= bound
    assert max(found[0][name] - found[1][name] for name in costs) <= 2 * bound


def test_what_is_taken_back_is_the_least_of_its_cost():
    scores, costs = {"a": 9.0, "b": 8.0, "c": 8.5, "d": 1.0}, {"a": 3, "b": 3, "c": 3, "d": 5}
    assert allocate(scores, costs, Target(11, "parameters"), floor=0, cap=1) == {"a": 1, "b": 0, "c": 1, "d": 1}


def test_of_equal_gains_the_nearest_is_taken():
    """Flat scores, 9 parameters beyond rank 4: the ranking holds costs 2, 3, 2 of them; 3, 3, 3 would gain the same."""
    costs = {f"m{i}": (2, 3)[i % 2] for i in range(12)}
    ranks = allocate(dict.fromkeys(costs, 1.0), costs, Target(4 * 30 + 9, "parameters"))
    assert [name for name, rank in ranks.items() if rank == 5] == ["m0", "m1", "m2", "m4"]
    assert set(ranks.values()) == {4, 5}


def test_exact_and_nested_contradict_each_other():
    """Costs 2 and 3: 3 parameters are one rank of the second, 4 are two of the first. What the decision says."""
    costs = {"a": 2, "b": 3}
    for scores in ({"a": 1.0, "b": 1.0}, {"a": 9.0, "b": 1.0}, {"a": 1.0, "b": 9.0}):
        three, four = (allocate(scores, costs, Target(n, "parameters"), floor=0) for n in (3, 4))
        assert (three, four) == ({"a": 0, "b": 1}, {"a": 2, "b": 0})


@given(st.integers(1, 30), st.integers(1, 9), st.sampled_from(["rank", "ranks"]), st.randoms())
def test_flat_scores_are_uniform_lora_whatever_the_names(count, rank, unit, random):
    names = [f"{random.choice('zay')}.{random.randint(0, 99)}.{i}" for i in range(count)]
    costs = {name: random.choice([768, 1920, 2304]) for name in names}
    total = rank * (count if unit == "ranks" else sum(costs.values()))
    target = Target(total, "ranks" if unit == "ranks" else "parameters")
    assert allocate(dict.fromkeys(costs, 0.37), costs, target) == dict.fromkeys(names, rank)
    assert allocate(dict.fromkeys(costs, 0.0), costs, target) == dict.fromkeys(names, rank)


@pytest.mark.parametrize(("candidates", "glance"), [(exchange.CANDIDATES, exchange._GLANCE), (4, 2)])
def test_odd_costs_are_spent_exactly_in_bounded_work(monkeypatch, candidates, glance):
    """Greatest common divisor 1 and costs of thousands: 2Δ - 1 is 102,049 there."""
    monkeypatch.setattr(exchange, "CANDIDATES", candidates)
    monkeypatch.setattr(exchange, "_GLANCE", glance)
    layers, grown = [], exchange._grown
    monkeypatch.setattr(exchange, "_grown", lambda *a: layers.append(grown(*a)) or layers[-1])
    costs = {f"layer.{i}": ODD[i % len(ODD)] for i in range(72)}
    scores = {name: 1.0 + math.sin(i) for i, name in enumerate(costs)}
    for extra in (1, 40_000):
        total = 8 * sum(costs.values()) + extra
        assert spent(allocate(scores, costs, Target(total, "parameters")), costs) == total
    assert max(len(layer.loss) for layer in layers) <= max(candidates, total // min(ODD))
    assert len(layers) == 4 * len(ODD)  # two budgets, two looks each


# What must not matter


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=12),
    st.permutations(range(12)),
    st.sampled_from([Target(40, "ranks"), Target(41, "parameters"), Target(60, "parameters")]),
)
def test_order_and_names_do_not_matter(values, order, target):
    """Ties included: only the natural order of the names counts, not that of the mapping."""
    scores = named(values)
    costs = {name: (2, 3)[i % 2] for i, name in enumerate(scores)}
    shuffled = {f"m{i}": values[i] for i in order if i < len(values)}
    first = allocate(scores, costs, target, floor=0)
    assert allocate(shuffled, costs, target, floor=0) == first
    rename = {f"m{i}": f"model.layer{3 * i}.x" for i in range(12)}
    renamed = allocate(
        {rename[n]: s for n, s in shuffled.items()}, {rename[n]: c for n, c in costs.items()}, target, floor=0
    )
    assert renamed == {rename[name]: rank for name, rank in first.items()}


def test_result_keeps_the_order_of_the_mapping_and_ties_go_by_number():
    scores = {f"layer.{i}": 1.0 for i in (10, 9, 2, 11)}
    ranks = allocate(scores, dict.fromkeys(scores, 1), Target(6, "ranks"))
    assert list(ranks) == list(scores)
    assert ranks == {"layer.2": 2, "layer.9": 2, "layer.10": 1, "layer.11": 1}


@given(WHOLE, st.integers(1, 9), st.integers(-60, 60), st.integers(0, 40), st.sampled_from(["rank", "parameter"]))
def test_scale_of_scores_does_not_matter(values, factor, power, extra, per):
    costs = {name: (2, 3, 4)[i % 3] for i, name in enumerate(named(values))}
    target = Target(sum(costs.values()) + 2 * extra, "ranks")
    first = allocate(named(values), costs, target, per=per)
    assert allocate(named(v * 2.0**power for v in values), costs, target, per=per) == first
    assert per == "parameter" or allocate(named(v * factor for v in values), costs, target) == first


def test_scores_of_any_size_are_fine():
    for scale in (5e-324, 1e-300, 1.7e308):
        scores = {"a": scale, "b": scale, "c": 0.0}
        costs = {"a": 2, "b": 3, "c": 3}
        assert allocate(scores, costs, Target(24, "parameters"), floor=0) == {"a": 6, "b": 4, "c": 0}


# What a score means


@given(SCORES, st.integers(1, 60), st.sampled_from(["rank", "parameter"]))
def test_a_number_is_the_spectrum_of_its_quotients(values, total, per):
    scores = named(values)
    costs = {name: (2, 3)[i % 2] for i, name in enumerate(scores)}
    cap = 3 * total
    spectra = {name: [value / (i + 0.5) for i in range(cap)] for name, value in scores.items()}
    for target in (Target(total, "ranks"), Target(6 * total, "parameters")):
        expected = allocate(scores, costs, target, floor=0, cap=cap, per=per)
        assert allocate(spectra, costs, target, floor=0, per=per) == expected


def test_gain_per_parameter_divides_by_the_cost():
    costs = {"cheap": 10, "dear": 30}
    assert allocate(dict.fromkeys(costs, 1.0), costs, Target(8, "ranks"), floor=0) == {"cheap": 4, "dear": 4}
    found = allocate(dict.fromkeys(costs, 1.0), costs, Target(8, "ranks"), floor=0, per="parameter")
    assert found == {"cheap": 6, "dear": 2}
    spectra = {"cheap": [2.0, 1.0, 0.5], "dear": [9.0, 2.9, 0.1]}
    assert allocate(spectra, costs, Target(3, "ranks"), floor=0) == {"cheap": 1, "dear": 2}
    assert allocate(spectra, costs, Target(3, "ranks"), floor=0, per="parameter") == {"cheap": 2, "dear": 1}


def test_spectra_cap_at_their_length():
    spectra = {"a": [9.0, 8.0], "b": [1.0, 1.0, 1.0, 1.0]}
    assert allocate(spectra, {"a": 1, "b": 1}, Target(5, "ranks"), floor=0) == {"a": 2, "b": 3}
    with pytest.raises(BudgetError, match="above the cap: at their largest ranks the 2 matrices hold 6"):
        allocate(spectra, {"a": 1, "b": 1}, Target(7, "ranks"))


@given(st.lists(st.floats(0, 2), min_size=2, max_size=6), st.integers(1, 30))
def test_higher_score_never_gets_less(values, total):
    scores = named([*values, *(math.nextafter(v, 3) for v in values)])
    ranks = allocate(scores, dict.fromkeys(scores, 1), Target(total, "ranks"), floor=0)
    for a, b in itertools.permutations(scores, 2):
        assert scores[a] <= scores[b] or ranks[a] >= ranks[b]


def test_floor_and_cap_hold_under_a_skewed_score():
    scores = {f"m{i}": 1e9 if i == 0 else 1e-9 for i in range(10)}
    ranks = allocate(scores, dict.fromkeys(scores, 1), Target(40, "ranks"), floor=1, cap=8)
    assert ranks["m0"] == 8
    assert sum(ranks.values()) == 40
    assert all(1 <= r <= 8 for r in ranks.values())


def test_zero_scores_get_what_nobody_else_can_hold():
    scores = {"a": 0.0, "b": 5.0, "c": 0.0}
    ones = dict.fromkeys(scores, 1)
    assert allocate(scores, ones, Target(3, "ranks"), floor=0, cap=4) == {"a": 0, "b": 3, "c": 0}
    assert allocate(scores, ones, Target(7, "ranks"), floor=0, cap=4) == {"a": 2, "b": 4, "c": 1}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"target": Target(3, "ranks")}, "below the floor: 4 matrices at rank 1 cost 4"),
        ({"target": Target(90, "ranks"), "cap": 8}, "above the cap"),
        ({"target": Target(20, "ranks"), "floor": 5, "cap": 4}, "floor 5 is above cap 4"),
        (
            {"target": Target(11, "parameters"), "costs": dict.fromkeys("abcd", 2)},
            "11 parameters cannot be spent exactly on ranks costing 2 within floor and cap; 10 and 12 can",
        ),
        (
            {
                "target": Target(21, "parameters"),
                "costs": {"a": 2, "b": 2, "c": 2, "d": 7},
                "cap": {**dict.fromkeys("abc", 2), "d": 3},
            },
            "costing 2, 7 within floor and cap; 20 and 22 can",
        ),
        ({"target": Target(8, "ranks"), "scores": dict.fromkeys("abcd", float("nan"))}, "score of a is nan"),
        ({"target": Target(8, "ranks"), "scores": {**dict.fromkeys("abd", 1.0), "c": -1}}, r"score of c is -1\.0"),
        ({"target": Target(8, "ranks"), "scores": {name: [1.0, 2.0] for name in "abcd"}}, "gains of a rise"),
        ({"target": Target(8, "ranks"), "scores": {name: [1.0] for name in "abcd"}, "floor": 2}, "floor 2 is above"),
        ({"target": Target(8, "ranks"), "scores": {}}, "nothing to allocate"),
    ],
)
def test_impossible_budgets_are_refused(kwargs, message):
    arguments = {"scores": dict.fromkeys("abcd", 1.0), "costs": dict.fromkeys("abcd", 1)} | kwargs
    with pytest.raises(BudgetError, match=message):
        allocate(**arguments)


@settings(max_examples=60)
@given(small_problems(most=3), st.integers(0, 80))
def test_refusals_are_true_and_name_the_nearest(problem, total):
    scores, costs, floor, cap = problem
    sums = reachable(costs, floor, cap)
    if not sums[0] <= total <= sums[-1] or total in sums:
        return
    below, above = max(s for s in sums if s < total), min(s for s in sums if s > total)
    with pytest.raises(BudgetError, match=f"{total} parameters cannot .*; {below} and {above} can"):
        allocate(scores, costs, Target(total, "parameters"), floor=floor, cap=cap)
