"""What came of a sweep's trials: the best one, what must be known about it in words, and a table. Imports no torch."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rankwise.errors import TrainingError
from rankwise.experiments.schema import Distribution, Scalar, SweepConfig
from rankwise.experiments.sweep_space import Values, points
from rankwise.tasks.base import MetricValue

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

State: TypeAlias = Literal["complete", "pruned", "failed", "running", "waiting"]
_STATES: dict[str, State] = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
_NEAR_END = 0.02
"""A best value this near to an end of its range, as a share of the range on its scale, lies on the edge."""


@dataclass(frozen=True)
class Trial:
    """One trial: what was chosen, and the metric on the held-out examples (None unless it is complete)."""

    number: int
    state: State
    values: Values
    value: MetricValue | None
    run_id: str | None
    reason: str
    train_seconds: float | None


def trial_of(number: int, found: "FrozenTrial") -> Trial:
    """An Optuna trial in our words; `number` counts the wanted trials, not the attempts at them."""
    said = found.user_attrs
    state = _STATES[found.state.name]
    value = None
    if state == "complete" and found.value is not None:
        value = MetricValue(float(found.value), float(said.get("se", math.nan)), int(said.get("n", 0)))
    reason = str(said.get("reason", "its worker died every time" if state == "failed" else ""))
    return Trial(number, state, dict(found.params), value, said.get("run_id"), reason, said.get("train_seconds"))


def best_of(trials: Sequence[Trial], direction: Literal["maximize", "minimize"]) -> Trial:
    """The completed trial with the best value, the earlier one of equals.

    Raises:
        TrainingError: no trial was completed.
    """
    done = [(trial.value.value, trial) for trial in trials if trial.state == "complete" and trial.value is not None]
    if not done:
        reasons = sorted({trial.reason for trial in trials if trial.reason})
        raise TrainingError(f"none of the {len(trials)} trials was completed: {'; '.join(reasons[:3])}")
    sign = -1 if direction == "maximize" else 1
    return min(done, key=lambda pair: (sign * pair[0], pair[1].number))[1]


def notes(sweep: SweepConfig, metric: str, trials: Sequence[Trial], best: Trial) -> list[str]:
    """What a reader of the best value must know."""
    said = []
    for state in ("pruned", "failed"):
        if count := sum(trial.state == state for trial in trials):
            said.append(f"{count} of {len(trials)} trials {state}; trials.csv says why")
    runs = [trial.run_id for trial in trials if trial.run_id is not None]
    if repeated := len(runs) - len(set(runs)):
        said.append(f"{repeated} of {len(trials)} trials repeated the run of another and cost nothing")
    said += _edges(sweep, best)
    said.append(
        f"{metric} of the trials is measured on {sweep.holdout:.0%} of the training examples; that of the best one is "
        "the best of several, so it flatters: the report measures it anew on the validation examples"
    )
    return said


def _edges(sweep: SweepConfig, best: Trial) -> Iterator[str]:
    for path, spread in sweep.search_space.items():
        end = _end(sweep, spread, best.values[path])
        if end is not None:
            shown = f"{best.values[path]:.4g}" if isinstance(best.values[path], float) else best.values[path]
            yield f"{path}: the best value ({shown}) is the {end} of what is searched ({spread}); search further there"


def _end(sweep: SweepConfig, spread: Distribution, value: Scalar) -> str | None:
    """`smallest` or `largest` if a value is at that end of its range; choices have ends if they are numbers."""
    if isinstance(value, bool | str):
        return None
    if spread.choices is not None:
        numbers = [choice for choice in spread.choices if isinstance(choice, int | float)]
        if len(numbers) < max(3, len(spread.choices)):  # of two choices one is always at an end
            return None
        return {min(numbers): "smallest", max(numbers): "largest"}.get(value)
    low, high = float(spread.low or 0), float(spread.high or 0)
    if sweep.sampler == "grid":
        ends = points(spread, sweep.grid_points)
        return {ends[0]: "smallest", ends[-1]: "largest"}.get(value)
    share = (float(value) - low) / (high - low)
    if spread.log:
        share = math.log(float(value) / low) / math.log(high / low)
    return "smallest" if share < _NEAR_END else "largest" if share > 1 - _NEAR_END else None


def trials_csv(sweep: SweepConfig, metric: str, trials: Sequence[Trial]) -> str:
    """The trials as a table: one row each, one column per searched field."""
    paths = list(sweep.search_space)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", *paths, metric, "se", "n", "train_seconds", "run_id", "reason"])
    for trial in trials:
        measured = (trial.value.value, trial.value.se, trial.value.n) if trial.value else ("", "", "")
        chosen = [trial.values.get(path, "") for path in paths]
        seconds = "" if trial.train_seconds is None else f"{trial.train_seconds:.3f}"
        writer.writerow([trial.number, trial.state, *chosen, *measured, seconds, trial.run_id or "", trial.reason])
    return text.getvalue()


def trial_json(trial: Trial) -> dict[str, Any]:
    """A trial as JSON-ready data."""
    measured = None
    if (value := trial.value) is not None:
        measured = {"value": value.value, "se": value.se if math.isfinite(value.se) else None, "n": value.n}
    return {
        "trial": trial.number,
        "state": trial.state,
        "values": trial.values,
        "measured": measured,
        "run_id": trial.run_id,
        "reason": trial.reason,
    }
