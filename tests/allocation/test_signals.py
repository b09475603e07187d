"""Signals against what they stand for: explicit norms, autograd's gradient of a trainable weight, sums by hand."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rankwise
from rankwise.allocation.schedules import in_steps
from rankwise.allocation.signals import (
    SIGNALS,
    Averaged,
    Observed,
    gradient_norms,
    projection,
    score_total,
    weight_gradient,
)


def averaged(values, matrices, *, squared_weights=0.5, seed=0):
    return Averaged(values, squared_weights, matrices, torch.Generator().manual_seed(seed))


def draws(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


@given(st.lists(st.tuples(*[st.integers(1, 6)] * 2), min_size=1, max_size=5), st.integers(0, 999))
def test_gradient_norms_are_the_explicit_ones(shapes, seed):
    gradients = draws(*shapes, seed=seed)
    for found, gradient in zip(gradient_norms(gradients).tolist(), gradients, strict=True):
        assert found == pytest.approx(float((gradient.double() ** 2).sum() ** 0.5), rel=1e-5)


@pytest.mark.parametrize("directions", [1, 4, 8])
def test_projected_norm_is_unbiased_for_any_shape_and_rank(directions):
    """Squared, and averaged over draws of P: the squared norm of G, also for G of rank 1. Its spread is as stated."""
    generator = torch.Generator().manual_seed(0)
    for out, width, rank in ((24, 16, 16), (8, 128, 1), (5, 64, 3)):
        gradient = torch.randn(out, rank, generator=generator) @ torch.randn(rank, width, generator=generator)
        found = [gradient @ projection(width, generator, directions=directions).T for _ in range(1600)]
        squares = gradient_norms(found) ** 2 / gradient.norm() ** 2
        assert float(squares.mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / directions / 1600))
        assert float(squares.std()) <= 1.15 * math.sqrt(2 / directions)
        if rank == 1:
            assert float(squares.std()) == pytest.approx(math.sqrt(2 / directions), rel=0.15)


def test_projected_weight_gradient_is_the_projection_of_the_weight_gradient():
    x, gradient = draws((3, 4, 7), (3, 4, 9))
    p = projection(7, torch.Generator().manual_seed(1))
    assert p.shape == (8, 7)
    torch.testing.assert_close(weight_gradient(x @ p.T, gradient), weight_gradient(x, gradient) @ p.T)


@pytest.mark.parametrize(("out", "width"), [(5, 7), (7, 5), (6, 6)])
def test_weight_gradient_is_autograds(out, width):
    weight = torch.randn(out, width, requires_grad=True)
    x = torch.randn(3, 4, width)
    y = x @ weight.T
    y.retain_grad()
    y.square().sum().backward()
    torch.testing.assert_close(weight_gradient(x, y.grad), weight.grad)


def test_registered_signals():
    names = "record estimate norm_of_mean exact sensitivity weight_sensitivity activation whitened variance random"
    assert set(SIGNALS) == set(names.split())
    assert all(SIGNALS[name].summary.strip() for name in SIGNALS)


def test_a_signal_is_one_new_file(tmp_path):
    """Put into the package, it is registered; nothing else has to be touched."""
    shutil.copytree(Path(rankwise.__file__).parent, tmp_path / "rankwise", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "rankwise/allocation/signals/mine.py").write_text(
        "from rankwise.allocation.signals.base import SIGNALS, Signal, one_number_each\n"
        "from rankwise.allocation.signals.norms import weight_norms\n"
        "SIGNALS.register('mine')(Signal('of my own', weight_norms, one_number_each))\n"
    )
    code = "from rankwise.allocation.signals import SIGNALS; print(SIGNALS['mine'].summary)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "of my own"


def test_gradient_norm_signals_by_hand():
    b, g = [torch.tensor([[3.0], [4.0]]), torch.tensor([[0.0], [2.0]])], [torch.eye(2), torch.full((2, 2), 2.0)]
    assert SIGNALS["record"].statistics(Observed(lora_b_gradients=b))[0].tolist() == [5.0, 2.0]
    for name in ("exact", "estimate"):
        (norms,) = SIGNALS[name].statistics(Observed(gradients=g))
        assert norms.tolist() == pytest.approx([2**0.5, 4.0])
        assert SIGNALS[name].scores(averaged([norms], 2)) == pytest.approx([2**0.5, 4.0])
    # two steps that cancel in the first matrix and agree in the second
    steps = [SIGNALS["norm_of_mean"].statistics(Observed(gradients=[sign * g[0], g[1]])) for sign in (1, -1)]
    means = [(one + two) / 2 for one, two in zip(*steps, strict=True)]
    assert SIGNALS["norm_of_mean"].scores(averaged(means, 2)) == [0.0, 4.0]


def test_sensitivity_by_hand():
    """Mean of |w·g| over all entries of A and B: (|1·2| + |-2·1| + |3·0| + |1·-4|) / 4, and one of rank 2."""
    observed = Observed(
        lora_a=[torch.tensor([[1.0, -2.0]]), torch.ones(2, 2)],
        lora_a_gradients=[torch.tensor([[2.0, 1.0]]), torch.full((2, 2), -1.0)],
        lora_b=[torch.tensor([[3.0], [1.0]]), torch.ones(2, 2)],
        lora_b_gradients=[torch.tensor([[0.0], [-4.0]]), torch.full((2, 2), 3.0)],
    )
    (values,) = SIGNALS["sensitivity"].statistics(observed)
    assert values.tolist() == [2.0, 2.0]
    assert SIGNALS["sensitivity"].least == 2


def test_weight_sensitivity_averages_gradients_before_it_takes_magnitudes():
    w = torch.tensor([[1.0, -2.0], [0.5, 4.0]])
    steps = [torch.tensor([[1.0, 1.0], [2.0, 1.0]]), torch.tensor([[-1.0, 1.0], [2.0, -3.0]])]
    products = [SIGNALS["weight_sensitivity"].statistics(Observed(weights=[w], gradients=[g]))[0] for g in steps]
    (score,) = SIGNALS["weight_sensitivity"].scores(averaged([sum(products) / 2], 1))
    assert score == pytest.approx((0 + 2 + 1 + 4) / 4)  # of the mean gradient [[0, 1], [2, -1]]


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_variance_is_unbiased_under_the_weights_of_a_moving_average(beta):
    """Gradients N(mean, deviation²): many estimates from five steps each have the mean deviation², whatever `mean`."""
    shape, steps, repeats, deviation = (4, 3), 5, 3000, 0.7
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([beta ** (steps - 1 - t) for t in range(steps)])
    weights /= weights.sum()
    mean = torch.arange(12.0).reshape(shape) / 4
    total = 0.0
    for _ in range(repeats):
        gradients = [mean + deviation * torch.randn(shape, generator=generator) for _ in range(steps)]
        seen = [SIGNALS["variance"].statistics(Observed(lora_b_gradients=[g])) for g in gradients]
        values = [sum(w * s for w, s in zip(weights, column, strict=True)) for column in zip(*seen, strict=True)]
        total += SIGNALS["variance"].scores(averaged(values, 1, squared_weights=float(weights.square().sum())))[0]
    assert total / repeats == pytest.approx(deviation**2, rel=0.03)


def test_variance_of_equal_steps_is_zero():
    (g,) = draws((4, 3))
    values = SIGNALS["variance"].statistics(Observed(lora_b_gradients=[g, 3 * g]))
    assert SIGNALS["variance"].scores(averaged(values, 2)) == pytest.approx([0, 0], abs=1e-5)


def test_random_depends_on_its_stream_alone():
    one, two = (SIGNALS["random"].scores(averaged([], 500, seed=seed)) for seed in (3, 3))
    other = SIGNALS["random"].scores(averaged([], 500, seed=4))
    assert one == two != other
    assert 0 <= min(one) < max(one) < 1
    assert sum(one) / 500 == pytest.approx(0.5, abs=0.07)
    assert SIGNALS["random"].statistics(Observed()) == []


def test_statistics_and_scores_change_nothing_they_are_given():
    a, b, ga, gb, w, g = draws((2, 5), (4, 2), (2, 5), (4, 2), (4, 5), (4, 5))
    c = g.T @ g
    observed = Observed([a], [b], [ga], [gb], [w], [g], [c], [c], [c.trace()])
    before = [t.clone() for t in (a, b, ga, gb, w, g, c)]
    for name in SIGNALS:
        values = SIGNALS[name].statistics(observed)
        kept = [v.clone() for v in values]
        first = SIGNALS[name].scores(averaged(values, 1))
        assert SIGNALS[name].scores(averaged(values, 1)) == first
        assert all(torch.equal(x, y) for x, y in zip(values, kept, strict=True))
        assert len(first) == 1
        assert score_total(first[0]) >= 0
    assert all(torch.equal(x, y) for x, y in zip((a, b, ga, gb, w, g, c), before, strict=True))


@pytest.mark.parametrize(
    ("length", "total", "steps"),
    [(7, 10, 7), (0.1, 100, 10), (0.1, 3, 1), (0.001, 10, 1), (0.25, 10, 2), (0.999, 5, 5)],
)
def test_lengths_in_steps(length, total, steps):
    assert in_steps(length, total) == steps
