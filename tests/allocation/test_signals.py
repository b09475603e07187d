"""Signals against what they stand for: explicit norms, and autograd's gradient of a base weight that is trainable."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.allocation.schedules import in_steps
from rankwise.allocation.signals import SIGNALS, Factors, estimate_divisors, gradient_norms, weight_gradient


@given(st.lists(st.tuples(*[st.integers(1, 6)] * 3), min_size=1, max_size=5), st.floats(0.1, 9), st.integers(0, 999))
def test_gradient_norms_are_the_explicit_ones(shapes, scaling, seed):
    generator = torch.Generator().manual_seed(seed)
    factors = [
        Factors(torch.randn(r, i, generator=generator), torch.randn(o, r, generator=generator), scaling)
        for i, o, r in shapes
    ]
    raw, estimate = (gradient_norms(factors, estimate=e) for e in (False, True))
    divisors = estimate_divisors(factors)
    for k, f in enumerate(factors):
        rank, width = f.a.shape
        variance = float((f.a.double() ** 2).sum()) / (rank * width)
        norm = float(f.b_grad.double().norm())
        assert float(raw[k]) == pytest.approx(norm, rel=1e-5)
        assert float(estimate[k]) == pytest.approx(norm / (scaling * (rank * variance) ** 0.5), rel=1e-5)
        assert float(divisors[k]) == pytest.approx(scaling * (rank * variance) ** 0.5, rel=1e-5)


def test_estimate_is_unbiased_and_blind_to_rank_width_and_scaling():
    """Squared, and averaged over draws of A as PEFT draws it: the squared norm of G, for any shape."""
    torch.manual_seed(0)
    for width, rank, scaling in ((16, 1, 2.0), (64, 4, 0.5), (64, 16, 8.0)):
        gradient = torch.randn(24, width)
        bound = width**-0.5
        draws = [torch.empty(rank, width).uniform_(-bound, bound) for _ in range(600)]
        factors = [Factors(a, scaling * gradient @ a.T, scaling) for a in draws]
        mean_square = float((gradient_norms(factors, estimate=True) ** 2).mean())
        assert mean_square**0.5 == pytest.approx(float(gradient.norm()), rel=0.05)


def test_weight_gradient_is_autograds():
    torch.manual_seed(0)
    weight = torch.randn(5, 7, requires_grad=True)
    x = torch.randn(3, 4, 7)
    out = x @ weight.T
    out.retain_grad()
    out.square().sum().backward()
    torch.testing.assert_close(weight_gradient(x, out.grad), weight.grad)


def test_registered_signals():
    assert set(SIGNALS) == {"record", "estimate", "norm_of_mean", "exact"}


@pytest.mark.parametrize(
    ("length", "total", "steps"),
    [(7, 10, 7), (0.1, 100, 10), (0.1, 3, 1), (0.001, 10, 1), (0.25, 10, 2), (0.999, 5, 5)],
)
def test_lengths_in_steps(length, total, steps):
    assert in_steps(length, total) == steps
