"""Verdicts as a table for people and as data for machines."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rankwise.experiments.plain_table import plain_table
from rankwise.experiments.plan import COSTS, ClaimConfig
from rankwise.experiments.verdicts import ClaimVerdict

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}
_NONE = "–"


def sentence(claim: ClaimConfig) -> str:
    """What is tested, in the terms of the test: `glora - lora > 0.005 (main)`."""
    if claim.kind == "not-testable":
        return "not tested by any run"
    ratio = claim.metric in COSTS
    sides = f"{claim.arm} / {claim.reference}" if ratio else f"{claim.arm} - {claim.reference}"
    if claim.kind == "bound":
        limit = f"<= {claim.at_most:g}" if claim.at_most is not None else f">= {claim.at_least:g}"
        return f"{claim.metric}: {sides} {limit}"
    margin = f"{claim.margin:g}"
    words = {
        "superiority": f"better by more than {margin}",
        "non-inferiority": f"worse by less than {margin}",
        "equivalence": f"apart by less than {margin}",
    }
    return f"{claim.metric}: {sides}, {words[claim.kind]}"


def number(value: float, scale: str, *, sign: bool = True) -> str:
    """An estimate or an end of an interval: four digits after the point for a difference, three for a ratio."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3f}" if scale == "ratio" else f"{value:+.4f}" if sign else f"{value:.4f}"


def interval(found: ClaimVerdict) -> str:
    """`+0.0040 [-0.0120, +0.0200]`, or a dash."""
    result = found.result
    if result is None:
        return _NONE
    low, high = (number(end, result.scale) for end in (result.low, result.high))
    return f"{number(result.estimate, result.scale)}\n[{low}, {high}]"


def verdict_table(found: Sequence[ClaimVerdict], alpha: float) -> "Table":
    """One row per claim."""
    from rich.text import Text

    share = f"{100 * (1 - 2 * alpha):g}"
    table = plain_table(
        "Verdicts",
        f"interval: {share} %, noise of seeds and examples; p: one-sided, by Holm over the plan's claims\n"
        "differences are in the metric's unit, costs are ratios",
    )
    for name in ("claim", "verdict"):
        table.add_column(name, overflow="fold")
    for name in (f"estimate\n[{share} % interval]", "p", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what would settle it", overflow="fold")
    for each in found:
        word = each.word + (" (post hoc)" if each.post_hoc else "")
        table.add_row(
            Text(f"{each.claim.id}: {sentence(each.claim)}"),
            Text(word, style=STYLES.get(each.word, "")),
            Text(interval(each)),
            Text(p_value(each.adjusted)),
            Text(pairs(each)),
            Text(each.settle),
        )
    return table


def p_value(value: float) -> str:
    """Three digits, or `<0.001`, or a dash."""
    return _NONE if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def pairs(found: ClaimVerdict) -> str:
    """`3×5` is three tasks of five seeds; `3×5-7` of five to seven."""
    if found.result is None:
        return _NONE
    low, high = min(found.result.seeds), max(found.result.seeds)
    return f"{found.result.tasks}×{low}" + (f"-{high}" if high > low else "")


def as_data(found: ClaimVerdict) -> dict[str, Any]:
    """A verdict as JSON has it; numbers that are none, or infinite, are null."""
    result = found.result
    data: dict[str, Any] = {
        "id": found.claim.id,
        "text": found.claim.text,
        "tested": sentence(found.claim),
        "kind": found.claim.kind,
        "arm": found.claim.arm,
        "reference": found.claim.reference,
        "metric": found.claim.metric,
        "source": found.claim.source,
        "reason": found.claim.reason,
        "verdict": found.word,
        "post_hoc": found.post_hoc,
        "p_adjusted": _finite(found.adjusted),
        "settle": found.settle,
        "runs": list(found.runs),
        "missing": list(found.missing),
    }
    if result is not None:
        data |= {
            "scale": result.scale,
            "estimate": _finite(result.estimate),
            "low": _finite(result.low),
            "high": _finite(result.high),
            "confidence": 1 - 2 * result.alpha,
            "p": _finite(result.p),
            "above": _finite(result.above),
            "below": _finite(result.below),
            "tasks": result.tasks,
            "seeds": list(result.seeds),
            "method": result.method,
            "note": result.note,
            "noise_floor": None if found.floor is None else _finite(found.floor.run),
            "smallest_detectable_effect": None if found.detectable is None else _finite(found.detectable),
        }
    return data


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
