"""The picture of a sweep: the metric against each searched value."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.experiments.plots import save_figure
from rankwise.experiments.schema import Distribution, SweepConfig
from rankwise.experiments.sweep_results import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DOT, _BEST = "#0072B2", "#D55E00"
_COLUMNS = 3


def plot_sweep(sweep: SweepConfig, metric: str, trials: Sequence[Trial], best: Trial, path: Path) -> Path:
    """Draw one panel per searched field: a dot per completed trial with its standard error, the best one marked.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    fields = list(sweep.search_space.items())
    columns = min(_COLUMNS, len(fields))
    rows = math.ceil(len(fields) / columns)
    figure = Figure(figsize=(3.6 * columns + 0.6, 3.0 * rows + 0.5), dpi=130, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    done = [trial for trial in trials if trial.value is not None]
    for axes, (field, spread) in zip(panels, fields, strict=False):
        _panel(axes, field, spread, done, best)
    for axes in panels[len(fields) :]:
        axes.set_visible(False)
    for row in range(rows):
        panels[row * columns].set_ylabel(f"{metric}, held-out examples")
    left_out = len(trials) - len(done)
    beside = f"; {left_out} pruned or failed ones are left out" if left_out else ""
    figure.suptitle(f"{len(done)} completed trials ± standard error{beside}", fontsize=10)
    return save_figure(figure, path)


def _panel(axes: "Axes", field: str, spread: Distribution, done: Sequence[Trial], best: Trial) -> None:
    names = [str(choice) for choice in spread.choices] if spread.choices is not None else None
    for trial in done:
        if trial.value is None:
            continue
        chosen = trial.values[field]
        x = float(names.index(str(chosen))) if names is not None else float(chosen)
        error = trial.value.se if math.isfinite(trial.value.se) else 0.0
        chief = trial.number == best.number
        axes.errorbar(
            [x],
            [trial.value.value],
            yerr=[error],
            fmt="D" if chief else "o",
            color=_BEST if chief else _DOT,
            alpha=1.0 if chief else 0.6,
            markersize=7 if chief else 5,
            capsize=2,
            zorder=4 if chief else 3,
            label="best" if chief else None,
        )
    if names is not None:
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif spread.log:
        axes.set_xscale("log")
    axes.set_xlabel(field)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize=8)
