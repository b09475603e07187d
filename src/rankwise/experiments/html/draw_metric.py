"""Metric against parameters, one figure per task: means with intervals, single runs, the Pareto front."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rankwise.experiments.html.groups import CONFIDENCE, Group, arms_of, half_width, higher_is_better
from rankwise.experiments.html.pictures import INK, Picture, legend, legend_height, look, short, style
from rankwise.experiments.html.words import count, measured, slug
from rankwise.experiments.table import short_count
from rankwise.tasks.base import MetricValue

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STEP = 0.04
"""Share of the axis by which points of equal cost stand beside each other."""


def pareto_front(points: Sequence[tuple[float, float]], *, higher: bool = True) -> list[int]:
    """Indices of the points `(cost, metric)` that no other point beats at no more cost, by rising cost."""
    sign = 1 if higher else -1
    front: list[int] = []
    best = -math.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        if sign * points[index][1] > best:
            front.append(index)
            best = sign * points[index][1]
    return front


def draw_metric(groups: Sequence[Group], arms: Sequence[str]) -> list[Picture]:
    """One figure per task; `arms` fixes the colours."""
    pictures = []
    for task in dict.fromkeys(group.task for group in groups):
        own = _once([group for group in groups if group.task == task and group.summary(group.metric) is not None])
        if own:
            pictures.append(_picture(task, own, list(arms)))
    return pictures


def _once(groups: Sequence[Group]) -> list[Group]:
    """Runs that are compared at several budgets (full fine-tuning) are one point."""
    found: dict[tuple[str, ...], Group] = {}
    for group in groups:
        key = (group.arm, *(record.run_id for record in group.records))
        found[key] = replace(group, budget="") if key in found else group
    return list(found.values())


def _picture(task: str, groups: list[Group], arms: list[str]) -> Picture:
    metric = groups[0].metric
    summaries = [group.summary(metric) for group in groups]
    kept = [(group, found) for group, found in zip(groups, summaries, strict=True) if found is not None]
    front = pareto_front([(g.parameters, s.value) for g, s in kept], higher=higher_is_better(metric))
    points = [f"{_name(g)}: {count(g.parameters)} parameters, {measured(s.value, s.se, s.n)}" for g, s in kept]
    one = all(s.n == 1 for _, s in kept)
    bars = "standard error over evaluation examples of the one seed" if one else "seeds"
    caption = (
        f"Mean and {CONFIDENCE:.0%} interval over {bars}; small dots are single runs. Points of equal "
        f"or close cost stand side by side. Dashed: the Pareto front, "
        f"{', '.join(_name(kept[i][0]) for i in front)}."
    )

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        spots = _place(axes, kept, metric, arms)
        xs = [spots[i] for i in front]
        ys = [kept[i][1].value for i in front]
        axes.plot(xs, ys, color=INK, linewidth=1, linestyle="--", zorder=1)
        axes.set_ylabel(metric.replace("_", " "))
        style(axes)
        legend(axes)

    return Picture(
        f"metric-{slug(task)}",
        f"{short(task, 40)}: {metric.replace('_', ' ')} against parameters",
        "; ".join(points),
        caption,
        3.1 + legend_height(len(arms_of(groups))),
        draw,
    )


def _name(group: Group) -> str:
    return f"{group.arm} at {group.budget}" if group.budget else group.arm


def _place(axes: "Axes", kept: list[tuple[Group, MetricValue]], metric: str, arms: list[str]) -> list[float]:
    """Draw every point; returns where on the axis of parameters each stands."""
    costs = [group.parameters for group, _ in kept]
    logarithmic = min(costs) > 0 and max(costs) / min(costs) > 5
    x = [math.log10(cost) if logarithmic else cost for cost in costs]
    margin = 0.2 * (max(x) - min(x)) or max(1.0, 0.2 * abs(max(x)))
    spots = side_by_side(x, _STEP * (max(x) - min(x) + 2 * margin))
    ends = (min(*x, *spots) - margin, max(*x, *spots) + margin)
    back = (lambda value: 10.0**value) if logarithmic else float
    axes.set_xscale("log" if logarithmic else "linear")
    axes.set_xlim(back(ends[0]), back(ends[1]))
    looks = look(arms)
    for (group, found), spot in zip(kept, spots, strict=True):
        colour, marker = looks[group.arm]
        each = [r.metrics[metric].value for r in group.records if metric in r.metrics]
        if len(each) > 1:
            axes.plot([back(spot)] * len(each), each, ".", color=colour, alpha=0.45, markersize=5, zorder=2)
        half = half_width(found)
        if math.isfinite(half):
            axes.errorbar([back(spot)], [found.value], yerr=[half], fmt="none", ecolor=colour, capsize=3, zorder=3)
        axes.plot([back(spot)], [found.value], marker, color=colour, markersize=7, label=group.arm, zorder=4)
    _ticks(axes, costs, spots, back, 0.1 * (ends[1] - ends[0]))
    axes.set_xlabel(f"adapter parameters in the checkpoint{', log scale' if logarithmic else ''}")
    return [back(spot) for spot in spots]


def side_by_side(x: Sequence[float], step: float) -> list[float]:
    """Places at least `step` apart, in the order of `x`; those that had to move stand around where they belong."""
    order = sorted(range(len(x)), key=lambda i: x[i])
    clusters: list[list[int]] = []
    for i in order:
        clusters.append([i])
        while len(clusters) > 1 and _start(x, clusters[-1], step) < _start(x, clusters[-2], step) + step * len(
            clusters[-2]
        ):
            last = clusters.pop()
            clusters[-1] += last
    placed = [0.0] * len(x)
    for cluster in clusters:
        for turn, i in enumerate(cluster):
            placed[i] = _start(x, cluster, step) + turn * step
    return placed


def _start(x: Sequence[float], cluster: Sequence[int], step: float) -> float:
    """Where the first of a cluster stands, if its middle is that of its members."""
    return sum(x[i] for i in cluster) / len(cluster) - step * (len(cluster) - 1) / 2


def _ticks(
    axes: "Axes", costs: Sequence[float], spots: Sequence[float], back: Callable[[float], float], gap: float
) -> None:
    """A tick under the points of each cost, as far as their labels do not touch."""
    kept: dict[float, str] = {}
    for cost in sorted(set(costs)):
        own = [spot for spot, other in zip(spots, costs, strict=True) if other == cost]
        middle = sum(own) / len(own)
        if not kept or middle - max(kept) > gap:
            kept[middle] = short_count(cost)
    axes.set_xticks([back(value) for value in kept], list(kept.values()))
    axes.set_xticks([], minor=True)
