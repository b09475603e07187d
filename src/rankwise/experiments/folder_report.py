"""What the page of a run folder is about, read from the folder and its store: a plan with its claims, or a comparison.

Nothing is run and nothing is written, so this works while runs go on. No torch.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rankwise.experiments.compare import STORE, read_plan
from rankwise.experiments.frozen import FROZEN
from rankwise.experiments.html.inputs import ReportInput, ReportRun, TuningRow
from rankwise.experiments.judgement import Judgement, judgement
from rankwise.experiments.plan_runs import Plan
from rankwise.experiments.records import RunRecord
from rankwise.experiments.report import page_input
from rankwise.experiments.store import Store
from rankwise.experiments.tuning import TuningResult
from rankwise.experiments.verdicts import ClaimVerdict
from rankwise.tasks.base import MetricValue


def store_of(folder: Path, store: Path | None = None) -> Path:
    """Where the results store of a run folder is.

    Raises:
        OutputError: `folder` is no run folder.
    """
    return store or folder / read_plan(folder).get("store", STORE)


def folder_report(folder: Path, store: Store, now: Plan | None = None) -> ReportInput:
    """The report of a run folder as it stands now.

    Args:
        folder: of `compare` or `run`.
        store: its results.
        now: the folder's plan as its file says now; its claims that were not frozen are shown as post hoc.

    Raises:
        OutputError: `folder` is no run folder, or its plan was changed by hand.
        StoreError: the store cannot be read.
    """
    written = read_plan(folder)
    command, ids = str(written.get("command", "")), list(written["runs"])
    if not (folder / FROZEN).is_file():
        return page_input([store.get(name) for name in ids], ids, command)
    return report_of(judgement(folder, store, now), command)


def report_of(found: Judgement, command: str) -> ReportInput:
    """The report of a plan that has been judged; `command` does the plan."""
    tuning = () if found.tuning is None else tuning_rows(found.tuning)
    last = found.plans[-1]
    return plan_report(last, found.verdicts, found.records, tuning=tuning, notes=found.notes, command=command)


def plan_report(
    plan: Plan,
    found: Sequence[ClaimVerdict],
    records: Mapping[str, RunRecord],
    *,
    tuning: Sequence[TuningRow] = (),
    notes: Sequence[str] = (),
    command: str = "",
) -> ReportInput:
    """The report of a plan.

    Args:
        plan: whose runs it shows.
        found: verdicts on its claims, later ones too.
        records: runs of any status, by run id; those that are not there are waiting.
        tuning: trials of the search.
        notes: what a reader must know.
        command: that does the plan.
    """
    names = dict.fromkeys(run.config.run_id for run in plan.runs)
    return ReportInput(
        title=plan.config.name + (f" ({plan.profile})" if plan.profile else ""),
        question=plan.config.question,
        runs=tuple(
            ReportRun(records[run.config.run_id], run.arm, run.budget)
            for run in plan.runs
            if run.config.run_id in records
        ),
        verdicts=tuple(found),
        tuning=tuple(tuning),
        waiting=tuple(name for name in names if name not in records),
        notes=tuple(notes),
        command=command,
    )


def tuning_rows(result: TuningResult) -> tuple[TuningRow, ...]:
    """The trials of a search for `plan_report`; a failed one has no value and is in the table only."""
    rows = []
    for tried in result.tried:
        trial, value = tried.trial, tried.value or MetricValue(math.nan, math.nan, 0)
        chosen = result.rates.get(trial.of) == trial.learning_rate
        place = (trial.arm, trial.task, trial.budget, trial.learning_rate)
        rows.append(TuningRow(*place, value.value, chosen, tried.metric or "", value.se, value.n))
    return tuple(rows)
