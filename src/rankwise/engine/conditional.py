"""A low-rank term whose components are weighted per example, added in place to what the base layer gave.

    y_i += s · ((x_i Aᵀ) ∘ c_i) Bᵀ ,    c_i: the weights of example i, (rank,) or one for all, (1,)

c_i = 0 is a closed gate. Two ways to the same numbers:

- `add_weighted` for training: all rows, one autograd function. A closed gate still gets its gradient
  ⟨∂L/∂y_i, s · (x_i Aᵀ) Bᵀ⟩, which needs only products of `rank` columns.
- `add_open` for inference: only rows whose weights are not all zero are touched, and of each only its first `rank`
  components. No gradients.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable

FEW = 4
"""Up to this many rows are worked on one by one, in place; more are gathered first, so that one product does them."""


class _AddWeighted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context
        result: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        weights: Tensor,
        scaling: float,
    ) -> Tensor:
        hidden = x @ a.t()
        y = result.view(-1, result.shape[-1])
        # `out=` rather than `addmm_`: torch's FlopCounterMode counts this form, and it is the same kernel
        torch.addmm(y, (hidden * weights[:, None, :]).flatten(0, 1), b.t(), alpha=scaling, out=y)
        ctx.mark_dirty(result)
        ctx.save_for_backward(x, a, b, weights, hidden)
        ctx.scaling = scaling
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, a, b, weights, hidden = ctx.saved_tensors
        _, need_x, need_a, need_b, need_weights, _ = ctx.needs_input_grad
        through_b = (gradient @ b).mul_(ctx.scaling)  # (batch, tokens, rank): gradient of weights ∘ hidden
        d_hidden = through_b * weights[:, None, :]
        d_x = d_a = d_b = d_weights = None
        if need_weights:
            each = (through_b * hidden).sum(1)
            d_weights = each if weights.shape == each.shape else each.sum(1, keepdim=True)
        if need_b:
            d_b = (gradient.flatten(0, 1).t() @ (hidden * weights[:, None, :]).flatten(0, 1)).mul_(ctx.scaling)
        if need_a:
            d_a = d_hidden.flatten(0, 1).t() @ x.flatten(0, 1)
        if need_x:
            d_x = d_hidden @ a
        return gradient, d_x, d_a, d_b, d_weights, None


def add_weighted(result: Tensor, x: Tensor, a: Tensor, b: Tensor, weights: Tensor, scaling: float) -> Tensor:
    """Add the term for all rows, differentiably; `result` is changed in place, where it can be, and returned.

    Args:
        result: (batch, tokens, out), what the frozen layer gave; not needed for its own gradient.
        x: (batch, tokens, in).
        a: (rank, in).
        b: (out, rank).
        weights: (batch, rank) or (batch, 1).
        scaling: a number.
    """
    result = result.contiguous()
    made_by: object = result.grad_fn
    if result._is_view() and (made_by is None or isinstance(made_by, BackwardCFunction)):
        result = result.clone()  # autograd forbids to change a view that another custom function made in place
    changed: Tensor = _AddWeighted.apply(result, x, a, b, weights, scaling)
    return changed


@torch.no_grad()
def add_open(
    result: Tensor, x: Tensor, a: Tensor, b: Tensor, weights: Tensor, scaling: float, ranks: Tensor | None = None
) -> Tensor:
    """The same without gradients, computed for open rows alone.

    Args:
        result: (batch, tokens, out), changed in place where it is contiguous.
        x: (batch, tokens, in).
        a: (rank, in).
        b: (out, rank).
        weights: (batch, rank) or (batch, 1); a row of zeros is closed.
        scaling: a number.
        ranks: (batch,) integers; row i uses its first `ranks[i]` components, 0 is closed. All of them if left out.
    """
    result = result.contiguous()
    for rank, rows in _groups(weights, ranks, a.shape[0]).items():
        part_a, part_b, part = a[:rank], b[:, :rank], weights[:, : min(rank, weights.shape[1])]
        if len(rows) == len(x):
            _add(result, x, part_a, part_b, part, scaling)
        elif len(rows) <= FEW:
            for i in rows:
                _add(result[i : i + 1], x[i : i + 1], part_a, part_b, part[i : i + 1], scaling)
        else:
            index = torch.tensor(rows, device=x.device)
            some = result.index_select(0, index)
            _add(some, x.index_select(0, index), part_a, part_b, part.index_select(0, index), scaling)
            result.index_copy_(0, index, some)
    return result


def _groups(weights: Tensor, ranks: Tensor | None, full: int) -> dict[int, list[int]]:
    """Rank -> its open rows; one look at the device."""
    if ranks is None and weights.shape[1] == 1:
        rows = [row for row, weight in enumerate(weights[:, 0].tolist()) if weight]
        return {full: rows} if rows else {}
    open_rows = weights.ne(0).any(1)
    each = open_rows * (full if ranks is None else ranks)
    found: dict[int, list[int]] = {}
    for row, rank in enumerate(each.tolist()):
        if rank > 0:
            found.setdefault(rank, []).append(row)
    return found


def _add(result: Tensor, x: Tensor, a: Tensor, b: Tensor, weights: Tensor, scaling: float) -> None:
    y = result.view(-1, result.shape[-1])
    hidden = (x.flatten(0, 1) @ a.t()).view(len(x), -1, a.shape[0]) * weights[:, None, :]
    torch.addmm(y, hidden.flatten(0, 1), b.t(), alpha=scaling, out=y)
