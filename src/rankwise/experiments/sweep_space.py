"""What a sweep searches: its grid, what its trials draw, and the run config of one choice of values.

Values are keyed by dotted path (`training.learning_rate`). Nothing here imports torch or Optuna before it is needed.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.checks import check_config
from rankwise.experiments.schema import Distribution, RunConfig, Scalar, SweepConfig
from rankwise.experiments.settle import put
from rankwise.experiments.validation import Words, validate

if TYPE_CHECKING:
    from optuna.trial import Trial

Values: TypeAlias = dict[str, Scalar]
"""Dotted path -> value: what makes one trial."""

_LENGTHS = {"training.epochs": "training.max_steps", "training.max_steps": "training.epochs"}
"""A run has one of the two; searching one of them replaces the other."""


def refusals(config: RunConfig) -> list[Finding]:
    """Why a config cannot be swept, whatever its data are; empty if it can."""
    sweep = config.sweep
    if sweep is None or not sweep.search_space:
        return [Finding("sweep.search_space", "nothing is searched: name at least one field and its distribution")]
    found = []
    for path in sweep.search_space:
        where = f"sweep.search_space.{path}"
        if path == "seed":
            found.append(Finding(where, "a seed is no setting: the best of several seeds is luck; see sweep.seeds"))
        if path.startswith("evaluation."):
            text = "decides how trials are measured, so trials with other values cannot be compared"
            found.append(Finding(where, text))
    if config.evaluation.holdout is not None:
        text = (
            f"is {config.evaluation.holdout:g}, but a sweep measures its trials on sweep.holdout ({sweep.holdout:g} of "
            "the training examples) and its best on the validation examples; leave it out"
        )
        found.append(Finding("evaluation.holdout", text))
    if sweep.sampler == "grid":
        found += _no_grid(sweep)
    return found


def _no_grid(sweep: SweepConfig) -> Iterator[Finding]:
    endless = False
    for path, spread in sweep.search_space.items():
        if spread.type == "float" and sweep.grid_points is None:
            endless = True
            text = (
                f"a float range ({spread}) has no end of values, so there is no grid of it; set sweep.grid_points to a "
                "number of values, or make it categorical with choices"
            )
            yield Finding(f"sweep.search_space.{path}", text)
    if not endless and (size := grid_size(sweep)) > sweep.n_trials:
        each = " x ".join(str(len(points(spread, sweep.grid_points))) for spread in sweep.search_space.values())
        text = f"{sweep.n_trials}, but the grid has {size:,} points ({each}); raise it to {size}, or search less"
        yield Finding("sweep.n_trials", text)


def points(spread: Distribution, count: int | None) -> list[Scalar]:
    """The values of a grid: choices as they are, ranges evenly spaced on their scale with both ends.

    Args:
        spread: the distribution.
        count: values per range; None: every whole number of an int range.

    Raises:
        ValueError: a float range without a count.
    """
    if spread.choices is not None:
        return list(spread.choices)
    low, high = float(spread.low or 0), float(spread.high or 0)
    if count is None:
        if spread.type == "float":
            raise ValueError("a grid over a float range needs a number of values")
        return list(range(int(low), int(high) + 1))
    shares = [i / (count - 1) for i in range(count)]
    if spread.log:
        values = [math.exp(math.log(low) + share * (math.log(high) - math.log(low))) for share in shares]
    else:
        values = [low + share * (high - low) for share in shares]
    values[0], values[-1] = low, high
    if spread.type == "int":
        return list(dict.fromkeys(round(value) for value in values))
    return [low, *(float(f"{value:.6g}") for value in values[1:-1]), high]


def grid_size(sweep: SweepConfig) -> int:
    """Number of points of the grid."""
    return math.prod(len(points(spread, sweep.grid_points)) for spread in sweep.search_space.values())


def grid(sweep: SweepConfig) -> list[Values]:
    """Every point of the grid, the last searched field changing fastest."""
    paths = list(sweep.search_space)
    axes = [points(spread, sweep.grid_points) for spread in sweep.search_space.values()]
    return [dict(zip(paths, values, strict=True)) for values in itertools.product(*axes)]


def drawn(trial: "Trial", sweep: SweepConfig) -> Values:
    """One value per searched field, from the study's sampler (or as the trial was entered)."""
    return {path: _drawn(trial, path, spread) for path, spread in sweep.search_space.items()}


def _drawn(trial: "Trial", path: str, spread: Distribution) -> Scalar:
    if spread.choices is not None:
        return cast(Scalar, trial.suggest_categorical(path, spread.choices))
    if spread.type == "int":
        return trial.suggest_int(path, int(spread.low or 0), int(spread.high or 0), log=spread.log)
    return trial.suggest_float(path, float(spread.low or 0), float(spread.high or 0), log=spread.log)


def trial_config(config: RunConfig, values: Mapping[str, Scalar], holdout: float | None) -> RunConfig:
    """The run of one choice of values, without the sweep; `holdout` None measures on the validation examples.

    Raises:
        ConfigError: the values contradict each other or the rest of the config.
    """
    data: dict[str, Any] = config.model_dump(mode="json")
    data["sweep"] = None
    data["evaluation"]["holdout"] = holdout
    for path, value in values.items():
        data = put(data, path, value)
        if path in _LENGTHS and _LENGTHS[path] not in values:
            data = put(data, _LENGTHS[path], None)
    made = validate(data, Words())
    problems = made if not isinstance(made, RunConfig) else [f for f in check_config(made) if f.level == "error"]
    if problems or not isinstance(made, RunConfig):
        raise ConfigError("trial", tuple(problems))
    return made


def in_words(values: Mapping[str, Scalar]) -> str:
    """`learning_rate 0.001, budget r=2`: a choice of values for people, by the last words of their paths."""
    shown = []
    for path, value in values.items():
        number = isinstance(value, float) and not isinstance(value, bool)
        shown.append(f"{path.rpartition('.')[2]} {value:.4g}" if number else f"{path.rpartition('.')[2]} {value}")
    return ", ".join(shown)
