"""The learning rates of a plan: the same search for every arm, on a split of the training examples.

Every arm tries every rate of the grid once per task and budget, with one seed. Where an arm's best rate lies at an end
of the grid, the grid grows by one more rate there for all arms of that task and budget, so that none gets more trials
than another. Pure logic, no torch: whoever calls `tune` does the runs.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from rankwise.errors import ConfigError, Finding, TrainingError
from rankwise.experiments.plan import TuningConfig
from rankwise.experiments.plan_runs import Plan
from rankwise.experiments.records import RunRecord
from rankwise.experiments.schema import RunConfig
from rankwise.tasks.base import MetricValue
from rankwise.tasks.metrics import METRICS

MOST_EXTENSIONS = 3
"""How often a grid may grow at either end."""

Arm: TypeAlias = tuple[str, str, str]
"""Arm, task name and budget: what gets a learning rate of its own."""
Place: TypeAlias = tuple[str, str]
"""Task name and budget: what shares a grid."""
Do: TypeAlias = Callable[[list[RunConfig]], Mapping[str, RunRecord]]
"""Does runs (the missing ones), and returns their records by run id; a run that failed may be left out."""


@dataclass(frozen=True)
class TuningTrial:
    """One arm at one learning rate; `config` is measured on held-out training examples."""

    arm: str
    task: str
    budget: str
    learning_rate: float
    config: RunConfig

    @property
    def of(self) -> Arm:
        """Whose learning rate it is about."""
        return self.arm, self.task, self.budget


@dataclass(frozen=True)
class TriedRate:
    """What came of a trial: the main metric's name and value on the held-out examples, None if the run failed."""

    trial: TuningTrial
    metric: str | None
    value: MetricValue | None


@dataclass(frozen=True)
class TuningResult:
    """The chosen rate of every (arm, task name, budget), all trials, and in words what was extended, tied or failed."""

    rates: Mapping[Arm, float]
    tried: tuple[TriedRate, ...]
    notes: tuple[str, ...]


def trials(plan: Plan) -> list[TuningTrial]:
    """Every arm of a plan at every rate of its grid, on every task and budget; none for a plan without tuning.

    Raises:
        ConfigError: two tasks of one name, which could not be told apart.
    """
    tuning = plan.config.protocol.tuning
    return [] if tuning is None else _trials(plan, {place: list(tuning.learning_rates) for place in _places(plan)})


def every_run(plan: Plan) -> list[RunConfig]:
    """What a plan takes: the trials of its grid, then its runs, each once."""
    found = [*(trial.config for trial in trials(plan)), *(run.config for run in plan.runs)]
    return list({config.run_id: config for config in found}.values())


def tried(plan: Plan, do: Do) -> tuple[TriedRate, ...]:
    """What came of the grid's trials, for a search that is not over: nothing is chosen and no grid grows."""
    return tuple(_done(trials(plan), do).values())


def tune(plan: Plan, do: Do) -> TuningResult:
    """Try all rates, extend grids whose best is at an end, and choose: best on the held-out examples, then smaller.

    Raises:
        ConfigError: as `trials`.
        TrainingError: an arm failed at every rate.
        RankwiseError: whatever `do` raises.
    """
    tuning = plan.config.protocol.tuning
    if tuning is None:
        return TuningResult({}, (), ())
    grids = {place: _Grid(tuple(tuning.learning_rates)) for place in _places(plan)}
    tried: dict[tuple[Arm, float], TriedRate] = {}
    notes: list[str] = []
    while True:
        due = [t for t in _trials(plan, {p: g.rates for p, g in grids.items()}) if (t.of, t.learning_rate) not in tried]
        if not due:
            break
        tried |= _done(due, do)
        best = _best(tried.values())
        for place, grid in grids.items():
            grids[place], said = _grown(place, grid, {arm: rate for arm, rate in best.items() if arm[1:] == place})
            notes += said
    notes += _failures(tried.values())
    return TuningResult(_best(tried.values()), tuple(tried.values()), tuple(notes))


def tuned(plan: Plan, result: TuningResult) -> Plan:
    """The plan with the chosen learning rates in its runs."""
    runs = []
    for run in plan.runs:
        rate = result.rates.get((run.arm, run.config.task.name, run.budget))
        runs.append(run if rate is None else replace(run, config=_at_rate(run.config, rate)))
    return replace(plan, runs=tuple(runs))


@dataclass(frozen=True)
class _Grid:
    """Rates in increasing order, and how often either end has moved."""

    rates: tuple[float, ...]
    down: int = 0
    up: int = 0


def _places(plan: Plan) -> list[Place]:
    tasks = [task.name for task in plan.config.tasks]
    if twice := sorted({name for name in tasks if tasks.count(name) > 1}):
        message = f"two tasks are called {', '.join(twice)}: learning rates are tuned per task name, so use two plans"
        raise ConfigError(plan.source, [Finding("tasks", message)])
    return [(task, budget) for task in tasks for budget in plan.config.budgets]


