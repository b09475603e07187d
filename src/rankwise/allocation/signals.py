"""Signals: gradients in, one importance score per matrix out. Pure functions on tensors.

Notation: `W: (out, in)` is a frozen matrix, `G = ∂L/∂W` its gradient (never formed in training), `A: (rank, in)`,
`B: (out, rank)`, `s` the scaling, so that W + s·B·A acts and ∂L/∂B = s · G Aᵀ, of shape (out, rank).

With A drawn independently of G with variance v per entry, E‖G Aᵀ‖² = rank·v·‖G‖², so ‖∂L/∂B‖ / (s·√(rank·v)) estimates
‖G‖. But A does not stay independent: training turns it towards the gradient within a few steps, and the estimate
comes out several times too high where `in` is wide. What is estimated here is therefore ‖G Pᵀ‖ with a fixed Gaussian
P: (DIRECTIONS, in) of variance 1/DIRECTIONS, for which E‖G Pᵀ‖² = ‖G‖² at every step (Johnson & Lindenstrauss 1984).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.registry import Registry

DIRECTIONS = 8
"""Rows of P. A squared norm has a relative standard deviation of at most √(2 / DIRECTIONS), reached if G has rank 1."""


@dataclass(frozen=True)
class Signal:
    """How a gradient signal is read; `summary` says it in one line.

    `of_lora_b`: the gradient of `lora_B` as it is; otherwise that of W, `projected` on fixed random directions or in
    full. `average_first`: average the gradient itself over steps and take the norm last, which cancels mini-batch
    noise; otherwise the norms are averaged.
    """

    summary: str
    of_lora_b: bool = False
    projected: bool = False
    average_first: bool = False


SIGNALS: Registry[Signal] = Registry("signal")
SIGNALS.register("record")(Signal("norm of the gradient of lora_B, as the idea was first written down", of_lora_b=True))
SIGNALS.register("estimate")(Signal("unbiased estimate of the norm of the gradient of W", projected=True))
SIGNALS.register("norm_of_mean")(
    Signal("estimate of the norm of the averaged gradient of W", projected=True, average_first=True)
)
SIGNALS.register("exact")(Signal("norm of the gradient of W itself"))


def gradient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Frobenius norm of each gradient, shape (matrices,): one fused call, no synchronisation with the device."""
    return torch.stack(list(torch._foreach_norm(list(gradients))))


def projection(in_features: int, generator: torch.Generator) -> Tensor:
    """P of shape (DIRECTIONS, in): independent normal entries of variance 1/DIRECTIONS."""
    entries: Tensor = torch.randn(DIRECTIONS, in_features, generator=generator)
    return entries / math.sqrt(DIRECTIONS)


def weight_gradient(inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """∂L/∂W = Σ over batch and tokens of (output gradient)(input)ᵀ, shape (out, in).

    With the inputs projected, `inputs @ P.T`, it is ∂L/∂W Pᵀ, shape (out, DIRECTIONS), at a small part of the cost.

    Args:
        inputs: (..., in), what the layer was given.
        output_gradients: (..., out), the loss's gradient with respect to what it returned.
    """
    return output_gradients.flatten(0, -2).T @ inputs.flatten(0, -2)
