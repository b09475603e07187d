"""Pictures of `rankwise explain`: where adapters open, for whom more than for others, and which ranks are used."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwise.experiments.adapter_plots import rank_values
from rankwise.experiments.module_grid import Grid, module_grid
from rankwise.experiments.plots import draw_ranks, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

MOST_PANELS = 11
"""Classes that get a panel: the ones with most examples."""
COLUMNS = 4
LONGEST = 90

Data = Mapping[str, Any]


def draw_activation(data: Data, path: Path, title: str) -> Path:
    """Heat maps, layers by kinds of matrix: percent of all examples that open a module, and for each class how many
    points more or fewer its examples do; returns the path.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    modules = data["modules"]
    grid = module_grid(modules)
    everywhere = rank_values(grid, {name: 100 * module["open"] for name, module in modules.items()})
    ordered = sorted(data["classes"], key=lambda name: -data["classes"][name]["examples"])[:MOST_PANELS]
    shifts = {
        label: rank_values(grid, {n: 100 * m["open_by_class"][label] for n, m in modules.items()}) - everywhere
        for label in data["classes"]
        if label in ordered
    }
    columns = min(COLUMNS, 1 + len(shifts))
    rows = math.ceil((1 + len(shifts)) / columns)
    width, height = max(2.2, len(grid.columns) * 0.5), max(1.4, len(grid.rows) * 0.27)
    figure = Figure(figsize=(columns * (width + 0.5) + 1.6, rows * (height + 0.9) + 0.6), dpi=130, layout="constrained")
    figure.suptitle(title if len(title) <= LONGEST else f"…{title[1 - LONGEST :]}", fontsize=10, parse_math=False)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    image = draw_ranks(panels[0], grid, everywhere, 100.0)
    panels[0].set_title("% of examples that open it", fontsize=9)
    figure.colorbar(image, ax=panels[0], aspect=25, pad=0.02)
    largest = max(1.0, *(float(np.nanmax(np.abs(shift))) for shift in shifts.values()))
    for axes, (label, shift) in zip(panels[1:], shifts.items(), strict=False):
        image = _draw_shift(axes, grid, shift, largest)
        count = data["classes"][label]["examples"]
        axes.set_title(f"{label[:24]} ({count:,}): points above all", fontsize=9, parse_math=False)
        figure.colorbar(image, ax=axes, aspect=25, pad=0.02)
    for axes in panels[: 1 + len(shifts)]:
        if max(len(column) for column in grid.columns) > 5:
            axes.tick_params(axis="x", rotation=60)
    for axes in panels[1 + len(shifts) :]:
        axes.remove()
    return save_figure(figure, path)


def draw_ranks_used(data: Data, path: Path, title: str) -> Path:
    """Bars: how many decisions used which rank, and the metric of the least to the most adapted third of the examples;
    returns the path.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    counts = {int(rank): count for rank, count in data["ranks_used"].items()}
    total = sum(counts.values())
    figure = Figure(figsize=(9.0, 3.6), dpi=130, layout="constrained")
    figure.suptitle(title if len(title) <= LONGEST else f"…{title[1 - LONGEST :]}", fontsize=10, parse_math=False)
    left, right = figure.subplots(1, 2)
    left.bar(list(counts), [100 * count / total for count in counts.values()], color="#0072B2")
    left.set_xlabel("rank used (0: closed)" if data["kind"] == "modules" else "block (0: skipped, 1: run)")
    left.set_ylabel("% of decisions")
    left.xaxis.get_major_locator().set_params(integer=True)
    thirds = data["thirds"]
    errors = [third["se"] or 0.0 for third in thirds]
    names = [f"{third['third']}\n(n = {third['examples']:,})" for third in thirds]
    right.errorbar(
        range(len(thirds)), [third["value"] for third in thirds], errors, fmt="o", color="#D55E00", capsize=4
    )
    right.set_xticks(range(len(thirds)), names, fontsize=8)
    right.set_xlim(-0.5, len(thirds) - 0.5)
    right.set_ylabel(f"{thirds[0]['metric']} ± standard error")
    for axes in (left, right):
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def _draw_shift(axes: "Axes", grid: Grid, values: np.ndarray, largest: float) -> "AxesImage":
    """Differences `(rows, columns)`, red above 0 and blue below, NaN where there is no module."""
    image = axes.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    axes.set_facecolor("0.93")
    whole = {row for row, column in grid.cells.values() if column is None}
    for row, entries in enumerate(values):
        for column, value in enumerate(entries):
            if not math.isnan(value) and (row not in whole or column == 0):
                x = (len(grid.columns) - 1) / 2 if row in whole else column
                colour = "white" if abs(value) > 0.6 * largest else "black"
                axes.text(
                    x,
                    row,
                    f"{value:+.0f}" if abs(value) >= 0.5 else "0",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=colour,
                )
    axes.set_xticks(range(len(grid.columns)), grid.columns, fontsize=9)
    axes.set_yticks(range(len(grid.rows)), grid.rows, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image