def _trials(plan: Plan, grids: Mapping[Place, Sequence[float]]) -> list[TuningTrial]:
    tuning = plan.config.protocol.tuning
    first: dict[Arm, RunConfig] = {}
    for run in plan.runs:
        first.setdefault((run.arm, run.config.task.name, run.budget), run.config)
    if tuning is None:
        return []
    return [
        TuningTrial(*arm, rate, _trial(config, rate, tuning))
        for arm, config in first.items()
        for rate in grids[arm[1:]]
    ]


def _trial(config: RunConfig, rate: float, tuning: TuningConfig) -> RunConfig:
    evaluation = config.evaluation.model_copy(update={"holdout": tuning.share, "holdout_seed": 0})
    return _at_rate(config, rate).model_copy(update={"evaluation": evaluation, "seed": tuning.seed, "sweep": None})


def _at_rate(config: RunConfig, rate: float) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"learning_rate": rate})})


def _done(due: Sequence[TuningTrial], do: Do) -> dict[tuple[Arm, float], TriedRate]:
    """What came of these trials; arms that share a run (full fine-tuning at two budgets) share its result."""
    configs = {trial.config.run_id: trial.config for trial in due}
    records = do(list(configs.values()))
    found = {}
    for trial in due:
        record = records.get(trial.config.run_id)
        metric, value = None, None
        if record is not None and record.status == "completed":
            metric, value = next(iter(record.metrics.items()))
        if value is not None and not math.isfinite(value.value):
            value = None
        found[trial.of, trial.learning_rate] = TriedRate(trial, metric, value)
    return found


def _best(tried: Iterable[TriedRate]) -> dict[Arm, float]:
    """The best rate of every arm, the smaller one of equals.

    Raises:
        TrainingError: no rate of an arm worked.
    """
    by_arm: dict[Arm, list[tuple[float, float]]] = {}
    for one in tried:
        values = by_arm.setdefault(one.trial.of, [])
        if one.value is not None and one.metric is not None:
            gain = one.value.value if METRICS[one.metric].higher_is_better else -one.value.value
            values.append((-gain, one.trial.learning_rate))
    if hopeless := [_name(arm) for arm, values in by_arm.items() if not values]:
        raise TrainingError(f"tuning: no learning rate worked for {'; '.join(hopeless)}: every trial failed")
    return {arm: min(values)[1] for arm, values in by_arm.items()}


def _grown(place: Place, grid: _Grid, best: Mapping[Arm, float]) -> tuple[_Grid, list[str]]:
    """The grid with one more rate at each end where an arm's best rate lies, and why in words."""
    rates, notes = list(grid.rates), []
    lowest, highest = rates[0], rates[-1]
    low, high = ([arm[0] for arm, rate in best.items() if rate == end] for end in (lowest, highest))
    down, up = grid.down, grid.up
    if low and down <= MOST_EXTENSIONS:
        below = _rounded(lowest * lowest / rates[1])
        notes.append(_note(place, low, lowest, "smallest", below if down < MOST_EXTENSIONS else None, len(best)))
        rates, down = ([below, *rates] if down < MOST_EXTENSIONS else rates), down + 1
    if high and up <= MOST_EXTENSIONS:
        above = _rounded(highest * highest / rates[-2])
        notes.append(_note(place, high, highest, "largest", above if up < MOST_EXTENSIONS else None, len(best)))
        rates, up = ([*rates, above] if up < MOST_EXTENSIONS else rates), up + 1
    return _Grid(tuple(rates), down, up), notes


def _note(place: Place, arms: Sequence[str], end: float, which: str, more: float | None, of: int) -> str:
    said = (
        f"{place[0]} at {place[1]}: the best learning rate of {', '.join(arms)} ({end:g}) is the {which} of the grid; "
    )
    if more is None:
        return f"{said}the grid was extended {MOST_EXTENSIONS} times already, so the true best may lie beyond"
    return f"{said}{more:g} is tried too, for {'all ' if of > 1 else ''}{of} arm{'s' if of > 1 else ''}"


def _failures(tried: Iterable[TriedRate]) -> list[str]:
    failed = [one.trial for one in tried if one.value is None]
    return [f"{_name(t.of)}: the run at learning rate {t.learning_rate:g} failed and counts as worst" for t in failed]


def _name(arm: Arm) -> str:
    return f"{arm[0]} on {arm[1]} at {arm[2]}"


def _rounded(rate: float) -> float:
    """Without the last digits' noise: 0.001 x 10 is 0.01, so that equal grids give equal run ids."""
    return float(f"{rate:.10g}")
