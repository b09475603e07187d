"""What a label column holds: classes or numbers, and which row is wrong."""

import math
from collections.abc import Sequence
from typing import Any

from rankwise.errors import DataError
from rankwise.tasks.base import Kind

MAX_INTEGER_CLASSES = 50
"""More distinct whole numbers than this are read as quantities, not classes."""

_SHOWN = 5


def rows_shown(rows: Sequence[int]) -> str:
    """`row 3` or `rows 3, 7, 9 … (12 in all)`; rows count from 1, the header is not one."""
    shown = ", ".join(str(row) for row in rows[:_SHOWN])
    more = f" … ({len(rows)} in all)" if len(rows) > _SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"


def is_missing(value: object) -> bool:
    """None, NaN or blank text."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip() == ""


def check_present(source: str, column: str, values: Sequence[Any]) -> None:
    """Refuse a column with gaps.

    Raises:
        DataError: names the first rows without a value.
    """
    if rows := [number for number, value in enumerate(values, start=1) if is_missing(value)]:
        raise DataError(f"{source}: column '{column}' has no value in {rows_shown(rows)}")


def detect_kind(source: str, column: str, values: Sequence[Any]) -> Kind:
    """Words, booleans and a few distinct whole numbers are classes; other numbers are quantities.

    Raises:
        DataError: text with so many distinct values that it is no label.
    """
    numbers = [as_number(value) for value in values]
    distinct = len({str(value) for value in values})
    if all(number is not None for number in numbers):
        whole = all(number is not None and number.is_integer() for number in numbers)
        return "classification" if whole and distinct <= MAX_INTEGER_CLASSES else "regression"
    if distinct > max(2, len(values) // 2):
        raise DataError(
            f"{source}: column '{column}' has {distinct} distinct values in {len(values)} rows, which is no label; "
            "choose another column, or set kind=classification if it is one"
        )
    return "classification"


def as_number(value: object) -> float | None:
    """The finite number a cell holds, or None; a boolean is not a number here."""
    if isinstance(value, bool):
        return None
    try:
        number = float(str(value))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def as_numbers(source: str, column: str, values: Sequence[Any]) -> list[float]:
    """A regression target.

    Raises:
        DataError: names the first rows that hold no number.
    """
    numbers = [as_number(value) for value in values]
    if rows := [row for row, number in enumerate(numbers, start=1) if number is None]:
        value = values[rows[0] - 1]
        raise DataError(
            f"{source}: column '{column}' must hold numbers for regression; {rows_shown(rows)} has {value!r}"
        )
    return [number for number in numbers if number is not None]


def class_name(value: object) -> str:
    """A label as text; 1, 1.0 and "1" are one class."""
    number = as_number(value)
    return str(int(number)) if number is not None and number.is_integer() else str(value).strip()


def class_names(values: Sequence[Any]) -> list[str]:
    """The distinct labels as text, in sorted order: whole numbers by value, everything else as text."""
    names = {class_name(value) for value in values}
    if all(name.lstrip("+-").isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
