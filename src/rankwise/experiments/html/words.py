"""How numbers are written on the page."""

import math
import re

from rankwise.experiments.table import short_count

MEASURED = {
    "premise": "rank correlation of score and worth of a module",
    "inference_flops": "FLOPs per evaluation text, as served",
    "active_share": "share of the adapted modules in use",
    "total_rank": "components in use, over all modules",
}
"""What is counted when training is done (`run_costs`), in words."""
NONE = "–"
MINUS = "\u2212"


def number(value: float, digits: int = 4, *, sign: bool = False) -> str:
    """A number with so many digits after the point; `–` where there is none, `∞` at the end of an open interval."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def interval(low: float, high: float, digits: int = 4, *, sign: bool = False) -> str:
    """Both ends in brackets."""
    return f"[{number(low, digits, sign=sign)}, {number(high, digits, sign=sign)}]"


def p_value(p: float) -> str:
    """A p-value; below 0.0001 only that."""
    if math.isnan(p):
        return "none (nothing was sampled)"
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def measured(value: float, se: float, n: int, what: str = "seeds") -> str:
    """A value that never travels without its standard error and n."""
    return f"{number(value)} ± {number(se)} (n = {n} {what if n != 1 else what.removesuffix('s')})"


def count(value: float) -> str:
    """A number of parameters: in full below ten million."""
    return f"{value:,.0f}" if value < 10_000_000 else short_count(value)


def seconds(value: float) -> str:
    """A duration."""
    return NONE if math.isnan(value) else f"{value:.1f} s"


def mebibytes(value: float) -> str:
    """An amount of memory."""
    return NONE if math.isnan(value) else f"{value:,.0f} MiB"


def some(n: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def slug(text: str) -> str:
    """A part of a file name: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:60]
