"""A penalty that keeps the rank-1 components of every adapter orthonormal, as AdaLoRA needs it.

The paper (Zhang et al. 2023, arXiv 2303.10512, eq. 4) writes R(P, Q) = ‖PᵀP - I‖²_F + ‖QQᵀ - I‖²_F and sums it over the
matrices. The authors' code (loralib's `compute_orth_regu`) and PEFT take the norm without the square and the mean over
all factors instead, which makes the weight independent of how many matrices there are. We follow them:

    R = 1 / (2·matrices) · Σ_matrices ( ‖A Aᵀ - I‖_F + ‖Bᵀ B - I‖_F ),    A: (rank, in), B: (out, rank)

    ∂‖E‖_F/∂A = 2·E A / ‖E‖_F  with E = A Aᵀ - I,     ∂‖E‖_F/∂B = 2·B E / ‖E‖_F  with E = Bᵀ B - I

Factors of one shape are taken together.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Orthogonality:
    """R of a fixed set of factors.

    Args:
        rows: the A of every matrix, (rank, in).
        columns: the B of every matrix, (out, rank).
        matrices: what the sum is divided by (twice); more than there are where some have been taken off.
    """

    def __init__(self, rows: Sequence[Tensor], columns: Sequence[Tensor], *, matrices: int) -> None:
        self._groups = [*_groups(rows, transposed=False), *_groups(columns, transposed=True)]
        self._matrices = matrices

    def __call__(self) -> Tensor:
        """R, a scalar with a graph to every factor."""
        device = self._groups[0].factors[0].device
        # Under autocast to bf16 a Gram matrix is off by more than there is to correct.
        with torch.autocast(device.type, enabled=False):
            terms = [_GramNorms.apply(group, *group.factors).to(device) for group in self._groups]
            total: Tensor = torch.stack(terms).sum() / (2 * self._matrices)
        return total


class _Group:
    """Factors of one shape, all A or (`transposed`) all B."""

    def __init__(self, factors: Sequence[Tensor], *, transposed: bool) -> None:
        self.factors, self.transposed = list(factors), transposed

    def stacked(self, factors: Sequence[Tensor]) -> Tensor:
        """(factors, rank, in) or (factors, out, rank), at least in float32."""
        together = torch.stack(list(factors))
        return together.to(torch.promote_types(together.dtype, torch.float32))


def _groups(factors: Sequence[Tensor], *, transposed: bool) -> list[_Group]:
    alike: dict[tuple[object, ...], list[Tensor]] = {}
    for factor in factors:
        alike.setdefault((factor.shape, factor.dtype, factor.device), []).append(factor)
    return [_Group(members, transposed=transposed) for members in alike.values()]


class _GramNorms(torch.autograd.Function):
    """Σ ‖E‖_F over a group. Between forward and backward only E / ‖E‖_F is kept, no copy of the factors."""

    @staticmethod
    def forward(ctx: Any, group: _Group, *factors: Tensor) -> Tensor:  # noqa: ANN401 - autograd's context
        x = group.stacked(factors)
        deviation = x.mT @ x if group.transposed else x @ x.mT
        deviation.diagonal(dim1=1, dim2=2).sub_(1)
        norms = torch.linalg.vector_norm(deviation, dim=(1, 2), keepdim=True)
        total: Tensor = norms.sum()
        # At E = 0 the norm has no gradient; 0 is the subgradient that torch.norm takes.
        deviation.div_(norms.masked_fill_(norms == 0, 1))
        ctx.group = group
        ctx.save_for_backward(deviation, *factors)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        direction, *factors = ctx.saved_tensors
        x = ctx.group.stacked(factors)
        direction = direction * (2 * gradient)
        slopes = x @ direction if ctx.group.transposed else direction @ x
        return (None, *slopes.to(factors[0].dtype).unbind())
