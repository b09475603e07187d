"""Shares of a whole, as configs write them."""

from typing import Annotated

from pydantic import AfterValidator


def _share(value: float | str) -> float:
    """`'35%'` or 0.35 -> 0.35."""
    text = str(value).strip()
    try:
        share = round(float(text[:-1]) / 100, 12) if text.endswith("%") else float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ValueError(f"'{value}' must be a share between 0 and 100 %, such as '35%' or 0.35")
    return share


Share = Annotated[float | str, AfterValidator(_share)]
"""A share above 0 and below 1, written '35%' or 0.35; a number once it is validated."""
