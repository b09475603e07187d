"""What a report is about: plain data that a plan, a comparison or a single run can be put into."""

from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.experiments.records import RunRecord
from rankwise.experiments.verdicts import ClaimVerdict

REFERENCE = "lora"
"""The arm that others are compared with where nothing else is said."""


@dataclass(frozen=True)
class ReportRun:
    """A run under the name that its arm has in the plan (the method's name where there is no plan).

    What is compared has the same task, `budget` and seed. A run without a budget of its own (full fine-tuning) is
    listed once for every budget that it is compared at.
    """

    record: RunRecord
    arm: str
    budget: str


@dataclass(frozen=True)
class TuningRow:
    """What one learning rate came to in the search of one arm; `value` is the metric on the part that decides.

    `se` is its standard error over `n` examples, NaN and 0 where they were not kept.
    """

    arm: str
    task: str
    budget: str
    learning_rate: float
    value: float
    chosen: bool
    metric: str = ""
    se: float = float("nan")
    n: int = 0


@dataclass(frozen=True)
class ReportInput:
    """Everything that a page shows besides what the store holds about the runs (curves, predictions).

    `runs` may have any status; `waiting` are ids of runs that the store does not have yet. `reference` is the arm that
    the others are compared with; empty: what most claims name, else `lora`, else the first arm.
    """

    title: str
    runs: tuple[ReportRun, ...]
    question: str = ""
    verdicts: tuple[ClaimVerdict, ...] = ()
    tuning: tuple[TuningRow, ...] = ()
    waiting: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""
    reference: str = ""


def runs_of_records(records: Sequence[RunRecord]) -> tuple[ReportRun, ...]:
    """Runs that no plan names: the method is the arm, and a run without a budget stands beside every budget."""
    budgets = list(dict.fromkeys(record.budget for record in records if record.budget)) or [""]
    return tuple(
        ReportRun(record, record.method, budget)
        for record in records
        for budget in ([record.budget] if record.budget else budgets)
    )


def reference_of(report: ReportInput) -> str:
    """The arm that the others are compared with; empty if there are no runs."""
    arms = list(dict.fromkeys(run.arm for run in report.runs))
    if report.reference:
        return report.reference
    named = [verdict.claim.reference for verdict in report.verdicts if verdict.claim.reference in arms]
    if named:
        return str(max(named, key=named.count))
    return REFERENCE if REFERENCE in arms or not arms else arms[0]
