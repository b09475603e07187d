"""Pictures of one adapter: where its ranks are, and the singular values of every module's ΔW."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankwise.adapters.spectra import Spectrum
from rankwise.errors import DataError, OutputError
from rankwise.experiments.module_grid import Grid, module_grid, place_of
from rankwise.experiments.plots import draw_ranks, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table
    from rich.text import Text

SUFFIXES = (".png", ".svg")
SHADES = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
"""Five colours of Matplotlib's viridis, dark to light, for the terminal."""


def check_plot_path(path: Path) -> Path:
    """`path`, if it is a picture that can be drawn.

    Raises:
        DataError: it ends otherwise.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: cannot draw a '{path.suffix}' file; the name must end in {' or '.join(SUFFIXES)}")
    return path


def new_plot_path(path: Path) -> Path:
    """The same for a picture that somebody asked for by name: nothing is replaced.

    Raises:
        DataError: see `check_plot_path`.
        OutputError: the file exists.
    """
    if path.exists():
        raise OutputError(f"{path} exists; choose another name, or remove it first")
    return check_plot_path(path)


def plot_adapter(spectra: Mapping[str, Spectrum], ranks: Mapping[str, int], path: Path, title: str) -> Path:
    """Draw the rank heat map, and beside it the singular values of every module by kind of matrix; returns the path.

    An existing file is replaced.

    Raises:
        DataError: the file's name is of no picture.
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    check_plot_path(path)
    grid = module_grid(ranks)
    width = max(2.4, len(grid.columns) * 0.5)
    height = max(2.4, len(grid.rows) * 0.27) + 1.2
    figure = Figure(figsize=(width + 6.0, height), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(width, 4.4))
    figure.suptitle(title if len(title) <= 80 else f"…{title[-79:]}", fontsize=10, parse_math=False)
    values = rank_values(grid, ranks)
    image = draw_ranks(left, grid, values, max(1.0, float(np.nanmax(values))))
    if max(len(column) for column in grid.columns) > 5:
        left.tick_params(axis="x", rotation=60)
    left.set_title("rank per module", fontsize=10)
    figure.colorbar(image, ax=left, aspect=30, pad=0.02)
    _draw_spectra(right, spectra, grid.columns)
    return save_figure(figure, path)


def plot_usage(ranks: Mapping[str, float], shares: Mapping[str, float], path: Path, title: str) -> Path:
    """Draw the rank heat map, and beside it how often modules (or blocks) are open; returns the path.

    An existing file is replaced.

    Args:
        ranks: module -> rank.
        shares: module or block -> percent; empty if it was not measured.
        path: of the picture.
        title: above both.

    Raises:
        DataError: the file's name is of no picture.
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    check_plot_path(path)
    panels = [
        ("rank per module", ranks, max(1.0, *ranks.values())),
        ("% of training examples that open it", shares, 100.0),
    ]
    panels = [panel for panel in panels if panel[1]]
    grids = [module_grid(values) for _, values, _ in panels]
    height = max(2.4, max(len(grid.rows) for grid in grids) * 0.27) + 1.2
    figure = Figure(figsize=(len(panels) * 4.2, height), dpi=130, layout="constrained")
    figure.suptitle(title if len(title) <= 80 else f"…{title[-79:]}", fontsize=10, parse_math=False)
    every = figure.subplots(1, len(panels), squeeze=False).ravel()
    for axes, grid, (name, values, top) in zip(every, grids, panels, strict=True):
        image = draw_ranks(axes, grid, rank_values(grid, values), top)
        if max(len(column) for column in grid.columns) > 5:
            axes.tick_params(axis="x", rotation=60)
        axes.set_title(name, fontsize=10)
        figure.colorbar(image, ax=axes, aspect=30, pad=0.02)
    return save_figure(figure, path)


def rank_values(grid: Grid, ranks: Mapping[str, float]) -> np.ndarray:
    """Ranks (or other numbers) `(rows, columns)`, mean over modules that share a cell, NaN where there is no module."""
    total = np.zeros((len(grid.rows), len(grid.columns)))
    count = np.zeros_like(total)
    for name, (row, column) in grid.cells.items():
        where = (row, slice(None) if column is None else column)
        total[where] += ranks[name]
        count[where] += 1
    return np.divide(total, count, out=np.full_like(total, math.nan), where=count > 0)


def rank_table(ranks: Mapping[str, int]) -> "Table":
    """The heat map for a terminal: layers by kinds of matrix."""
    return grid_table(ranks, "rank per module", max(1.0, *ranks.values()))


def grid_table(values: Mapping[str, float], title: str, top: float) -> "Table":
    """Any number per module, layers by kinds of matrix, mean over modules that share a cell.

    Args:
        values: module -> number.
        title: above the table.
        top: what the lightest colour means; the darkest is 0.
    """
    from rich.table import Table
    from rich.text import Text

    grid = module_grid(values)
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    table.add_column("layer", justify="right")
    for column in grid.columns:
        table.add_column(column, justify="center")
    for label, row in zip(grid.rows, rank_values(grid, values), strict=True):
        table.add_row(label, *(Text("") if math.isnan(value) else _cell(value, top) for value in row))
    return table


def _cell(value: float, top: float) -> "Text":
    from rich.text import Text

    shade = min(len(SHADES) - 1, int(value / top * len(SHADES)))
    text = f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"
    return Text(f" {text} ", style=f"{'black' if shade >= 3 else 'white'} on {SHADES[shade]}")


def _draw_spectra(axes: "Axes", spectra: Mapping[str, Spectrum], columns: Sequence[str]) -> None:
    """One line per module, one colour per kind of matrix; a logarithmic axis, so zeros are left out."""
    kinds = list(dict.fromkeys([*columns, *(place_of(name).kind for name in spectra)]))
    labelled: set[str] = set()
    for name, spectrum in sorted(spectra.items(), key=lambda item: kinds.index(place_of(item[0]).kind)):
        kind = place_of(name).kind
        values = [value for value in spectrum.values if value > 1e-12]
        if values:
            label = kind if kind not in labelled else "_"
            labelled.add(kind)
            x = range(1, len(values) + 1)
            axes.plot(x, values, ".-", color=f"C{kinds.index(kind) % 10}", alpha=0.6, linewidth=0.9, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("component")
    axes.set_title("singular values of ΔW", fontsize=10)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    if labelled:
        legend = axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        for text in legend.get_texts():
            text.set_parse_math(False)
