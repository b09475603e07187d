"""Every table of the report: plain rows that become HTML and CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rankwise.errors import DataError
from rankwise.experiments.html.draw_curves import Curve, band
from rankwise.experiments.html.groups import Difference, Group, places_of
from rankwise.experiments.html.inputs import ReportInput
from rankwise.experiments.html.words import number
from rankwise.experiments.statistics import summarise, time_ratio
from rankwise.experiments.verdicts import ClaimVerdict
from rankwise.tasks.base import MetricValue

Cell: TypeAlias = str | int | float | None
SHOWN = 100
"""Rows of a table on the page; its CSV file has all of them."""


@dataclass(frozen=True)
class Table:
    """A table; `name` is that of its CSV file, without suffix. None and NaN are empty cells."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]

    @property
    def shown(self) -> list[list[tuple[str, str, bool]]]:
        """The page's rows: text, what to sort by, and whether it is a number."""
        return [[_shown(cell) for cell in row] for row in self.rows[:SHOWN]]

    @property
    def left(self) -> int:
        """Rows that only the CSV file has."""
        return max(0, len(self.rows) - SHOWN)

    def csv(self) -> bytes:
        """The CSV file: comma-separated, UTF-8, numbers in full.

        A text that a spreadsheet would run as a formula is kept from it by a quote in front.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([[_plain(cell) for cell in row] for row in self.rows])
        return text.getvalue().encode()


def _shown(cell: Cell) -> tuple[str, str, bool]:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–", "", not isinstance(cell, str)
    if isinstance(cell, str):
        return cell, cell, False
    if isinstance(cell, int):
        return f"{cell:,}", str(cell), True
    if cell.is_integer() and abs(cell) >= 1000:
        return f"{cell:,.0f}", repr(cell), True
    large = abs(cell) >= 1000 and math.isfinite(cell)
    tiny = 0 < abs(cell) < 0.001
    return f"{cell:,.1f}" if large else f"{cell:.2e}" if tiny else number(cell), repr(cell), True


def _plain(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, str):
        return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
    return str(cell)


def verdict_table(verdicts: Sequence[ClaimVerdict]) -> Table:
    """One row per claim, everything that was computed."""
    columns = (
        "claim", "verdict", "post hoc", "kind", "arm", "reference", "metric", "estimate", "low", "high", "confidence",
        "se", "p", "p adjusted", "alpha", "claimed above", "claimed below", "tasks", "seeds", "scale", "method", "note",
        "noise floor", "smallest detectable", "settle", "runs used", "runs missing", "text",
    )  # fmt: skip
    return Table("verdicts", "Verdicts in numbers", columns, [_verdict(verdict) for verdict in verdicts])


def _verdict(verdict: ClaimVerdict) -> tuple[Cell, ...]:
    claim, found = verdict.claim, verdict.result
    numbers: tuple[Cell, ...] = (None,) * 14
    if found is not None:
        numbers = (
            found.estimate, found.low, found.high, 1 - 2 * found.alpha, found.evidence.se if found.evidence else None,
            found.p, verdict.adjusted, found.alpha, found.above, found.below, found.tasks,
            " ".join(map(str, found.seeds)), found.scale, found.method,
        )  # fmt: skip
    return (
        claim.id, verdict.word, "yes" if verdict.post_hoc else "no", claim.kind, claim.arm, claim.reference,
        claim.metric, *numbers, found.note if found else None,
        verdict.floor.run if verdict.floor else None, verdict.detectable, verdict.settle,
        len(verdict.runs), len(verdict.missing), claim.text,
    )  # fmt: skip


def difference_table(found: Sequence[Difference]) -> Table:
    """Every arm against the reference."""
    columns = (
        "task", "budget", "arm", "reference", "metric", "difference", "low", "high", "confidence", "paired seeds",
        "examples", "note",
    )  # fmt: skip
    rows = [
        (d.task, d.budget, c.arm, c.reference, c.metric, c.difference, c.low, c.high, c.confidence, c.n, c.examples,
         c.note)
        for d in found for c in [d.found]
    ]  # fmt: skip
    return Table("differences", "Paired differences", columns, rows)


def summary_table(groups: Sequence[Group]) -> Table:
    """Every metric of every arm: mean over seeds, its standard error and n."""
    rows: list[tuple[Cell, ...]] = []
    for group in groups:
        for metric in dict.fromkeys(name for record in group.records for name in record.metrics):
            found = group.summary(metric)
            numbers = (None, None, 0) if found is None else (found.value, found.se, found.n)
            place = (group.task, group.budget, group.arm, metric)
            rows.append((*place, *numbers, group.examples(metric), group.parameters, group.peak_parameters))
    columns = (
        "task", "budget", "arm", "metric", "mean", "standard error", "seeds", "examples", "parameters",
        "peak parameters",
    )  # fmt: skip
    return Table("metrics", "Metrics by arm", columns, rows)


def cost_table(groups: Sequence[Group], reference: str) -> Table:
    """Time and parameters; the time ratio is the median over seeds that arm and reference share."""
    rows: list[tuple[Cell, ...]] = []
    for own in places_of(groups).values():
        base = next((group for group in own if group.arm == reference), None)
        for group in own:
            times = [MetricValue(r.train_seconds, math.nan, 1) for r in group.records]
            mean = summarise([time for time in times if math.isfinite(time.value)] or times)
            rows.append((
                group.task, group.budget, group.arm, len(group.records), group.parameters, group.peak_parameters,
                mean.value, mean.se, *_ratio(group, base),
            ))  # fmt: skip
    columns = (
        "task", "budget", "arm", "seeds", "parameters", "peak parameters", "train seconds", "standard error",
        "time ratio", "lowest", "highest",
    )  # fmt: skip
    return Table("costs", f"Costs; time ratio to {reference}", columns, rows)


def measured_table(groups: Sequence[Group]) -> Table:
    """What was counted when training was done: mean over seeds, its standard error and n."""
    rows: list[tuple[Cell, ...]] = []
    for group in groups:
        for name in dict.fromkeys(name for record in group.records for name in record.costs):
            each = [MetricValue(r.costs[name], math.nan, 1) for r in group.records if name in r.costs]
            mean = summarise(each)
            rows.append((group.task, group.budget, group.arm, name, mean.value, mean.se, len(each)))
    columns = ("task", "budget", "arm", "measure", "mean", "standard error", "seeds")
    return Table("measured", "Counted when training was done", columns, rows)


def _ratio(group: Group, base: Group | None) -> tuple[Cell, Cell, Cell]:
    shared = {r.seed for r in group.records} & {r.seed for r in base.records} if base else set()
    if base is None or not shared:
        return None, None, None
    try:
        found = time_ratio(*([r for r in side.records if r.seed in shared] for side in (group, base)))
    except DataError:
        return None, None, None
    return found.median, found.low, found.high


def run_table(report: ReportInput) -> Table:
    """Every run once, whatever became of it."""
    budgets: dict[tuple[str, str], list[str]] = {}
    for run in report.runs:
        budgets.setdefault((run.arm, run.record.run_id), []).append(run.budget)
    rows: list[tuple[Cell, ...]] = []
    for run in {(run.arm, run.record.run_id): run for run in report.runs}.values():
        r, at = run.record, ", ".join(budgets[run.arm, run.record.run_id])
        metric, value = next(iter(r.metrics.items()), ("", MetricValue(math.nan, math.nan, 0)))
        rows.append((
            r.run_id, run.arm, r.method, r.task, at, r.seed, r.status, metric, value.value, value.se, value.n,
            r.parameters, r.peak_parameters, r.train_seconds, r.steps, r.error,
        ))  # fmt: skip
    blank = (None,) * 9
    rows += [(name, "", "", "", "", None, "waiting", *blank) for name in report.waiting]
    columns = (
        "run", "arm", "method", "task", "budget", "seed", "status", "metric", "value", "standard error", "examples",
        "parameters", "peak parameters", "train seconds", "steps", "error",
    )  # fmt: skip
    return Table("runs", "Runs", columns, rows)


def rank_table(groups: Sequence[Group]) -> Table:
    """Mean rank of every module over the seeds of an arm."""
    rows: list[tuple[Cell, ...]] = []
    for group in groups:
        patterns = [r.rank_pattern for r in group.records]
        for module in dict.fromkeys(name for pattern in patterns for name in pattern):
            mean = sum(pattern.get(module, 0) for pattern in patterns) / len(patterns)
            rows.append((group.task, group.budget, group.arm, module, mean, len(patterns)))
    return Table("ranks", "Ranks by module", ("task", "budget", "arm", "module", "mean rank", "seeds"), rows)


def curve_table(curves: Mapping[Group, Mapping[int, Curve]]) -> Table:
    """The drawn learning curves."""
    rows: list[tuple[Cell, ...]] = []
    for group, by_seed in curves.items():
        for step, mean, spread in zip(*band(by_seed), strict=True):
            rows.append((
                group.task, group.budget, group.arm, float(step), float(mean),
                float(spread) if len(by_seed) > 1 else None, len(by_seed),
            ))  # fmt: skip
    columns = ("task", "budget", "arm", "step", "mean training loss", "standard deviation over seeds", "seeds")
    return Table("learning_curves", "Learning curves", columns, rows)


def tuning_table(report: ReportInput) -> Table:
    """Every trial of the search."""
    rows = [
        (t.task, t.budget, t.arm, t.learning_rate, t.metric, t.value, t.se, t.n or None, "yes" if t.chosen else "no")
        for t in report.tuning
    ]
    columns = ("task", "budget", "arm", "learning rate", "metric", "value", "standard error", "examples", "chosen")
    return Table("tuning", "Tuning trials", columns, rows)
