"""Learning curves: the training loss, smoothed, mean and band over the seeds; and tuning curves per arm."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rankwise.experiments.html.groups import Group, places_of
from rankwise.experiments.html.inputs import TuningRow
from rankwise.experiments.html.pictures import Picture, legend, legend_height, line, look, short, style
from rankwise.experiments.html.words import number, slug, some
from rankwise.experiments.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS = "train_loss"
POINTS = 100
"""Of a drawn curve; more cannot be told apart at this size."""
_WINDOW = 0.04

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values, each `(points,)`."""


def curves_of(groups: Sequence[Group], store: Store) -> dict[Group, dict[int, Curve]]:
    """The training loss of every run that has one, by seed."""
    found: dict[Group, dict[int, Curve]] = {}
    for group in groups:
        for record in group.records:
            rows = [(step, value) for step, value in store.steps(record.run_id, LOSS) if math.isfinite(value)]
            if rows:
                steps, values = np.array(rows, dtype=float).T
                found.setdefault(group, {})[record.seed] = (steps, values)
    return found


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean over `window` values, shorter at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(0, index - window // 2), np.minimum(len(values), index + window // 2 + 1)
    means: np.ndarray = (sums[high] - sums[low]) / (high - low)
    return means


def band(curves: Mapping[int, Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean and standard deviation over seeds of smoothed curves, at no more than `POINTS` common steps."""
    end = min(float(steps[-1]) for steps, _ in curves.values())
    start = max(float(steps[0]) for steps, _ in curves.values())
    longest = max(len(steps) for steps, _ in curves.values())
    at = np.linspace(start, max(start, end), min(POINTS, longest))
    each = np.stack([
        np.interp(at, steps, smooth(values, max(1, round(_WINDOW * len(values))))) for steps, values in curves.values()
    ])  # fmt: skip
    return at, each.mean(axis=0), each.std(axis=0, ddof=1) if len(each) > 1 else np.zeros(len(at))


def draw_curves(curves: Mapping[Group, Mapping[int, Curve]], arms: Sequence[str]) -> list[Picture]:
    """One figure per task and budget."""
    return [_learning(place, groups, curves, list(arms)) for place, groups in places_of(list(curves)).items()]


def _learning(
    place: tuple[str, str], groups: list[Group], curves: Mapping[Group, Mapping[int, Curve]], arms: list[str]
) -> Picture:
    bands = {group: band(curves[group]) for group in groups}
    said = [
        f"{group.arm} from {number(mean[0], 3)} to {number(mean[-1], 3)} over {some(len(curves[group]), 'seed')}"
        for group, (_, mean, _) in bands.items()
    ]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for group, (at, mean, spread) in bands.items():
            colour, _ = look(arms)[group.arm]
            axes.fill_between(at, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
            axes.plot(at, mean, line(arms, group.arm), color=colour, linewidth=1.6, label=group.arm)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss, smoothed")
        style(axes)
        legend(axes)

    task, budget = place
    return Picture(
        slug(f"learning-{task}-{budget}"),
        f"{short(task, 32)}{f', {budget}' if budget else ''}: training loss",
        "; ".join(said),
        f"Running mean over {_WINDOW:.0%} of the steps; line: mean over seeds, band: ± one standard deviation of the "
        "seeds. Training loss ranks no method: what counts is the metric on validation examples.",
        2.7 + legend_height(len(groups)),
        draw,
    )


def draw_tuning(trials: Sequence[TuningRow], arms: Sequence[str]) -> list[Picture]:
    """The search of every arm, one figure per task and budget: an arm without one has no curve."""
    places = dict.fromkeys((trial.task, trial.budget) for trial in trials if math.isfinite(trial.value))
    return [_tuning(place, [t for t in trials if (t.task, t.budget) == place], list(arms)) for place in places]


def _tuning(place: tuple[str, str], trials: list[TuningRow], arms: list[str]) -> Picture:
    own = list(dict.fromkeys(trial.arm for trial in trials))
    chosen = [f"{t.arm}: {t.learning_rate:g} of {sum(o.arm == t.arm for o in trials)}" for t in trials if t.chosen]
    metric = next((trial.metric for trial in trials if trial.metric), "metric")

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        all_arms = list(dict.fromkeys([*arms, *own]))
        looks = look(all_arms)
        for arm in own:
            rows = sorted((t for t in trials if t.arm == arm), key=lambda t: t.learning_rate)
            colour, marker = looks[arm]
            x, y = [t.learning_rate for t in rows], [t.value for t in rows]
            axes.plot(x, y, line(all_arms, arm), color=colour, marker=marker, markersize=4.5, linewidth=1.3, label=arm)
            errors = [t.se if math.isfinite(t.se) else 0.0 for t in rows]
            if any(errors):
                axes.errorbar(x, y, yerr=errors, fmt="none", ecolor=colour, elinewidth=1, alpha=0.6)
            best = [t for t in rows if t.chosen]
            axes.plot(
                [t.learning_rate for t in best], [t.value for t in best], marker, color="none",
                markeredgecolor=colour, markersize=12, markeredgewidth=1.6,
            )  # fmt: skip
        axes.set_xscale("log")
        rates = sorted({t.learning_rate for t in trials})
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45 if len(rates) > 4 else 0)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("learning rate, log scale")
        axes.set_ylabel(metric.replace("_", " "))
        style(axes)
        legend(axes)

    task, budget = place
    return Picture(
        slug(f"tuning-{task}-{budget}"),
        f"{short(task, 32)}{f', {budget}' if budget else ''}: {metric.replace('_', ' ')} by learning rate",
        f"Chosen learning rates and numbers of trials: {'; '.join(chosen) or 'none chosen yet'}.",
        "On a part of the training examples, never on the evaluation split. A ring marks what was chosen; "
        "bars: ± standard error over examples, where it was kept. One at the end of a curve may lie beyond the search.",
        2.8 + legend_height(len(own)),
        draw,
    )
