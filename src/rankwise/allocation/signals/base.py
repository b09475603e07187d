"""What a signal is: what it needs to see, a statistic of one step, and a score of the statistic's average."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rankwise.registry import Registry

Need = Literal["adapter", "weight", "gradient", "projected_gradient", "moment", "moment_sketch"]
"""`adapter`: A, B and their gradients; `weight`: W; `gradient`: G; `projected_gradient`: G Pᵀ for a random P of a few
rows; `moment`: C; `moment_sketch`: C Ω for a random Ω of a few columns."""

Score = float | list[float]
"""A matrix's importance: one number >= 0, or a non-increasing list of what each further rank is worth."""


@dataclass(frozen=True)
class Observed:
    """What one optimizer step showed: in every field one tensor per matrix, in one order; empty if nobody asked for it.

    `gradients` are (out, in), or (out, directions) if projected. `moments` are (in, in), or (in, columns) if sketched;
    then `cores` are Ωᵀ C Ω (columns, columns). `traces` are tr C = E‖x‖².
    """

    lora_a: Sequence[Tensor] = ()
    lora_b: Sequence[Tensor] = ()
    lora_a_gradients: Sequence[Tensor] = ()
    lora_b_gradients: Sequence[Tensor] = ()
    weights: Sequence[Tensor] = ()
    gradients: Sequence[Tensor] = ()
    moments: Sequence[Tensor] = ()
    cores: Sequence[Tensor] = ()
    traces: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Averaged:
    """The statistics of the steps before a decision, averaged with weights that sum to 1.

    `squared_weights` is the sum of the squared weights, 1/n for n equal ones. `generator` is the decision's own random
    stream, `matrices` how many scores are wanted.
    """

    values: Sequence[Tensor]
    squared_weights: float
    matrices: int
    generator: torch.Generator


@dataclass(frozen=True)
class Signal:
    """How importance is read off training; `summary` says it in one line.

    `statistics` turns what one step showed of all matrices into tensors of any fixed shapes, which are averaged over
    steps; `scores` turns their averages into one score per matrix. Both are pure. With `fresh_directions` random
    directions are drawn anew for every step, right where every step's statistic is an estimate of its own; otherwise
    they are fixed, so that what they project can be averaged. For `settle` steps before averaging starts, a basis of
    inputs is only turned towards them. `least` is the fewest averaged steps that say anything.
    """

    summary: str
    statistics: Callable[[Observed], list[Tensor]]
    scores: Callable[[Averaged], list[Score]]
    needs: frozenset[Need] = frozenset()
    fresh_directions: bool = False
    settle: int = 0
    least: int = 1


SIGNALS: Registry[Signal] = Registry("signal")


def one_number_each(averaged: Averaged) -> list[Score]:
    """Scores of a signal whose statistic is a single tensor of shape (matrices,): the averages as they are."""
    (values,) = averaged.values
    return list(values.tolist())


def score_total(score: Score) -> float:
    """One number for a score: itself, or what all its components are worth together."""
    return score if isinstance(score, float | int) else float(sum(score))
