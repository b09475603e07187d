"""The global cut against brute force over all subsets, and torch.topk where nothing is tied."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.allocation.allocate import Target
from rankwise.allocation.components import keep_components
from rankwise.errors import BudgetError

VALUES = st.floats(0, 1e3, width=32, allow_subnormal=False) | st.integers(0, 4)


@st.composite
def problems(draw, most=3, matrices=3):
    """Scores in no order within a matrix, with ties; costs that share a divisor or not."""
    count = draw(st.integers(1, matrices))
    kinds = draw(st.sampled_from([(1, 2, 3, 5, 6, 7), (3, 5)]))
    costs = {f"layer.{9 + i}.x": draw(st.sampled_from(kinds)) for i in range(count)}
    scores = {n: torch.tensor(draw(st.lists(VALUES, min_size=0, max_size=most)), dtype=torch.float32) for n in costs}
    order = draw(st.permutations(list(costs)))
    return {name: scores[name] for name in order}, costs


def ranking(scores, costs):
    """(matrix, component) by descending score; ties by number in the name, then index."""
    names = sorted(scores, key=lambda name: int(name.split(".")[1]))
    every = [(-float(scores[n][i]), rank, i, n) for rank, n in enumerate(names) for i in range(len(scores[n]))]
    return [(name, i) for _, _, i, name in sorted(every)]


def as_lists(chosen, scores):
    return {name: sorted(i for n, i in chosen if n == name) for name in scores}


def cost_of(kept, costs):
    return sum(len(indices) * costs[name] for name, indices in kept.items())


@given(problems(most=6, matrices=5), st.data())
def test_ranks_are_the_first_of_the_ranking(problem, data):
    scores, costs = problem
    order = ranking(scores, costs)
    count = data.draw(st.integers(0, len(order)))
    kept = keep_components(scores, costs, Target(count, "ranks"), exact=True)
    assert list(kept) == list(scores)
    assert kept == as_lists(order[:count], scores)
    assert kept == keep_components(scores, costs, Target(count, "ranks"), exact=False)


@given(problems(most=6, matrices=5), st.integers(0, 150))
def test_without_exact_the_longest_prefix_that_fits_stays(problem, total):
    scores, costs = problem
    prefix, used = [], 0
    for name, index in ranking(scores, costs):
        if used + costs[name] > total:
            break
        used += costs[name]
        prefix.append((name, index))
    assert keep_components(scores, costs, Target(total, "parameters"), exact=False) == as_lists(prefix, scores)


@settings(max_examples=100, deadline=None)
@given(problems(most=4, matrices=3), st.data())
def test_exact_parameters_keep_the_largest_gain_of_all_subsets(problem, data):
    scores, costs = problem
    every = ranking(scores, costs)
    gain_of = {}
    for subset in itertools.chain.from_iterable(itertools.combinations(every, k) for k in range(len(every) + 1)):
        used = sum(costs[name] for name, _ in subset)
        gain = sum(float(scores[name][i]) * costs[name] for name, i in subset)
        gain_of[used] = max(gain, gain_of.get(used, 0.0))
    total = data.draw(st.sampled_from(sorted(gain_of)))
    kept = keep_components(scores, costs, Target(total, "parameters"), exact=True)
    assert cost_of(kept, costs) == total
    gain = sum(float(scores[name][i]) * costs[name] for name, indices in kept.items() for i in indices)
    assert gain == pytest.approx(gain_of[total], rel=1e-9, abs=1e-9)
    assert all(indices == sorted(set(indices)) for indices in kept.values())


@given(problems(most=6, matrices=5))
def test_where_the_ranking_lands_it_is_kept_and_all_of_it_can_be(problem):
    scores, costs = problem
    order = ranking(scores, costs)
    for count in range(len(order) + 1):
        total = sum(costs[name] for name, _ in order[:count])
        kept = keep_components(scores, costs, Target(total, "parameters"), exact=True)
        assert kept == as_lists(order[:count], scores)
    everything = {name: list(range(len(values))) for name, values in scores.items()}
    assert kept == everything
    assert keep_components(scores, costs, Target(10**6, "parameters"), exact=False) == everything


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_flat_scores_without_ties_are_topk(dtype):
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(120, generator=generator).to(dtype)
    scores = {f"m{i}": part for i, part in enumerate(shuffled.split(10))}
    kept = keep_components(scores, dict.fromkeys(scores, 64), Target(64 * 37, "parameters"), exact=True)
    mask = torch.zeros(120, dtype=torch.bool)
    mask[torch.topk(shuffled, 37).indices] = True
    assert kept == {f"m{i}": part.nonzero().flatten().tolist() for i, part in enumerate(mask.split(10))}


def test_ties_go_to_the_earlier_name_by_number_then_the_lower_index():
    scores = {"layer.10": torch.ones(2), "layer.9": torch.tensor([1.0, 2.0, 1.0])}
    costs = dict.fromkeys(scores, 3)
    assert keep_components(scores, costs, Target(2, "ranks"), exact=True) == {"layer.10": [], "layer.9": [0, 1]}
    assert keep_components(scores, costs, Target(12, "parameters"), exact=True) == {
        "layer.10": [0],
        "layer.9": [0, 1, 2],
    }


def test_odd_costs_are_spent_exactly():
    generator = torch.Generator().manual_seed(0)
    costs = {f"layer.{i}": (1531, 51025, 3001, 4999)[i % 4] for i in range(48)}
    scores = {name: torch.rand(12, generator=generator) * 1e-30 for name in costs}
    for total in (8 * sum(costs.values()) + 1, 6 * sum(costs.values()) + 12_345):
        assert cost_of(keep_components(scores, costs, Target(total, "parameters"), exact=True), costs) == total


def test_scores_of_any_size_are_fine():
    for scale in (1e-300, 1e308):
        scores = {"a": torch.tensor([1.0, 0.2, 0.9], dtype=torch.float64) * scale, "b": torch.ones(2) * 0.0}
        kept = keep_components(scores, {"a": 2, "b": 3}, Target(7, "parameters"), exact=True)
        assert kept == {"a": [0, 2], "b": [0]}


def test_gradients_and_scores_stay_as_they_are():
    scores = {"a": torch.rand(5, requires_grad=True)}
    before = scores["a"].detach().clone()
    keep_components(scores, {"a": 1}, Target(2, "ranks"), exact=True)
    assert torch.equal(scores["a"].detach(), before)


@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        ([1.0, float("nan")], Target(2, "ranks"), "score of component 1 of b is nan"),
        ([float("inf"), 1.0], Target(2, "ranks"), "score of component 0 of b is inf"),
        ([1.0, 1.0], Target(5, "ranks"), "budget of 5 ranks is above what all components hold, 4"),
        ([1.0, 1.0], Target(11, "parameters"), "above what all components hold, 10"),
        ([1.0, 1.0], Target(9, "parameters"), "9 parameters cannot be spent exactly .* 2, 3 .*; 8 and 10 can"),
        ([1.0, 1.0], Target(1, "parameters"), "1 parameters cannot be spent exactly .*; 0 and 2 can"),
    ],
)
def test_refusals_name_what_is_wrong(scores, target, message):
    scores = {"a": torch.ones(2), "b": torch.tensor(scores)}
    with pytest.raises(BudgetError, match=message):
        keep_components(scores, {"a": 2, "b": 3}, target, exact=True)
