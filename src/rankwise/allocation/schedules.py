"""From a length given in steps or as a fraction of training to whole steps."""

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
