"""Signals against what they stand for: explicit norms, and autograd's gradient of a base weight that is trainable."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.allocation.schedules import in_steps
from rankwise.allocation.signals import SIGNALS, gradient_norms, projection, weight_gradient


@given(st.lists(st.tuples(*[st.integers(1, 6)] * 2), min_size=1, max_size=5), st.integers(0, 999))
def test_gradient_norms_are_the_explicit_ones(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(*shape, generator=generator) for shape in shapes]
    for found, gradient in zip(gradient_norms(gradients).tolist(), gradients, strict=True):
        assert found == pytest.approx(float((gradient.double() ** 2).sum() ** 0.5), rel=1e-5)


def test_projected_norm_is_unbiased_for_any_shape_and_rank():
    """Squared, and averaged over draws of P: the squared norm of G, also for G of rank 1 and G that A has met."""
    generator = torch.Generator().manual_seed(0)
    for out, width, rank in ((24, 16, 16), (8, 128, 1), (5, 64, 3)):
        gradient = torch.randn(out, rank, generator=generator) @ torch.randn(rank, width, generator=generator)
        draws = [gradient @ projection(width, generator).T for _ in range(800)]
        mean_square = float((gradient_norms(draws) ** 2).mean())
        assert mean_square**0.5 == pytest.approx(float(gradient.norm()), rel=0.06)


def test_projected_weight_gradient_is_the_projection_of_the_weight_gradient():
    x, gradient = torch.randn(3, 4, 7), torch.randn(3, 4, 5)
    p = projection(7, torch.Generator().manual_seed(1))
    torch.testing.assert_close(weight_gradient(x @ p.T, gradient), weight_gradient(x, gradient) @ p.T)


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
