"""The table that a comparison prints: one row per method, every number with its uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.errors import DataError
from rankwise.experiments.plain_table import plain_table
from rankwise.experiments.records import RunRecord
from rankwise.experiments.statistics import Comparison, TimeRatio, summarise, time_ratio
from rankwise.tasks.base import MetricValue

if TYPE_CHECKING:
    from rich.table import Table

_NONE = "–"
_EXACT_BELOW = 10_000_000
"""Parameter counts below this are printed in full, so that equal budgets can be seen to be equal."""


@dataclass(frozen=True)
class Row:
    """One method: parameters and metric are means over its seeds.

    `comparison` and `time` are None for the reference itself, and where nothing could be compared.
    """

    method: str
    seeds: int
    parameters: float
    peak_parameters: float
    metric: MetricValue
    comparison: Comparison | None
    time: TimeRatio | None


def by_method(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """The completed runs of each method, in the order in which the methods first appear."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.status == "completed":
            groups.setdefault(record.method, []).append(record)
    return groups


def primary_metric(records: Sequence[RunRecord]) -> str:
    """Name of the first metric of the first completed run.

    Raises:
        DataError: no completed run has a metric.
    """
    for record in records:
        if record.status == "completed" and record.metrics:
            return next(iter(record.metrics))
    raise DataError("there is no completed run with a metric to show")


def table_rows(records: Sequence[RunRecord], comparisons: Sequence[Comparison]) -> list[Row]:
    """The table as data: one row per method, in the order of the records.

    The metric is the primary one; the reference is that of `comparisons`, none if these are empty.

    Raises:
        DataError: no completed run has a metric.
    """
    metric, groups = primary_metric(records), by_method(records)
    found = {comparison.arm: comparison for comparison in comparisons if comparison.metric == metric}
    rows = []
    for method, runs in groups.items():
        comparison = found.get(method)
        time = _time(runs, groups[comparison.reference]) if comparison else None
        values = [run.metrics[metric] for run in runs if metric in run.metrics]
        rows.append(
            Row(
                method=method,
                seeds=len(runs),
                parameters=sum(run.parameters for run in runs) / len(runs),
                peak_parameters=sum(run.peak_parameters for run in runs) / len(runs),
                metric=summarise(values) if values else MetricValue(math.nan, math.nan, 0),
                comparison=comparison,
                time=time,
            )
        )
    return rows


def comparison_table(records: Sequence[RunRecord], comparisons: Sequence[Comparison]) -> "Table":
    """The rows of `table_rows` for a terminal of 80 columns, with a footnote that says what the numbers mean.

    Raises:
        DataError: no completed run has a metric.
    """
    from rich.text import Text

    rows, metric = table_rows(records, comparisons), primary_metric(records)
    reference = comparisons[0].reference if comparisons else None
    words, counts = metric.replace("_", "\n"), {row.metric.n for row in rows}
    same_n = counts.pop() if len(counts) == 1 else None
    table = plain_table(_title(records), _footnote(records, rows, metric, reference))
    table.add_column("method", vertical="bottom", overflow="fold")  # the only column that may break, if one must
    headers = ["final\nparams", "peak\nparams", f"{words}\n± SE" + (f", n = {same_n}" if same_n else " (n)")]
    if reference is not None:
        headers += [f"difference\nto {reference}\n[{comparisons[0].confidence * 100:g} % interval]", "time\nratio"]
    for header in headers:
        table.add_column(Text(header), vertical="bottom", justify="right", no_wrap=True)
    for row in rows:
        cells = [
            row.method,
            _exact(row.parameters),
            short_count(row.peak_parameters),
            _metric(row.metric, same_n is None),
        ]
        against = _against(row, reference) if reference is not None else ()
        table.add_row(*(Text(cell) for cell in (*cells, *against)))
    return table


def _title(records: Sequence[RunRecord]) -> str:
    done = [record for record in records if record.status == "completed"]
    parts = [", ".join(dict.fromkeys(getattr(record, name) for record in done)) for name in ("task", "model")]
    budgets = ", ".join(dict.fromkeys(record.budget for record in done if record.budget))
    return " · ".join([*parts, f"budget {budgets}"] if budgets else parts)


def _footnote(records: Sequence[RunRecord], rows: Sequence[Row], metric: str, reference: str | None) -> str:
    examples = max((run.metrics[metric].n for run in records if metric in run.metrics), default=0)
    seeds = max(row.seeds for row in rows)
    parts = ["params: adapter parameters when training ended, and the most trained at once"]
    if seeds == 1:
        parts.append(f"±: standard error over the {examples:,} evaluation examples (n = 1 seed)")
    else:
        count = str(seeds) if all(row.seeds == seeds for row in rows) else "n"
        parts.append(f"±: standard error over {count} seeds, each evaluated on {examples:,} examples")
    if reference is not None:
        pairs = min((row.comparison.n for row in rows if row.comparison), default=seeds)
        noise = "noise of examples, not of seeds" if pairs == 1 else "noise of seeds and examples"
        base = [run.train_seconds for run in records if run.method == reference and run.status == "completed"]
        parts.append(f"difference: mean over paired seeds; interval: {noise}")
        parts.append(
            f"time ratio: training time over {reference}'s (mean {sum(base) / len(base):.0f} s), median over seeds"
        )
    return "\n".join(parts)


def _time(runs: Sequence[RunRecord], reference: Sequence[RunRecord]) -> TimeRatio | None:
    """The ratio over the seeds that both ran with; None if there is none."""
    shared = {run.seed for run in runs} & {run.seed for run in reference}
    if not shared:
        return None
    return time_ratio([run for run in runs if run.seed in shared], [run for run in reference if run.seed in shared])


def _exact(count: float) -> str:
    return f"{count:,.0f}" if count < _EXACT_BELOW else short_count(count)


def short_count(count: float) -> str:
    """`count` in three digits: `950`, `2.21k`, `221k`, `22.7M`."""
    for unit, size in (("", 1), ("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if count < 999.5 * size or unit == "G":
            break
    scaled = count / size
    digits = 0 if unit == "" or scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{digits}f}{unit}"


def _metric(metric: MetricValue, with_n: bool) -> str:
    if math.isnan(metric.value):
        return _NONE
    se = "?" if math.isnan(metric.se) else f"{metric.se:.3f}"
    return f"{metric.value:.3f} ± {se}" + (f" ({metric.n})" if with_n else "")


def _against(row: Row, reference: str | None) -> tuple[str, str]:
    if row.method == reference:
        return _NONE, "1.00"
    if row.comparison is None or math.isnan(row.comparison.difference):
        return "not compared", "" if row.time is None else f"{row.time.median:.2f}"
    found = row.comparison
    ratio = _NONE if row.time is None or math.isnan(row.time.median) else f"{row.time.median:.2f}"
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]", ratio
