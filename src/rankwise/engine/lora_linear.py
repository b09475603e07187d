"""A linear layer with a low-rank adapter as one autograd function.

    y = x Wᵀ + b + ((x Aᵀ) ∘ c) Bᵀ ,     c = scaling, or scaling · gate

Written as separate operations, the adapter costs three passes over tensors of the size of `y` forward (product,
scaling, sum) and as many backward. Here the scaling acts on the `rank` columns between A and B, and both products with
them are accumulated into the tensors that are there anyway. Only x and x Aᵀ are kept for the backward pass, which gives
no gradient to W and b: they are frozen.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        gate: Tensor | None,
        scaling: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        hidden = rows @ a.t()
        y = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        # `out=` rather than `addmm_`: torch's FlopCounterMode counts this form, and it is the same kernel
        torch.addmm(y, hidden if gate is None else hidden * gate, b.t(), alpha=scaling, out=y)
        ctx.save_for_backward(x, weight, a, b, hidden, gate)
        ctx.scaling = scaling
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, a, b, hidden, gate = ctx.saved_tensors
        need_x, _, _, need_a, need_b, need_gate, _ = ctx.needs_input_grad
        dy = gradient.reshape(-1, gradient.shape[-1])
        through_b = (dy @ b).mul_(ctx.scaling)  # (tokens, rank): gradient of gate ∘ hidden
        d_hidden = through_b if gate is None else through_b * gate
        d_x = d_a = d_b = d_gate = None
        if need_b:
            d_b = (dy.t() @ (hidden if gate is None else hidden * gate)).mul_(ctx.scaling)
        if need_gate and gate is not None:
            each = (through_b * hidden).sum(0)
            d_gate = each if gate.shape == each.shape else each.sum(0, keepdim=True)
        if need_a:
            d_a = d_hidden.t() @ x.reshape(-1, x.shape[-1])
        if need_x:
            d_x = dy @ weight
            d_x = torch.addmm(d_x, d_hidden, a, out=d_x).view(x.shape)
        return d_x, None, None, d_a, d_b, d_gate, None


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, gate: Tensor | None, scaling: float
) -> Tensor:
    """x: (..., in) -> (..., out).

    Args:
        x: input.
        weight: (out, in), frozen.
        bias: (out,), frozen, or None.
        a: (rank, in).
        b: (out, rank).
        gate: (rank,) or (1,), or None.
        scaling: a number.
    """
    result: Tensor = _LoraLinear.apply(x, weight, bias, a, b, gate, scaling)
    return result
