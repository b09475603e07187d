"""The small graphic of a verdict card: the estimate with its interval against what the claim says."""

import math
from typing import TYPE_CHECKING

from rankwise.experiments.claim_tests import ClaimResult
from rankwise.experiments.html.pictures import COLOURS, INK, PALE, Picture, style
from rankwise.experiments.html.words import interval, number, slug
from rankwise.experiments.verdicts import ClaimVerdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_claim(verdict: ClaimVerdict) -> Picture | None:
    """The claimed range shaded, the interval as a bar, no difference as a line; None where nothing was tested."""
    result = verdict.result
    if result is None or not math.isfinite(result.estimate):
        return None
    null = 1.0 if result.scale == "ratio" else 0.0
    low, high = _window(result, null)

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.axvspan(max(low, result.above), min(high, result.below), color=PALE, linewidth=0)
        for edge in (result.above, result.below):
            if math.isfinite(edge):
                axes.axvline(edge, color=COLOURS[2], linewidth=1.4, linestyle="--")
        axes.axvline(null, color=INK, linewidth=0.8)
        axes.plot([max(low, result.low), min(high, result.high)], [0, 0], color=INK, linewidth=3, solid_capstyle="butt")
        for end, marker in ((result.low, "<"), (result.high, ">")):
            if math.isinf(end):
                axes.plot([low if end < 0 else high], [0], marker, color=INK, markersize=8, clip_on=False)
        axes.plot([result.estimate], [0], "D", color=INK, markersize=7)
        axes.set_xlim(low, high)
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=5)
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")
        style(axes, grid="x")
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)

    return Picture(
        f"claim-{slug(verdict.claim.id)}",
        f"Claim {verdict.claim.id}: estimate against margin",
        f"Estimate {number(result.estimate)}, interval {interval(result.low, result.high)}; "
        f"the claim holds between {number(result.above)} and {number(result.below)}.",
        "",
        0.72,
        draw,
        3.4,
    )


def _window(result: ClaimResult, null: float) -> tuple[float, float]:
    shown = [result.low, result.high, result.estimate, result.above, result.below, null]
    finite = [value for value in shown if math.isfinite(value)]
    low, high = min(finite), max(finite)
    room = 0.18 * (high - low) or 0.1 * max(abs(low), 0.01)
    return low - room, high + room
