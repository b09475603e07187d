"""The two pictures of a comparison, as PNG files: metric against parameters, and where the ranks went.

Drawn with Matplotlib's own objects on an off-screen canvas: no window, no global state, any thread.
"""

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from rankwise.errors import DataError
from rankwise.experiments.module_grid import Grid, module_grid
from rankwise.experiments.records import RunRecord
from rankwise.experiments.results import write_atomically
from rankwise.experiments.statistics import summarise
from rankwise.experiments.table import short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_DPI = 130
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart with any colour vision (Okabe and Ito, "Color universal design", 2008)."""
_MARKERS = "osD^vPX*"
_CLOSE = 0.08
"""Points closer than this share of the axis are drawn side by side."""
_SIDE_STEP = 0.045

_CELL = (0.44, 0.27)
"""Width and height of a heat map cell, inches."""
_LETTER = 0.08
"""Width of a letter of the tick labels, inches."""

Group: TypeAlias = tuple[str, str | None]
"""Method and budget."""


def plot_metric_against_parameters(records: Sequence[RunRecord], path: str | Path, metric: str) -> Path:
    """Draw the metric's mean and standard error over the seeds against the adapter parameters; returns the path.

    One colour and marker per method, a faint dot per seed. An existing file is replaced.

    Raises:
        DataError: no completed run has that metric.
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    runs = [run for run in records if run.status == "completed" and metric in run.metrics]
    groups = _groups([run for run in runs if math.isfinite(run.metrics[metric].value)])
    if not groups:
        raise DataError(f"{path}: no completed run has a value of metric '{metric}' to draw")
    figure = Figure(figsize=(7.6, 4.4), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    mean_parameters = [sum(run.parameters for run in group) / len(group) for group in groups.values()]
    positions = _place_parameters(axes, mean_parameters)
    methods = list(dict.fromkeys(method for method, _ in groups))
    for (method, _), group, x in zip(groups, groups.values(), positions, strict=True):
        _draw_method(axes, group, x, metric, method, methods.index(method))
    axes.set_ylabel(metric.replace("_", " "))
    axes.set_title(
        f"{_setting(runs)}\n{_what_bars_mean(runs, groups, metric)}", fontsize=10, loc="left", parse_math=False
    )
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))  # a method with several budgets has one entry
    legend = axes.legend(entries.values(), entries.keys(), loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a "$" in a name is a "$"
    return save_figure(figure, Path(path))


def plot_rank_heatmap(records: Sequence[RunRecord], path: str | Path) -> Path:
    """Draw the rank of every module, mean over the seeds, one panel per method; returns the path.

    Methods without ranks (full fine-tuning) have no panel. A module that a run's rank pattern leaves out has rank 0;
    empty cells are matrices that the model does not have. An existing file is replaced.

    Raises:
        DataError: no completed run has ranks.
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    runs = [run for run in records if run.status == "completed" and run.rank_pattern]
    groups = _groups(runs)
    if not groups:
        raise DataError(f"{path}: no completed run has ranks to draw")
    grid = module_grid(dict.fromkeys(name for run in runs for name in run.rank_pattern))
    panels = {_panel_title(key, list(groups)): _mean_ranks(grid, group) for key, group in groups.items()}
    rows = math.ceil(len(panels) / 4)
    columns = math.ceil(len(panels) / rows)
    width, height = max(2.0, len(grid.columns) * _CELL[0]), max(1.2, len(grid.rows) * _CELL[1])
    longest = _LETTER * max(len(label) for label in grid.columns)
    turned = longest > width / len(grid.columns)
    height += longest if turned else 0.0
    figure = Figure(
        figsize=(max(6.0, columns * (width + 0.25) + 1.2), rows * (height + 0.75) + 0.7),
        dpi=_DPI,
        layout="constrained",
    )
    figure.suptitle(f"Rank per module and layer\n{_setting(runs)}", fontsize=10, parse_math=False)
    every = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    top = max(1.0, max(float(np.nanmax(values)) for values in panels.values()))
    for axes, (title, values) in zip(every, panels.items(), strict=False):
        image = draw_ranks(axes, grid, values, top)
        if turned:
            axes.tick_params(axis="x", rotation=60)
        axes.set_title(title, fontsize=10, parse_math=False)
    for axes in every[len(panels) :]:
        axes.remove()
    for axes in every[::columns]:
        axes.set_ylabel("layer")
    seeds = max(len(group) for group in groups.values())
    label = f"rank, mean over {seeds} seeds" if seeds > 1 else "rank"
    figure.colorbar(image, ax=list(every[: len(panels)]), label=label, aspect=30, pad=0.02, shrink=1 / rows)
    return save_figure(figure, Path(path))


def _groups(runs: Sequence[RunRecord]) -> dict[Group, list[RunRecord]]:
    groups: dict[Group, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault((run.method, run.budget), []).append(run)
    return groups


def _setting(runs: Sequence[RunRecord]) -> str:
    """Task, model and budget of the runs, cut from the left where they are long paths."""
    task, model = (", ".join(dict.fromkeys(getattr(run, name) for run in runs)) for name in ("task", "model"))
    budgets = ", ".join(dict.fromkeys(run.budget for run in runs if run.budget))
    task, model = (name if len(name) <= 32 else f"…{name[-31:]}" for name in (task, model))
    return f"{task} · {model}" + (f" · budget {budgets}" if budgets else "")


def _place_parameters(axes: "Axes", parameters: Sequence[float]) -> list[float]:
    """Set up the axis of parameters and say where each point goes: methods that cost (nearly) the same stand side by
    side, because they would hide each other."""
    low, high = min(parameters), max(parameters)
    logarithmic = low > 0 and high / low > 5
    x = np.log10(parameters) if logarithmic else np.asarray(parameters, dtype=float)
    spread = float(np.ptp(x))
    margin = 0.25 * spread if spread else max(1.0, 0.2 * high)
    ends = (float(x.min()) - margin, float(x.max()) + margin)
    clusters = _clusters(x, _CLOSE * (ends[1] - ends[0]))
    step = _SIDE_STEP if len(clusters) > 1 else min(0.15, 0.8 / len(parameters))
    placed, ticks = x.astype(float), []
    for members in clusters:
        ticks.append(float(np.mean([parameters[i] for i in members])))
        centre = float(x[members].mean())
        for turn, i in enumerate(sorted(members)):
            shift = (turn - (len(members) - 1) / 2) * step * (ends[1] - ends[0])
            placed[i] = centre + shift if len(members) > 1 else x[i]
    back = (lambda value: 10.0**value) if logarithmic else float
    axes.set_xscale("log" if logarithmic else "linear")
    axes.set_xlim(back(ends[0]), back(ends[1]))
    axes.set_xticks(ticks, [short_count(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    beside = "\n(equal or nearly equal counts are drawn side by side)" if len(clusters) < len(parameters) else ""
    axes.set_xlabel(f"adapter parameters in the checkpoint{', log scale' if logarithmic else ''}{beside}")
    return [back(value) for value in placed]


def _clusters(x: np.ndarray, gap: float) -> list[list[int]]:
    """Indices of the points, split where neighbours are further than `gap` apart."""
    order = [int(i) for i in np.argsort(x, kind="stable")]
    clusters = [[order[0]]]
    for before, i in itertools.pairwise(order):
        if x[i] - x[before] <= gap:
            clusters[-1].append(i)
        else:
            clusters.append([i])
    return clusters


def _what_bars_mean(runs: Sequence[RunRecord], groups: Mapping[Group, Sequence[RunRecord]], metric: str) -> str:
    seeds = sorted({len(group) for group in groups.values()})
    examples = max(run.metrics[metric].n for run in runs)
    if seeds == [1]:
        return f"± standard error over {examples:,} evaluation examples; one seed"
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"mean ± standard error over {count} seeds; small dots: the seeds"


def _draw_method(axes: "Axes", group: Sequence[RunRecord], x: float, metric: str, method: str, index: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.transforms import ScaledTranslation

    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    values = [run.metrics[metric] for run in group]
    mean = summarise(values)
    if len(group) > 1:
        beside = axes.transData + ScaledTranslation(-9 / 72, 0, axes.figure.dpi_scale_trans)
        each = [value.value for value in values]
        dots = Line2D([x] * len(each), each, linestyle="", marker=".", markersize=7, color=colour, transform=beside)
        dots.set(alpha=0.5, markeredgewidth=0)
        axes.add_artist(dots)
        axes.update_datalim([(x, value) for value in each])  # an artist of its own does not stretch the axes
    error = mean.se if math.isfinite(mean.se) else 0.0
    axes.errorbar([x], [mean.value], yerr=[error], fmt="none", ecolor=colour, capsize=4, elinewidth=1.6, zorder=3)
    axes.plot([x], [mean.value], marker, color=colour, markersize=9, markeredgecolor="white", label=method, zorder=4)


def _panel_title(key: Group, keys: Sequence[Group]) -> str:
    method, budget = key
    return f"{method}, {budget}" if sum(other == method for other, _ in keys) > 1 else method


def _mean_ranks(grid: Grid, group: Sequence[RunRecord]) -> np.ndarray:
    """Ranks `(rows, columns)`: mean over seeds, and over modules that share a cell; NaN where there is none."""
    total, count = np.zeros((len(grid.rows), len(grid.columns))), np.zeros((len(grid.rows), len(grid.columns)))
    for name, (row, column) in grid.cells.items():
        where = (row, slice(None) if column is None else column)
        total[where] += sum(run.rank_pattern.get(name, 0) for run in group) / len(group)
        count[where] += 1
    return np.divide(total, count, out=np.full_like(total, math.nan), where=count > 0)


def draw_ranks(axes: "Axes", grid: Grid, values: np.ndarray, top: float) -> "AxesImage":
    """Fill `axes` with ranks `(rows, columns)` of a grid, NaN where there is no matrix; colours end at `top`."""
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=top, aspect="auto")
    axes.set_facecolor("0.93")
    whole = {row for row, column in grid.cells.values() if column is None}
    for row in range(len(grid.rows)):
        if row in whole:
            _write_rank(axes, (len(grid.columns) - 1) / 2, row, values[row, 0], top)
            continue
        for column in range(len(grid.columns)):
            if not math.isnan(values[row, column]):
                _write_rank(axes, column, row, values[row, column], top)
    axes.set_xticks(range(len(grid.columns)), grid.columns, fontsize=9)
    axes.set_yticks(range(len(grid.rows)), grid.rows, fontsize=9)
    axes.tick_params(length=0, labelbottom=True)
    axes.spines[:].set_visible(False)
    return image


def _write_rank(axes: "Axes", x: float, y: float, rank: float, top: float) -> None:
    text = f"{rank:.0f}" if abs(rank - round(rank)) < 0.05 else f"{rank:.1f}"
    axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if rank < 0.6 * top else "black")


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure as SVG if the file's name ends so, else as PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    content = io.BytesIO()
    if path.suffix.lower() == ".svg":
        FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None})
    else:
        FigureCanvasAgg(figure).print_png(content)
    return write_atomically(path, content.getvalue())
