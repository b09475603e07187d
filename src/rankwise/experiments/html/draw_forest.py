"""The forest plot: paired differences to the reference, task by task, with their intervals."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rankwise.experiments.html.groups import Difference
from rankwise.experiments.html.pictures import INK, Picture, legend, legend_height, look, short, style
from rankwise.experiments.html.words import interval, number, slug, some

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_forest(found: Sequence[Difference], arms: Sequence[str]) -> list[Picture]:
    """One figure per metric, because differences of different metrics have no common axis."""
    metrics = dict.fromkeys(each.found.metric for each in found)
    return [_picture(metric, [d for d in found if d.found.metric == metric], list(arms)) for metric in metrics]


def _picture(metric: str, found: list[Difference], arms: list[str]) -> Picture:
    reference = found[0].found.reference
    places = list(dict.fromkeys((d.task, d.budget) for d in found))
    own = [arm for arm in arms if any(d.found.arm == arm for d in found)]
    rows = [d for place in places for arm in own for d in found if (d.task, d.budget, d.found.arm) == (*place, arm)]
    confidence = found[0].found.confidence

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        looks, heights, y = look(arms), {}, 0.0
        for place in places:
            lines = [d for d in rows if (d.task, d.budget) == place]
            heights[place] = y + (len(lines) - 1) / 2
            for each in lines:
                colour, marker = looks[each.found.arm]
                if math.isfinite(each.found.low):
                    axes.plot([each.found.low, each.found.high], [y, y], color=colour, linewidth=2, zorder=2)
                axes.plot([each.found.difference], [y], marker, color=colour, label=each.found.arm, zorder=3)
                y += 1
            y += 0.8
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_ylim(y - 0.3, -1)
        axes.set_yticks(list(heights.values()), [_label(*place) for place in heights])
        axes.set_xlabel(f"{metric.replace('_', ' ')}: arm minus {reference}")
        style(axes, grid="x")
        axes.tick_params(axis="y", length=0)
        legend(axes)

    said = [
        f"{_label(d.task, d.budget)}, {d.found.arm}: {number(d.found.difference, sign=True)} "
        f"{interval(d.found.low, d.found.high, sign=True)}, {some(d.found.n, 'paired seed')}"
        for d in rows
    ]
    notes = sorted({d.found.note for d in rows if d.found.note})
    return Picture(
        f"differences-{slug(metric)}",
        f"Differences to {reference} in {metric.replace('_', ' ')}",
        "; ".join(said),
        f"Mean over paired seeds of the arm minus {reference} with its {confidence:.0%} interval, per task and budget. "
        f"{' '.join(f'Note: {note}.' for note in notes)}".strip(),
        1.0 + 0.19 * (len(rows) + len(places)) + legend_height(len(own)),
        draw,
    )


def _label(task: str, budget: str) -> str:
    return f"{short(task, 22)}\n{budget}" if budget else short(task, 22)
