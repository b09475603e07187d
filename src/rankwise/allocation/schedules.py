"""From a length given in steps or as a fraction of training to whole steps."""

from typing import Annotated

from annotated_types import Ge, Gt, Lt

Length = Annotated[int, Ge(1)] | Annotated[float, Gt(0), Lt(1)]
"""A number of optimizer steps (int >= 1), or a fraction of all steps (float between 0 and 1)."""


def in_steps(length: int | float, total_steps: int) -> int:
    """`length` in optimizer steps: integers are steps already, fractions are rounded and at least 1."""
    if isinstance(length, int):
        return length
    return max(1, round(length * total_steps))
