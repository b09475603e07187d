"""Gradients and second moments from a layer's inputs and output gradients, in full or in a few random directions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DIRECTIONS = 8
"""Rows of a P that stays. A squared norm has a relative standard deviation of at most √(2 / rows), reached if G has
rank 1, and it is the same error at every step."""

FRESH_DIRECTIONS = 4
"""Rows of a P that is drawn anew for every step, so that errors average out. Against exact norms over 4 (12) steps of
MiniLM the root-mean-square error is 0.107 (0.079), with 8 rows that stay 0.156 (0.135)."""


def projection(in_features: int, generator: torch.Generator, *, directions: int = DIRECTIONS) -> Tensor:
    """P of shape (directions, in): independent normal entries of variance 1/directions, so that E‖G Pᵀ‖² = ‖G‖²
    (Johnson & Lindenstrauss 1984)."""
    entries: Tensor = torch.randn(directions, in_features, generator=generator)
    return entries / math.sqrt(directions)


def sketch_basis(in_features: int, columns: int, generator: torch.Generator) -> Tensor:
    """Ω of shape (in, min(columns, in)): orthonormal, its span uniformly distributed."""
    entries: Tensor = torch.randn(in_features, min(columns, in_features), generator=generator)
    basis: Tensor = torch.linalg.qr(entries).Q
    return basis.contiguous()


def turned_basis(product: Tensor) -> Tensor:
    """An orthonormal basis (in, columns) of what C makes of a basis: one step of subspace iteration, which turns it
    towards the leading eigenvectors (Halko, Martinsson & Tropp, arXiv 0909.4061).

    Args:
        product: C Ω, (in, columns).
    """
    basis: Tensor = torch.linalg.qr(product).Q
    return basis.contiguous()


def weight_gradient(inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """∂L/∂W = Σ over batch and tokens of (output gradient)(input)ᵀ, shape (out, in).

    With the inputs projected, `inputs @ P.T`, it is ∂L/∂W Pᵀ, shape (out, directions), at a small part of the cost.

    Args:
        inputs: (..., in), what the layer was given.
        output_gradients: (..., out), the loss's gradient with respect to what it returned.
    """
    x, g = inputs.flatten(0, -2), output_gradients.flatten(0, -2)
    if x.shape[1] < g.shape[1]:  # a narrow right-hand side costs four times as much as a narrow left-hand side (MKL)
        return (x.T @ g).T
    return g.T @ x


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor`, in float32 if it is of a shorter type: sums over many steps need the digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Moments:
    """Sums over tokens: `product` Σ x xᵀ (in, in) or Σ x xᵀ Ω (in, columns); `core` Σ Ωᵀ x xᵀ Ω, empty without Ω;
    `trace` Σ‖x‖²; `count` tokens."""

    product: Tensor
    core: Tensor
    trace: Tensor
    count: Tensor

    def __add__(self, other: "Moments") -> "Moments":
        mine, theirs = vars(self).values(), vars(other).values()
        return Moments(*(a + b for a, b in zip(mine, theirs, strict=True)))

    def mean(self) -> "Moments":
        """Per token instead of summed."""
        count = self.count.clamp(min=1)
        return Moments(self.product / count, self.core / count, self.trace / count, self.count / count)


def input_moments(inputs: Tensor, basis: Tensor | None = None, mask: Tensor | None = None) -> Moments:
    """Second moments of a layer's inputs in float32 at least, padding left out.

    Args:
        inputs: (..., in).
        basis: Ω (in, columns), or None for the full second moment.
        mask: (...), 1 for tokens and 0 for padding.
    """
    x = at_least_float32(inputs.flatten(0, -2))
    weights = x.new_ones(len(x)) if mask is None else mask.flatten().to(x)
    z = x if basis is None else x @ basis.to(x)
    weighted = z * weights[:, None]
    core = x.new_zeros(0, 0) if basis is None else weighted.T @ z
    product = x.T @ weighted if basis is None else weight_gradient(weighted, x).contiguous()
    return Moments(product, core, torch.linalg.vector_norm(x, dim=1).square() @ weights, weights.sum())
