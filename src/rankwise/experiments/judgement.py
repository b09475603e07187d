"""A plan's run folder as its store has it now: runs at their tuned learning rates, records, verdicts. Nothing is run.

Tuning is not written down anywhere: which rate won follows from the trials in the store, as everything else does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rankwise.errors import TrainingError
from rankwise.experiments.frozen import Frozen, read_frozen, to_judge
from rankwise.experiments.plan_runs import Plan
from rankwise.experiments.records import RunRecord
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.statistics import Predictions
from rankwise.experiments.store import Store
from rankwise.experiments.tuning import TuningResult, tried, tune, tuned
from rankwise.experiments.verdicts import ClaimVerdict, verdicts


@dataclass(frozen=True)
class Judgement:
    """What there is to say about a plan.

    `plans` are the frozen plan and, if it has claims that were not frozen, the plan as it is now; their runs are at
    the chosen learning rates once all trials are there. `records` are those of these runs, of any status.
    """

    frozen: Frozen
    plans: tuple[Plan, ...]
    verdicts: tuple[ClaimVerdict, ...]
    records: Mapping[str, RunRecord]
    tuning: TuningResult | None
    notes: tuple[str, ...]


def judgement(folder: Path, store: Store, now: Plan | None = None) -> Judgement:
    """Judge the claims of the plan that was run in a folder.

    Args:
        folder: of `compare PLAN`.
        store: its results.
        now: the plan as its file says now.

    Raises:
        OutputError: no plan was run there, or its frozen plan was changed by hand.
        StoreError: the store cannot be read.
    """
    frozen = read_frozen(folder)
    plans: list[Plan] = []
    found: list[ClaimVerdict] = []
    records: dict[str, RunRecord] = {}
    tuning: TuningResult | None = None
    notes: list[str] = []
    for plan, late in to_judge(frozen, now):
        now_at, result, said = at_rates(plan, store)
        tuning = tuning or result
        notes += [each for each in said if each not in notes]
        here = {r.run_id: r for run in now_at.runs if (r := store.get(run.config.run_id)) is not None}
        done = {name: record for name, record in here.items() if record.status == "completed"}
        predictions = predictions_of(done, store)
        found += verdicts(now_at.config, now_at.runs, done, predictions, post_hoc=late)
        records |= here
        plans.append(now_at)
    return Judgement(frozen, tuple(plans), tuple(found), records, tuning, (*notes, *_notes(found)))


def at_rates(plan: Plan, store: Store) -> tuple[Plan, TuningResult | None, tuple[str, ...]]:
    """The plan at its tuned rates, with the tuning and what it says; as it is while trials are missing."""
    if plan.config.protocol.tuning is None:
        return plan, None, ()
    missing: list[str] = []

    def known(configs: list[RunConfig]) -> dict[str, RunRecord]:
        there = [store.get(config.run_id) for config in configs]
        missing.extend(c.run_id for c, r in zip(configs, there, strict=True) if r is None or r.status == "running")
        return {record.run_id: record for record in there if record is not None and record.status == "completed"}

    try:
        result = tune(plan, known)
    except TrainingError as error:
        if not missing:
            return plan, None, (f"note: {error}",)
        result = TuningResult({}, tried(plan, known), ())
    if missing:
        left, result = len(set(missing)), replace(result, rates={})  # nothing is chosen before all trials are there
        return plan, result, (f"note: {left} trials of the tuning are missing; the learning rates may change",)
    return tuned(plan, result), result, tuple(f"note: {each}" for each in result.notes)


def completed(run_ids: Sequence[str], store: Store) -> dict[str, RunRecord]:
    """The completed ones of these runs."""
    found = {name: store.get(name) for name in run_ids}
    return {name: record for name, record in found.items() if record is not None and record.status == "completed"}


def predictions_of(records: Mapping[str, RunRecord], store: Store) -> Predictions | None:
    """On the main validation split of each run; None where a run has none, because then no run's can be used."""
    splits = {name: store.splits(name) for name in records}
    if not all(splits.values()):
        return None
    return {name: store.predictions(name, own[0]) for name, own in splits.items()}


def _notes(found: Sequence[ClaimVerdict]) -> tuple[str, ...]:
    if not found:
        return ("note: the plan makes no claims, so there is nothing to judge",)
    late = ", ".join(each.claim.id for each in found if each.post_hoc)
    if not late:
        return ()
    return (f"note: {late}: made or changed when there were results already, hence post hoc and corrected apart",)
