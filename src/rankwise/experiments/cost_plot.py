"""The picture of costs: how long inference takes against how good it is."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.experiments.adapter_plots import check_plot_path
from rankwise.experiments.cost_subject import LORA, OWN
from rankwise.experiments.plots import save_figure
from rankwise.experiments.records import RunRecord
from rankwise.experiments.statistics import summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Data = Mapping[str, Any]
Measured = tuple[RunRecord, Data]
MARKERS = "osD^vPX*"


def plot_latency(measured: Sequence[Measured], path: Path, metric: str) -> Path:
    """Draw a metric (mean and standard error over seeds) against latency over merged LoRA's; returns the path.

    One panel per batch size, one colour per method and budget. A filled marker is the form that it would be served in
    (merged where that can be), an open one the adapter beside its base model. An existing file is replaced.

    Args:
        measured: completed runs with their costs (`cost_measure.measure_source`).
        path: a PNG or SVG file.
        metric: name.

    Raises:
        DataError: the file's name is of no picture.
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    check_plot_path(path)
    groups: dict[tuple[str, str | None], list[Measured]] = {}
    for record, data in measured:
        groups.setdefault((record.method, record.budget), []).append((record, data))
    sizes = [at["batch_size"] for at in measured[0][1]["latency"]]
    figure = Figure(figsize=(3.6 * len(sizes) + 2.4, 4.2), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for index, (axes, size) in enumerate(zip(panels, sizes, strict=True)):
        for number, (key, runs) in enumerate(groups.items()):
            _draw(axes, runs, index, metric, _label(key, groups), number)
        axes.axvline(1.0, color="0.8", zorder=0)
        axes.set_title(f"batch size {size}", fontsize=10)
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("latency / merged LoRA")
    panels[0].set_ylabel(metric.replace("_", " "))
    _legend(panels[-1])
    return save_figure(figure, path)


def points(runs: Sequence[Measured], index: int) -> dict[str, tuple[float, float, float]]:
    """(median, lowest, highest) over seeds of the latency ratio at batch size number `index`: as `served`, and as the
    `adapter` beside its base model where that is something else."""
    found = {}
    for name in ("served", "adapter"):
        ratios = [r for _, data in runs if (r := _ratio(data, name, index)) is not None]
        if ratios:
            found[name] = (statistics.median(ratios), min(ratios), max(ratios))
    return found


def _ratio(data: Data, name: str, index: int) -> float | None:
    variants = data["latency"][index]["variants"]
    served = data["served"]
    if name == "served":
        return float(variants[served]["ratio"]["median"])
    other = next((form for form in (OWN, LORA) if form in variants), None)
    return None if other in (None, served) else float(variants[other]["ratio"]["median"])


def _draw(axes: "Axes", runs: Sequence[Measured], index: int, metric: str, label: str, number: int) -> None:
    colour, marker = f"C{number % 10}", MARKERS[number % len(MARKERS)]
    mean = summarise([record.metrics[metric] for record, _ in runs])
    error = mean.se if math.isfinite(mean.se) else 0.0
    for name, (x, low, high) in points(runs, index).items():
        filled = name == "served"
        axes.errorbar(
            [x],
            [mean.value],
            yerr=[error],
            xerr=[[x - low], [high - x]],
            fmt=marker,
            color=colour,
            markerfacecolor=colour if filled else "white",
            markersize=8,
            capsize=3,
            elinewidth=1.2,
            label=label if filled else "_",
        )


def _label(key: tuple[str, str | None], keys: Mapping[tuple[str, str | None], Any]) -> str:
    method, budget = key
    return f"{method}, {budget}" if sum(other == method for other, _ in keys) > 1 else method


def _legend(axes: "Axes") -> None:
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    for face in ("0.4", "white"):
        handles.append(Line2D([], [], linestyle="", marker="o", color="0.4", markersize=8, markerfacecolor=face))
    labels += ["filled: as served", "open: adapter not merged"]
    legend = axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a "$" in a name is a "$"
