"""Everything a run folder shows, made from the store alone (no torch): results.json, plots, the page, the table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankwise.errors import OutputError
from rankwise.experiments.html.inputs import ReportInput, runs_of_records
from rankwise.experiments.html.writing import write_html
from rankwise.experiments.records import RunRecord
from rankwise.experiments.results import build_results, write_results
from rankwise.experiments.statistics import Comparison, compare_arms
from rankwise.experiments.store import Store
from rankwise.experiments.table import by_method, primary_metric

RESULTS = "results.json"
METRIC_PLOT = "metric_against_parameters.png"
RANK_PLOT = "ranks.png"
REFERENCE = "lora"


@dataclass(frozen=True)
class Report:
    """What was written, and what it says."""

    records: list[RunRecord]
    comparisons: list[Comparison]
    content: dict[str, Any]
    files: tuple[Path, ...]


def write_report(store: Store, run_ids: Sequence[str], output: Path, *, command: str) -> Report:
    """Write `results.json`, the plots and the page `report.html` of these runs into `output`; returns what they say.

    The page shows unfinished runs too; the rest is about completed ones.

    Raises:
        OutputError: not one of the runs is completed, or the folder cannot be written.
    """
    from rankwise.experiments.plots import plot_metric_against_parameters, plot_rank_heatmap

    found = [store.get(run_id) for run_id in run_ids]
    records = [r for r in found if r is not None and r.status == "completed"]
    if not records:
        raise OutputError(f"{output}: none of its {len(run_ids)} runs is completed in {store.path}")
    local = [replace(r, checkpoint=f"checkpoints/{r.run_id}") for r in records]
    comparisons = [
        replace(c, note="; ".join(filter(None, [c.note, _mixed(records)]))) for c in compare_all(store, local)
    ]
    environment = records[-1].environment
    meta = {"machine": environment["machine"], "versions": environment["versions"], "command": command}
    content = build_results(local, comparisons, meta)
    files = [write_results(output / RESULTS, content)]
    files.append(plot_metric_against_parameters(local, output / METRIC_PLOT, primary_metric(local)))
    if any(r.rank_pattern for r in local):
        files.append(plot_rank_heatmap(local, output / RANK_PLOT))
    files.append(write_html(page_input(found, run_ids, command), store, output)[0])
    return Report(local, comparisons, content, tuple(files))


def page_input(found: Sequence[RunRecord | None], run_ids: Sequence[str], command: str) -> ReportInput:
    """What the page of a comparison without a plan is about.

    Args:
        found: the runs in the order of `run_ids`, None where the store has none yet.
        run_ids: of all runs that the folder is for.
        command: that makes them.
    """
    records = [record for record in found if record is not None]
    words = [", ".join(dict.fromkeys(getattr(r, name) for r in records)) for name in ("method", "task", "model")]
    return ReportInput(
        title="{} on {}, {}".format(*words) if records else "No run has begun yet",
        runs=runs_of_records(records),
        waiting=tuple(name for name, record in zip(run_ids, found, strict=True) if record is None),
        command=command,
    )


def _mixed(records: Sequence[RunRecord]) -> str:
    """A warning if the runs were not all made by the same code and packages."""
    kinds = {(str(r.environment.get("code")), str(r.environment.get("versions"))) for r in records}
    return "runs were made by different versions of Rankwise or its packages" if len(kinds) > 1 else ""


def compare_all(store: Store, records: Sequence[RunRecord]) -> list[Comparison]:
    """Every method against the reference (`lora` if it ran, else the first), per metric and validation split.

    Only seeds that both have run are compared.
    """
    groups = by_method(records)
    reference = REFERENCE if REFERENCE in groups else next(iter(groups))
    comparisons = []
    for method, runs in groups.items():
        if method == reference:
            continue
        arm, other = _shared_seeds(runs, groups[reference])
        if arm:
            comparisons += _compare_splits(store, arm, other)
    return comparisons


def _shared_seeds(arm: Sequence[RunRecord], other: Sequence[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    seeds = {r.seed for r in arm} & {r.seed for r in other}
    return [r for r in arm if r.seed in seeds], [r for r in other if r.seed in seeds]


def _compare_splits(store: Store, arm: list[RunRecord], other: list[RunRecord]) -> list[Comparison]:
    """The main split's metrics under their own names, those of further splits with the split's name, as in the runs."""
    comparisons = []
    for index, split in enumerate(store.splits(arm[0].run_id)):
        suffix = "" if index == 0 else f"_{split.removeprefix('validation_')}"
        predictions = {r.run_id: store.predictions(r.run_id, split) for r in [*arm, *other]}
        for name in arm[0].metrics:
            base = name.removesuffix(suffix)
            if base == "loss" or (suffix and not name.endswith(suffix)) or (not suffix and _is_suffixed(name, arm[0])):
                continue
            comparisons.append(replace(compare_arms(arm, other, predictions, base), metric=name))
    return comparisons


def _is_suffixed(name: str, record: RunRecord) -> bool:
    return any(name != other and name.startswith(f"{other}_") for other in record.metrics)
