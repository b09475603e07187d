"""Lengths in steps or fractions of training, and the course of a budget over the steps."""

from typing import Annotated

from pydantic import AfterValidator


def _length(value: int | float) -> int | float:
    """Whole steps (12000.0 is 12000), or a fraction below 1; 1.0 could mean either and is refused."""
    if isinstance(value, float) and value.is_integer() and value != 1:
        value = int(value)
    if value <= 0 or (isinstance(value, float) and not value < 1):
        raise ValueError(
            f"{value:g} must be a number of steps (whole, 1 or more) or a fraction of training (above 0, below 1)"
        )
    return value


Length = Annotated[int | float, AfterValidator(_length)]
"""A number of optimizer steps (int >= 1), or a fraction of all steps (float between 0 and 1)."""


def in_steps(length: int | float, total_steps: int) -> int:
    """`length` in optimizer steps: integers are steps already, fractions are rounded and at least 1."""
    if isinstance(length, int):
        return length
    return max(1, round(length * total_steps))


def cubic(step: int, *, initial: int, target: int, warmup: int, last: int) -> int:
    """The budget after `step`: all until the warm-up ends, then a cubic down to `target` at step `last`.

    b(t) = b_T + (b_0 - b_T)·(1 - (t - t_i) / (T - t_i - t_f))³ with t_i = `warmup` and T - t_f = `last`
    (AdaLoRA, Zhang et al. 2023, arXiv 2303.10512, eq. 12; the curve is Zhu & Gupta's, arXiv 1710.01878). Rounded down.

    Args:
        step: optimizer step, from 1.
        initial: budget before, in parameters or ranks.
        target: budget after, in the same unit.
        warmup: last step at the initial budget.
        last: first step at the target; above `warmup`.
    """
    if step <= warmup:
        return initial
    if step >= last:
        return target
    left = 1 - (step - warmup) / (last - warmup)
    return int((initial - target) * left**3 + target)
