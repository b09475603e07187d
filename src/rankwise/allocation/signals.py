"""Signals: gradients in, one importance score per matrix out. Pure functions on tensors.

Notation: `W: (out, in)` is a frozen matrix, `G = ∂L/∂W` its gradient (never formed in training), `A: (rank, in)`,
`B: (out, rank)`, `s` the scaling, so that W + s·B·A acts and

    ∂L/∂B = s · G Aᵀ      (out, rank)

With A drawn independently of G with variance v per entry, E‖G Aᵀ‖² = rank·v·‖G‖²: the norm of ∂L/∂B is an
estimate of ‖G‖ once it is divided by s·√(rank·v). The raw norm is not comparable between matrices, because PEFT draws
A with v = 1/(3·in).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.registry import Registry


@dataclass(frozen=True)
class Factors:
    """One adapted matrix as a signal sees it: `a: (rank, in)`, `b_grad: (out, rank)`, `scaling`."""

    a: Tensor
    b_grad: Tensor
    scaling: float


@dataclass(frozen=True)
class Signal:
    """How a gradient signal is read; `summary` says it in one line.

    `estimate`: divide by s·√(rank·v), giving units of ‖∂L/∂W‖. `average_first`: average the gradient itself over steps
    and take the norm last, which cancels mini-batch noise; otherwise the norms are averaged. `exact`: ‖∂L/∂W‖ from
    the layer's inputs and output gradients instead of from ∂L/∂B.
    """

    summary: str
    estimate: bool = False
    average_first: bool = False
    exact: bool = False


SIGNALS: Registry[Signal] = Registry("signal")
SIGNALS.register("record")(Signal("norm of the gradient of lora_B, as the idea was first written down"))
SIGNALS.register("estimate")(
    Signal("estimate of the norm of the gradient of W, comparable between shapes", estimate=True)
)
SIGNALS.register("norm_of_mean")(
    Signal("estimate of the norm of the averaged gradient of W", estimate=True, average_first=True)
)
SIGNALS.register("exact")(Signal("norm of the gradient of W itself", exact=True))


def gradient_norms(factors: Sequence[Factors], *, estimate: bool) -> Tensor:
    """‖∂L/∂B‖_F per matrix, or with `estimate` the estimate of ‖∂L/∂W‖_F, as a tensor of shape (matrices,).

    The variance v of A is taken from A as it is now: v = ‖A‖²/(rank·in), so s·√(rank·v) = s·‖A‖/√in.
    One fused call for all matrices, no synchronisation with the device.
    """
    norms = torch.stack(torch._foreach_norm([f.b_grad for f in factors]))
    return norms / estimate_divisors(factors) if estimate else norms


def estimate_divisors(factors: Sequence[Factors]) -> Tensor:
    """s·‖A‖_F/√in per matrix, shape (matrices,): what turns ‖∂L/∂B‖ into an estimate of ‖∂L/∂W‖."""
    a_norms = torch.stack(torch._foreach_norm([f.a for f in factors]))
    sizes = torch.tensor([f.scaling / f.a.shape[1] ** 0.5 for f in factors], device=a_norms.device)
    return a_norms * sizes


def weight_gradient(inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """∂L/∂W = Σ over batch and tokens of (output gradient)(input)ᵀ, shape (out, in).

    Args:
        inputs: (..., in), what the layer was given.
        output_gradients: (..., out), the loss's gradient with respect to what it returned.
    """
    return output_gradients.flatten(0, -2).T @ inputs.flatten(0, -2)
