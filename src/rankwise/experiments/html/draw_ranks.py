"""Where the ranks went: layers × matrices, mean over the seeds, one figure per arm and budget."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rankwise.experiments.html.groups import Group
from rankwise.experiments.html.pictures import INK, WIDTH, Picture, short, style
from rankwise.experiments.html.words import slug, some
from rankwise.experiments.module_grid import Grid, module_grid
from rankwise.experiments.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 18
"""More figures than this are not looked at: tasks are then averaged."""


def draw_rank_maps(groups: Sequence[Group]) -> list[Picture]:
    """Heat maps of every arm with ranks, per task while that is at most `MOST` figures; all with one colour scale."""
    ranked = [group for group in groups if any(record.rank_pattern for record in group.records)]
    if not ranked:
        return []
    places: dict[tuple[str, str, str], list[RunRecord]] = {}
    alone = len(ranked) <= MOST
    for group in ranked:
        places.setdefault((group.arm, group.budget, group.task if alone else ""), []).extend(group.records)
    grid = module_grid(dict.fromkeys(name for group in ranked for r in group.records for name in r.rank_pattern))
    maps = {place: mean_ranks(grid, [r.rank_pattern for r in runs]) for place, runs in places.items()}
    top = max(1.0, max(float(np.nanmax(values)) for values in maps.values()))
    pictures = []
    for budget, task, arms, values in _alike(maps):
        runs = [record for arm in arms for record in places[arm, budget, task]]
        pictures.append(_picture((", ".join(arms), budget, task), runs, grid, values, top))
    return pictures


def _alike(maps: Mapping[tuple[str, str, str], np.ndarray]) -> list[tuple[str, str, list[str], np.ndarray]]:
    """Budget, task, arms and map: arms whose ranks are the same everywhere share one."""
    found: list[tuple[str, str, list[str], np.ndarray]] = []
    for (arm, budget, task), values in maps.items():
        for other_budget, other_task, arms, other in found:
            if (other_budget, other_task) == (budget, task) and np.array_equal(values, other, equal_nan=True):
                arms.append(arm)
                break
        else:
            found.append((budget, task, [arm], values))
    return found


def mean_ranks(grid: Grid, patterns: Sequence[Mapping[str, int]]) -> np.ndarray:
    """Ranks `(rows, columns)`: mean over runs, and over modules that share a cell; NaN where there is no module."""
    total, modules = (np.zeros((len(grid.rows), len(grid.columns))) for _ in range(2))
    for name, (row, column) in grid.cells.items():
        where = (row, slice(None) if column is None else column)
        total[where] += sum(pattern.get(name, 0) for pattern in patterns) / len(patterns)
        modules[where] += 1
    return np.divide(total, modules, out=np.full_like(total, math.nan), where=modules > 0)


def _picture(place: tuple[str, str, str], runs: list[RunRecord], grid: Grid, values: np.ndarray, top: float) -> Picture:
    arm, budget, task = place
    tasks = len({run.task for run in runs})
    over = some(len({run.seed for run in runs}), "seed") + (f" and {tasks} tasks" if tasks > 1 else "")
    rows = [f"layer {label}: {np.nanmean(values[i]):.1f}" for i, label in enumerate(grid.rows)]
    columns = [f"{label} {np.nanmean(values[:, i]):.1f}" for i, label in enumerate(grid.columns)]
    turned = max(len(label) for label in grid.columns) * len(grid.columns) > 44

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.pcolormesh(np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=top, edgecolor="none")
        for i, j in np.ndindex(values.shape):
            if not math.isnan(values[i, j]):
                colour = "#ffffff" if values[i, j] < 0.6 * top else "#000000"
                rank = float(values[i, j])
                text = f"{rank:.0f}" if abs(rank - round(rank)) < 0.05 else f"{rank:.1f}"
                axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=9, color=colour)
        axes.set_xticks(np.arange(len(grid.columns)) + 0.5, grid.columns, rotation=45 if turned else 0)
        axes.set_yticks(np.arange(len(grid.rows)) + 0.5, grid.rows)
        axes.invert_yaxis()
        axes.set_ylabel("layer")
        style(axes)
        axes.grid(visible=False)
        axes.tick_params(length=0, colors=INK)
        axes.spines[:].set_visible(False)

    where = ", ".join(filter(None, [short(task, 24), budget]))
    return Picture(
        slug("-".join(["ranks", arm, budget, task])),
        f"{arm}{f' ({where})' if where else ''}",
        f"Mean rank by layer, {'; '.join(rows)}. By matrix: {', '.join(columns)}.",
        f"Rank of every matrix, mean over {over}; colours run from 0 to {top:.0f} in all heat maps. "
        "Empty cells: the model has no such matrix, or it has no adapter.",
        max(1.4, 0.25 * len(grid.rows)) + (0.9 if turned else 0.5),
        draw,
        WIDTH if len(grid.columns) <= 9 else min(10.0, 0.55 * len(grid.columns)),
    )
