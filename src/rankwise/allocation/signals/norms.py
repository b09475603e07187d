"""Norms of gradients: `record`, `estimate`, `norm_of_mean`, `exact`.

∂L/∂B = s·G Aᵀ. With A drawn independently of G with variance v per entry, E‖G Aᵀ‖² = rank·v·‖G‖², so
‖∂L/∂B‖ / (s·√(rank·v)) estimates ‖G‖. But A does not stay independent: training turns it towards the gradient within a
few steps, and the estimate comes out several times too high where `in` is wide. What is estimated here is therefore
‖G Pᵀ‖ with a random P that training never sees, for which E‖G Pᵀ‖² = ‖G‖² at every step.

An average of norms counts mini-batch noise as importance, E‖g‖² = ‖E g‖² + Var g. The norm of the average does not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.allocation.signals.base import SIGNALS, Averaged, Observed, Score, Signal, one_number_each


def gradient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Frobenius norm of each gradient, shape (matrices,): one fused call, no synchronisation with the device."""
    return torch.stack(list(torch._foreach_norm(list(gradients))))


def adapter_norms(observed: Observed) -> list[Tensor]:
    """‖∂L/∂B‖ of every matrix, (matrices,)."""
    return [gradient_norms(observed.lora_b_gradients)]


def weight_norms(observed: Observed) -> list[Tensor]:
    """‖G‖, or its estimate ‖G Pᵀ‖, of every matrix, (matrices,)."""
    return [gradient_norms(observed.gradients)]


def gradients(observed: Observed) -> list[Tensor]:
    """G, or G Pᵀ, of every matrix."""
    return list(observed.gradients)


def norms_of_averages(averaged: Averaged) -> list[Score]:
    """‖average‖ of every matrix."""
    return list(gradient_norms(averaged.values).tolist())


SIGNALS.register("record")(
    Signal(
        "norm of the gradient of lora_B, as the idea was first written down",
        adapter_norms,
        one_number_each,
        needs=frozenset({"adapter"}),
    )
)
SIGNALS.register("estimate")(
    Signal(
        "estimate of the norm of the gradient of W, unbiased in its square",
        weight_norms,
        one_number_each,
        needs=frozenset({"projected_gradient"}),
        fresh_directions=True,
    )
)
SIGNALS.register("norm_of_mean")(
    Signal(
        "estimate of the norm of the averaged gradient of W",
        gradients,
        norms_of_averages,
        needs=frozenset({"projected_gradient"}),
    )
)
SIGNALS.register("exact")(
    Signal("norm of the gradient of W itself", weight_norms, one_number_each, needs=frozenset({"gradient"}))
)
