"""The price that meets a share, and its following a target while training moves the logits."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rankwise.allocation.tracking import Search, Tracker, fair_price

numbers = st.floats(-30, 30)
logit_lists = st.lists(numbers, min_size=1, max_size=30)
temperatures = st.floats(0.05, 5)
shares = st.floats(0.01, 0.99)


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def share_at(logits, price, temperature, weights=None):
    """The weighted mean of σ((ℓ - b) / T), in Python's own floats."""
    weights = weights or [1.0] * len(logits)
    chances = [1 / (1 + math.exp(min(-(ell - price) / temperature, 700))) for ell in logits]
    return sum(w * p for w, p in zip(weights, chances, strict=True)) / sum(weights)


@given(logit_lists, temperatures, shares)
def test_the_price_meets_the_share(logits, temperature, share):
    price = fair_price(doubles(logits), temperature, share)
    assert share_at(logits, price, temperature) == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize(("share", "met"), [(0.0, 1e-4), (1.0, 1 - 1e-4)])
def test_none_and_all_are_met_within_a_ten_thousandth(share, met):
    logits = [-3.0, 0.0, 5.0]
    assert share_at(logits, fair_price(doubles(logits), 0.7, share), 0.7) == pytest.approx(met, abs=1e-6)


@given(st.lists(st.tuples(numbers, st.integers(0, 4)), min_size=1, max_size=12), temperatures, shares)
def test_weights_count_like_repetitions(pairs, temperature, share):
    assume(any(count for _, count in pairs))
    logits, counts = [ell for ell, _ in pairs], [float(count) for _, count in pairs]
    price = fair_price(doubles(logits), temperature, share, doubles(counts))
    repeated = [ell for ell, count in pairs for _ in range(count)]
    assert share_at(logits, price, temperature, counts) == pytest.approx(share, abs=1e-4)
    assert share_at(repeated, price, temperature) == pytest.approx(share, abs=1e-4)


@given(logit_lists, temperatures, shares, shares)
def test_a_larger_share_costs_a_lower_price(logits, temperature, one, two):
    low, high = sorted((one, two))
    assume(high - low > 1e-3)
    assert fair_price(doubles(logits), temperature, high) < fair_price(doubles(logits), temperature, low)


@given(logit_lists, temperatures, shares, st.floats(-10, 10))
def test_the_price_moves_with_the_logits(logits, temperature, share, shift):
    moved = fair_price(doubles(logits) + shift, temperature, share)
    expected = fair_price(doubles(logits), temperature, share) + shift
    assert share_at([ell + shift for ell in logits], moved, temperature) == pytest.approx(share, abs=1e-4)
    assert share_at([ell + shift for ell in logits], expected, temperature) == pytest.approx(share, abs=1e-4)


@given(shares, st.integers(0, 10), st.integers(1, 40))
def test_the_target_falls_from_all_to_its_end(target, first, length):
    tracker = Tracker(target=target, first=first, last=first + length)
    course = [tracker.target_at(step) for step in range(1, first + length + 5)]
    assert all(value == 1 for value in course[:first])
    assert course == sorted(course, reverse=True)
    assert course[first + length - 1 :] == pytest.approx([target] * 5, abs=1e-6)


def test_the_target_is_a_cubic():
    tracker = Tracker(target=0.2, first=10, last=110)
    assert tracker.target_at(60) == pytest.approx(0.2 + 0.8 * 0.5**3, abs=1e-6)


def test_the_penalty_and_its_gradient():
    tracker = Tracker(target=0.25, first=0, last=1, stiffness=3.0)
    share = torch.tensor(0.75, dtype=torch.float64, requires_grad=True)
    penalty = tracker.penalty(share, 5)
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(3 / 2 * 0.5**2, abs=1e-6)
    assert float(share.grad) == pytest.approx(3 * 0.5, abs=1e-6)


def test_an_update_goes_a_part_of_the_way():
    logits = doubles([-1.0, 0.0, 2.0])
    tracker = Tracker(target=0.5, first=0, last=1, price=4.0, rate=0.25)
    tracker.update(logits, 0.5, 7)
    assert tracker.price == pytest.approx(4 + 0.25 * (fair_price(logits, 0.5, 0.5) - 4))


@pytest.mark.parametrize("target", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("drift", [-0.05, 0.05])
def test_the_share_follows_its_target(target, drift):
    """Small noisy batches whose logits drift all the while: within 5 points from when the target stands still."""
    tracker = Tracker(target=target, first=20, last=120)
    generator = torch.Generator().manual_seed(0)
    found = []
    for step in range(1, 201):
        logits = torch.randn(8, 24, generator=generator) * 2 + drift * step
        found.append(share_at(logits.flatten().tolist(), tracker.price, 0.5))
        tracker.update(logits, 0.5, step)
    settled = found[130:]
    assert sum(settled) / len(settled) == pytest.approx(target, abs=0.05)


@given(st.floats(0.05, 0.95), st.floats(0.2, 5.0))
def test_search_closes_in_where_readings_run_around_the_target(target, bend):
    """Readings that are right in their direction only: what later routers see moves with the threshold."""
    search, threshold = Search(target), 0.5
    for _ in range(40):
        share = 1 - threshold**bend
        search.tried.append((threshold, share))
        if search.off() < 1e-3:
            break
        threshold = search.next(
            min(max(threshold + share - target, 0.01 * threshold), 0.5 + threshold / 2)
        )  # exact only where bend is 1
    assert abs(1 - search.best() ** bend - target) < 1e-3


def test_search_takes_readings_until_it_knows_both_sides():
    search = Search(0.5, [(0.2, 0.9)])
    assert search.next(0.6) == 0.6
    assert search.next(0.1) == 0.1
    search.tried.append((0.6, 0.1))
    assert search.next(0.7) == pytest.approx(0.4)  # half-way: 0.9 and 0.1 are as far from 0.5
    search.tried.append((0.4, 0.55))
    assert search.next(0.7) == pytest.approx(0.4 + 0.2 * 0.05 / 0.45)
    assert search.best() == 0.4
