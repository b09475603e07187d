"""Signals that should not work, to compare those against that claim to: `variance` and `random`."""

import torch
from torch import Tensor

from rankwise.allocation.signals.base import SIGNALS, Averaged, Observed, Score, Signal


def gradients_and_squares(observed: Observed) -> list[Tensor]:
    """∂L/∂B (out, rank) of every matrix, then the mean squares of their entries (matrices,)."""
    gradients = list(observed.lora_b_gradients)
    norms = torch.stack(list(torch._foreach_norm(gradients)))
    return [*gradients, norms.square() / _entries(gradients, norms)]


def variances(averaged: Averaged) -> list[Score]:
    """Variance over steps of an entry of ∂L/∂B, averaged over entries.

    That is what the diagonal of the Fisher information at a stationary point comes to (FIM-LoRA, arXiv 2605.16800).
    For independent steps with weights w that sum to 1, E[Σ w g² - (Σ w g)²] is 1 - Σ w² of the variance, hence the
    divisor.
    """
    means, squares = list(averaged.values[:-1]), averaged.values[-1]
    norms = torch.stack(list(torch._foreach_norm(means)))
    spread = (squares - norms.square() / _entries(means, norms)).clamp(min=0)
    return list((spread / max(1 - averaged.squared_weights, 1e-12)).tolist())


def uniform_draws(averaged: Averaged) -> list[Score]:
    """Independent draws from [0, 1)."""
    draws: Tensor = torch.rand(averaged.matrices, dtype=torch.float64, generator=averaged.generator)
    return list(draws.tolist())


def _entries(tensors: list[Tensor], like: Tensor) -> Tensor:
    return like.new_tensor([t.numel() for t in tensors])


SIGNALS.register("variance")(
    Signal(
        "variance of the gradient of lora_B over steps (FIM-LoRA), a negative control",
        gradients_and_squares,
        variances,
        needs=frozenset({"adapter"}),
        least=2,
    )
)
SIGNALS.register("random")(Signal("uniform draws from the run's seed, a control", lambda observed: [], uniform_draws))
