"""What the runs of a plan gave: one row per arm, task and budget."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rankwise.experiments.plain_table import plain_table
from rankwise.experiments.plan_runs import PlannedRun
from rankwise.experiments.records import RunRecord
from rankwise.experiments.statistics import summarise

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class ArmRow:
    """The completed runs of one arm on one task at one budget.

    `value` is the mean of the metric that decides, `se` its standard error over seeds (over examples for one seed),
    `n` the evaluation examples; `parameters`, `peak_parameters` and `seconds` are means. NaN where nothing is
    completed.
    """

    arm: str
    task: str
    budget: str
    seeds: int
    planned: int
    metric: str
    value: float
    se: float
    n: int
    parameters: float
    peak_parameters: float
    seconds: float
    learning_rate: float


def arm_rows(runs: Sequence[PlannedRun], records: Mapping[str, RunRecord]) -> list[ArmRow]:
    """In the plan's order: tasks, budgets, arms."""
    keys = dict.fromkeys((run.config.task, run.budget, run.arm) for run in runs)
    tasks = list(dict.fromkeys(key[0] for key in keys))
    budgets = list(dict.fromkeys(key[1] for key in keys))
    ordered = sorted(keys, key=lambda key: (tasks.index(key[0]), budgets.index(key[1])))
    return [_row([run for run in runs if (run.config.task, run.budget, run.arm) == key], records) for key in ordered]


def _row(runs: Sequence[PlannedRun], records: Mapping[str, RunRecord]) -> ArmRow:
    first = runs[0]
    done = [records[run.config.run_id] for run in runs if run.config.run_id in records]
    metric = next(iter(done[0].metrics)) if done else ""
    found = summarise([record.metrics[metric] for record in done]) if done else None
    mean = (lambda name: statistics.fmean(getattr(record, name) for record in done)) if done else lambda name: math.nan
    return ArmRow(
        arm=first.arm,
        task=first.config.task.name,
        budget=first.budget,
        seeds=len(done),
        planned=len(runs),
        metric=metric,
        value=found.value if found else math.nan,
        se=found.se if found else math.nan,
        n=done[0].metrics[metric].n if done else 0,
        parameters=mean("parameters"),
        peak_parameters=mean("peak_parameters"),
        seconds=mean("train_seconds"),
        learning_rate=first.config.training.learning_rate,
    )


def arms_table(rows: Sequence[ArmRow]) -> "Table":
    """For a terminal."""
    from rich.text import Text

    table = plain_table("Runs", "±: standard error over seeds, or over the n evaluation examples of a single seed")
    metrics = {row.metric for row in rows if row.seeds}
    named = metrics.pop().replace("_", " ") if len(metrics) == 1 else ""  # in the head, where there is but one
    for name in ("task", "arm"):
        table.add_column(name, overflow="fold")
    for name in ("budget", "params", f"{named or 'metric'}\n± SE (n)", "seeds", "rate", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        se = "?" if math.isnan(row.se) else f"{row.se:.3f}"
        metric = "" if named else f"{row.metric.replace('_', ' ')} "
        value = f"{metric}{row.value:.3f} ± {se} ({row.n})" if row.seeds else "–"
        params = f"{row.parameters:,.0f}" if row.seeds else "–"
        count = f"{row.seeds}" if row.seeds == row.planned else f"{row.seeds} of {row.planned}"
        seconds = f"{row.seconds:.0f}" if row.seeds else "–"
        cells = (row.task, row.arm, row.budget, params, value, count, f"{row.learning_rate:g}", seconds)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def rows_data(rows: Sequence[ArmRow]) -> list[dict[str, Any]]:
    """As JSON has it: what is not a number is null."""
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(row).items()}
        for row in rows
    ]
