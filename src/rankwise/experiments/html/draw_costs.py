"""What the runs cost: training time, memory and peak parameters, bars of means with a point for every run."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rankwise.experiments.html.groups import Group
from rankwise.experiments.html.pictures import INK, Picture, look, short, style
from rankwise.experiments.html.words import MEASURED, count, mebibytes, number, seconds, slug, some
from rankwise.experiments.records import RunRecord
from rankwise.experiments.table import short_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORY = "peak_memory_bytes"
_TITLES = {"time": "training time", "memory": "peak memory", "peak": "peak parameters"}


def draw_costs(groups: Sequence[Group], arms: Sequence[str]) -> list[Picture]:
    """Training time, memory where runs say it, and peak parameters, one figure each per task."""
    pictures = []
    for task in dict.fromkeys(group.task for group in groups):
        own = [group for group in groups if group.task == task]
        pictures.append(
            _bars(task, own, list(arms), "time", "training time without evaluation, seconds", _time, seconds)
        )
        label = "most memory held at once in training, MiB"
        pictures.append(_bars(task, own, list(arms), "memory", label, _memory, mebibytes))
        pictures.append(_bars(task, own, list(arms), "peak", "most adapter parameters trained at once", _peak, count))
    return [picture for picture in pictures if picture is not None]


def draw_measured(groups: Sequence[Group], arms: Sequence[str], names: Sequence[str]) -> list[Picture]:
    """What was counted when training was done (`run_costs`), one figure each per task that has it."""
    pictures = []
    for name in names:
        for task in dict.fromkeys(group.task for group in groups):
            own = [group for group in groups if group.task == task]
            write = count if name == "inference_flops" else number
            pictures.append(_bars(task, own, list(arms), name, MEASURED[name], _measured(name), write))
    return [picture for picture in pictures if picture is not None]


def _measured(name: str) -> Callable[[RunRecord], float]:
    return lambda record: record.costs.get(name, math.nan)


def _time(record: RunRecord) -> float:
    return record.train_seconds


def _memory(record: RunRecord) -> float:
    return record.costs.get(MEMORY, math.nan) / 2**20


def _peak(record: RunRecord) -> float:
    return float(record.peak_parameters)


def _bars(
    task: str,
    groups: list[Group],
    arms: list[str],
    name: str,
    label: str,
    value: Callable[[RunRecord], float],
    write: Callable[[float], str],
) -> Picture | None:
    found = [(group, [v for r in group.records if math.isfinite(v := value(r))]) for group in groups]
    found = [(group, values) for group, values in found if values]
    if not found:
        return None
    budgets = {group.budget for group, _ in found}
    labels = [f"{short(g.arm, 18)} {g.budget}" if len(budgets) > 1 else short(g.arm, 20) for g, _ in found]
    means = [sum(values) / len(values) for _, values in found]
    wide = max(means) > 30 * min(means) > 0

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for y, ((group, values), mean) in enumerate(zip(found, means, strict=True)):
            colour, marker = look(arms)[group.arm]
            if wide:  # a bar has no beginning on a logarithmic axis
                axes.plot([mean], [y], marker, color=colour, markersize=9)
            else:
                axes.barh(y, mean, height=0.62, color=colour, alpha=0.55, linewidth=0)
            axes.plot(values, [y] * len(values), ".", color=INK, markersize=4)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        if wide:
            axes.set_xscale("log")
            axes.set_xlim(0.6 * min(means), 1.6 * max(means))
        axes.set_xlabel(label + (", log scale" if wide else ""))
        axes.xaxis.set_major_formatter(lambda v, _: short_count(v) if v >= 1 or v == 0 else f"{v:g}")
        style(axes, grid="x")
        axes.tick_params(axis="y", length=0)
        if not wide:
            axes.axvline(0, color=INK, linewidth=0.8)  # where the bars begin
            axes.locator_params(axis="x", nbins=6)

    counts = sorted({len(values) for _, values in found})
    runs = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    table = "The table below" if name in ("time", "peak") else "The table “Counted when training was done”"
    said = [f"{n}: {write(m)} (n = {some(len(v), 'run')})" for n, m, (_, v) in zip(labels, means, found, strict=True)]
    return Picture(
        slug(f"{name}-{task}"),
        f"{short(task, 32)}: {_TITLES.get(name, name.replace('_', ' '))}",
        "; ".join(said),
        f"{'Coloured marks' if wide else 'Bars'}: mean over the runs of an arm; dots: every run "
        f"(n = {runs}). {table} has the numbers.",
        0.75 + 0.27 * len(found),
        draw,
    )
