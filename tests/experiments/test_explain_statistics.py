"""Numbers about decisions: against brute force, scikit-learn and what chance gives."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from rankwise.experiments import explain_statistics
from rankwise.experiments.explain_statistics import extremes, information, rank_counts, share_by_class, thirds


def bits_by_hand(decisions, classes):
    n = len(classes)
    joint, left, right = Counter(zip(decisions, classes, strict=True)), Counter(decisions), Counter(classes)
    return sum(c / n * math.log2(c * n / (left[d] * right[k])) for (d, k), c in joint.items())


@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 4), st.integers(1, 5))
def test_bits_are_those_of_brute_force_and_of_scikit_learn(seed, n, count, levels):
    rng = np.random.default_rng(seed)
    ranks, classes = rng.integers(0, levels, (n, 3)) * 2, rng.integers(0, count, n)
    found = information(ranks, classes, permutations=5)
    for column in range(3):
        assert found.bits[column] == pytest.approx(bits_by_hand(ranks[:, column].tolist(), classes.tolist()), abs=1e-9)
        nats = mutual_info_score(ranks[:, column], classes)
        assert found.bits[column] == pytest.approx(nats / math.log(2), abs=1e-9)


def test_a_gate_that_is_the_class_says_all_of_it_and_a_constant_nothing():
    classes = np.arange(80) % 4
    ranks = np.stack([np.where(classes == 0, 3, 0), np.full(80, 3), classes, np.zeros(80)], axis=1).astype(np.int64)
    found = information(ranks, classes, permutations=99)
    assert found.bits == pytest.approx([-0.25 * math.log2(0.25) - 0.75 * math.log2(0.75), 0, 2, 0])
    assert found.p == pytest.approx([0.01, 1, 0.01, 1])
    assert found.chance[[1, 3]].tolist() == [0, 0]


def test_chance_is_what_permutations_by_hand_give_and_what_theory_says():
    """Of unrelated decisions and classes, in the mean: (levels - 1)(classes - 1) / (2 n ln 2) for many examples."""
    rng = np.random.default_rng(1)
    ranks, classes = rng.integers(0, 3, (600, 2)), rng.integers(0, 4, 600)
    found = information(ranks, classes, permutations=400)
    assert found.chance == pytest.approx(np.full(2, 2 * 3 / (2 * 600 * math.log(2))), rel=0.1)
    by_hand = [bits_by_hand(ranks[:, 0].tolist(), rng.permutation(classes).tolist()) for _ in range(400)]
    assert found.chance[0] == pytest.approx(np.mean(by_hand), rel=0.1)


def test_p_values_count_all_modules():
    """30 modules of noise: a threshold per module would name one or more in four of five cases, this in one of 20."""
    rng = np.random.default_rng(2)
    alarms, alone = 0, 0
    for seed in range(80):
        ranks, classes = (rng.random((120, 30)) < 0.4).astype(np.int64), rng.integers(0, 3, 120)
        found = information(ranks, classes, permutations=60, seed=seed)
        alarms += bool((found.p <= 0.05).any())
        single = [information(ranks[:, [m]], classes, permutations=60, seed=seed).p[0] for m in range(30)]
        alone += min(single) <= 0.05
    assert alarms <= 10
    assert alone >= 50


def test_the_same_seed_gives_the_same_numbers_however_examples_are_counted(monkeypatch):
    rng = np.random.default_rng(3)
    ranks, classes = rng.integers(0, 4, (50, 5)), rng.integers(0, 3, 50)
    whole = information(ranks, classes, permutations=20)
    monkeypatch.setattr(explain_statistics, "ROWS", 7)
    parts = information(ranks, classes, permutations=20)
    assert (parts.bits == whole.bits).all()
    assert (parts.chance == whole.chance).all()
    assert (parts.p == whole.p).all()
    assert (information(ranks, classes, permutations=20, seed=1).chance != whole.chance).any()


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40))
def test_thirds_keep_order_and_equal_values_together(values):
    group = thirds(np.array(values))
    assert set(group.tolist()) <= {0, 1, 2}
    for one, k in zip(values, group, strict=True):
        for other, j in zip(values, group, strict=True):
            assert not (one < other and k > j)
            assert not (one == other and k != j)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, 1, 2], [2, 0, 1]),
        ([1, 1, 1], [0, 0, 0]),
        (range(9), [0, 0, 0, 1, 1, 1, 2, 2, 2]),
        ([0, 0, 0, 5], [0, 0, 0, 2]),
    ],
)
def test_thirds(values, expected):
    assert thirds(np.array(values)).tolist() == expected


def test_shares_by_class():
    opened = np.array([[True, False], [True, True], [False, False]])
    found = share_by_class(opened, np.array([0, 0, 2]), 3)
    assert found[0].tolist() == [1, 0.5]
    assert np.isnan(found[1]).all()
    assert found[2].tolist() == [0, 0]


def test_extremes_go_by_rank_then_open_modules_then_order():
    total, opened = np.array([5, 9, 5, 1, 9, 5]), np.array([2, 1, 3, 1, 2, 2])
    assert extremes(total, opened, 2) == ([4, 1], [3, 0])
    assert extremes(total, opened, 5) == ([4, 1, 2], [3, 0, 5])  # never an example in both


def test_rank_counts():
    assert rank_counts(np.array([[0, 2], [2, 5]])) == {0: 1, 2: 2, 5: 1}
