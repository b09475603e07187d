"""Verdicts: what the runs of a plan say about its claims. Computed from records and predictions alone, without torch.

A claim is judged by `claim_tests` on the paired differences (ratios for costs) of its arm and its reference, every task
at every budget counting as one task there. Over the claims of a plan p-values are adjusted by Holm, and a claim is
`supported` only if that stands after the adjustment. Further words: `not tested` where runs are missing,
`not testable` where the plan says so. Beside each verdict stands what seeds alone do: the noise floor, from differences
between runs of the reference arm, and the smallest true effect that the runs could have been expected to find.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from rankwise.experiments.claim_examples import on_examples
from rankwise.experiments.claim_power import NoiseFloor, holm, noise_floor, smallest_effect, what_would_settle
from rankwise.experiments.claim_statistics import Array, Tasks, evidence
from rankwise.experiments.claim_tests import ClaimResult, bound, judge
from rankwise.experiments.plan import COSTS, MAIN, MEASURES, OF_THE_MACHINE, ClaimConfig, PlanConfig
from rankwise.experiments.plan_runs import PlannedRun
from rankwise.experiments.records import RunRecord
from rankwise.experiments.statistics import Predictions, variance_of_examples
from rankwise.tasks.metrics import METRICS

Word: TypeAlias = Literal["supported", "refuted", "inconclusive", "not tested", "not testable"]
RECORDED = ("train_seconds", "parameters", "peak_parameters")
"""Costs that every run has; the others were counted when it was done, if they could be."""
COUNTED = tuple(name for name in COSTS if name not in OF_THE_MACHINE)
"""Costs that are counted, not timed: the same run has the same ones."""


@dataclass(frozen=True)
class Cell:
    """The paired runs of one task at one budget, seed by seed."""

    task: str
    budget: str
    arm: tuple[RunRecord, ...]
    reference: tuple[RunRecord, ...]


@dataclass(frozen=True)
class ClaimVerdict:
    """The verdict on one claim.

    `result` is None where nothing was tested; `adjusted` is Holm's p-value (NaN without a test); `runs` are the ids of
    every run that was used, `missing` those that would be; `settle` says what would decide an open claim. `floor` and
    `detectable` (with the protocol's power, beyond the margin) are in the metric's unit, of costs in logarithms; None
    where there are no two seeds.
    """

    claim: ClaimConfig
    word: Word
    result: ClaimResult | None
    adjusted: float
    runs: tuple[str, ...]
    missing: tuple[str, ...]
    settle: str
    post_hoc: bool = False
    floor: NoiseFloor | None = None
    detectable: float | None = None


def verdicts(
    plan: PlanConfig,
    runs: Sequence[PlannedRun],
    records: Mapping[str, RunRecord],
    predictions: Predictions | None = None,
    *,
    post_hoc: bool = False,
) -> list[ClaimVerdict]:
    """One verdict per claim, in the plan's order.

    Args:
        plan: at its profile.
        runs: of the plan.
        records: completed runs, by run id.
        predictions: of the records, on the main validation split; see `result_of`.
        post_hoc: the claims were made after the first run. They are corrected among themselves.
    """
    judged = [_judge(claim, plan, runs, records, predictions) for claim in plan.claims]
    p = [None if each.result is None else each.result.p for each in judged]
    adjusted = holm(p) if plan.protocol.correction == "holm" else _plain(p)
    found = []
    for each, value in zip(judged, adjusted, strict=True):
        word = each.word
        if word == "supported" and not math.isnan(value) and value >= plan.protocol.alpha:
            word = "inconclusive"
        found.append(replace(each, word=word, adjusted=value, post_hoc=post_hoc, settle=_settle(each, word)))
    return found


def _plain(p: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in p]


def _judge(
    claim: ClaimConfig,
    plan: PlanConfig,
    runs: Sequence[PlannedRun],
    records: Mapping[str, RunRecord],
    predictions: Predictions | None,
) -> ClaimVerdict:
    if claim.kind == "not-testable":
        return ClaimVerdict(claim, "not testable", None, math.nan, (), (), claim.reason)
    wanted = [run for run in runs if run.arm in claim.arms and about(claim, run)]
    ids = tuple(dict.fromkeys(run.config.run_id for run in wanted))
    missing = tuple(name for name in ids if name not in records)
    tasks = {run.config.task.name for run in wanted}
    budgets = {run.budget for run in wanted}
    left_out = [name for name in claim.tasks or () if name not in tasks]
    left_out += [name for name in claim.budgets or () if name not in budgets]
    if missing or left_out or not wanted:
        why = f"{len(missing)} of {len(ids)} runs are missing" if missing else ""
        if left_out:
            why = f"the plan at this profile leaves out {', '.join(left_out)}"
        return ClaimVerdict(claim, "not tested", None, math.nan, (), missing, why or "no run is about it")
    if why := _unusable(claim.metric, [records[name] for name in ids]):
        return ClaimVerdict(claim, "not tested", None, math.nan, (), (), why)
    places = cells(claim, wanted, records)
    result = result_of(claim, places, plan.protocol.alpha, plan.protocol.tasks, predictions)
    return ClaimVerdict(
        claim,
        result.verdict,
        result,
        math.nan,
        ids,
        (),
        "",
        floor=floor_of(claim, places),
        detectable=_detectable(result, plan.protocol.power),
    )


def about(claim: ClaimConfig, run: PlannedRun) -> bool:
    """Whether a run's task and budget are among those of a claim."""
    return (claim.tasks is None or run.config.task.name in claim.tasks) and (
        claim.budgets is None or run.budget in claim.budgets
    )


def cells(claim: ClaimConfig, runs: Sequence[PlannedRun], records: Mapping[str, RunRecord]) -> list[Cell]:
    """The runs of a claim by task and budget, paired by seed."""
    found = []
    for task, budget in dict.fromkeys((run.config.task, run.budget) for run in runs):
        here = [run for run in runs if run.config.task == task and run.budget == budget]
        sides = [
            {r.config.seed: records[r.config.run_id] for r in here if r.arm == arm}
            for arm in (claim.arm, claim.reference)
        ]
        seeds = sorted(sides[0].keys() & sides[1].keys())
        found.append(Cell(task.name, budget, *(tuple(side[seed] for seed in seeds) for side in sides)))
    return found


def values(claim: ClaimConfig, places: Sequence[Cell]) -> list[Array]:
    """Differences arm minus reference of a metric, or ratios arm over reference of a cost: `(seeds,)` per cell."""
    rows = []
    for cell in places:
        one, other = (np.array([measured(claim.metric, run) for run in side]) for side in (cell.arm, cell.reference))
        rows.append(one / other if claim.metric in COSTS else one - other)
    return rows


def measured(metric: str, run: RunRecord) -> float:
    """A metric or a cost of a run; `main` is the first of its metrics.

    Raises:
        KeyError: the run has no such metric.
    """
    if metric in RECORDED:
        return float(getattr(run, metric))
    if metric in (*COSTS, *MEASURES):
        return run.costs[metric]
    return run.metrics[next(iter(run.metrics)) if metric == MAIN else metric].value


def _unusable(metric: str, runs: Sequence[RunRecord]) -> str:
    """Why these runs cannot be compared in this, or nothing."""
    without = [run.run_id for run in runs if not _has(metric, run)]
    if without:
        what = "main metric that is a number" if metric == MAIN else metric
        return f"{len(without)} of {len(runs)} runs have no {what} ({without[0]})"
    machines = {json.dumps(run.environment.get("machine"), sort_keys=True, default=str) for run in runs}
    if metric in OF_THE_MACHINE and len(machines) > 1:
        return f"its runs were measured on {len(machines)} different machines, and {metric} only compares on one"
    return ""


def _has(metric: str, run: RunRecord) -> bool:
    """Whether it was measured, and is a number that its kind of claim can be tested with: no ratio without a size."""
    try:
        value = measured(metric, run)
    except (KeyError, StopIteration):
        return False
    return math.isfinite(value) and (metric not in COSTS or value > 0)


def result_of(
    claim: ClaimConfig, places: Sequence[Cell], alpha: float, tasks: Tasks, predictions: Predictions | None = None
) -> ClaimResult:
    """The test that a claim asks for.

    Of costs less is better, and a margin m is a factor: at most 1 + m, less than 1 / (1 + m).

    Args:
        claim: testable.
        places: the paired runs.
        alpha: one-sided level.
        tasks: how the tasks are read.
        predictions: of these runs; without them the noise of the evaluation examples is left out.
    """
    rows = values(claim, places)
    above, below = edges(claim, places)
    kind = claim.kind if claim.kind != "bound" else "at most" if claim.at_most is not None else "at least"
    if claim.metric in COUNTED:
        return _counted(rows, kind, above, below, alpha)
    if claim.metric in COSTS:
        return judge(kind, evidence([np.log(row) for row in rows], tasks, rounding=1e-9), alpha, above, below, "ratio")
    found = evidence(rows, tasks)
    if predictions is not None and claim.metric not in MEASURES:
        found = on_examples(found, *examples_noise(claim.metric, places, predictions))
    return judge(kind, found, alpha, above, below)


def edges(claim: ClaimConfig, places: Sequence[Cell]) -> tuple[float, float]:
    """Between what the claim says that the true mean lies: a difference, or a ratio of costs."""
    margin = claim.margin
    if claim.kind == "bound":
        return (
            -math.inf if claim.at_least is None else claim.at_least,
            math.inf if claim.at_most is None else claim.at_most,
        )
    if claim.metric in COSTS:
        factor = 1 + margin
        above = 1 / factor if claim.kind == "equivalence" else -math.inf
        return above, 1 / factor if claim.kind == "superiority" else factor
    if claim.kind == "equivalence":
        return -margin, margin
    edge = margin if claim.kind == "superiority" else -margin
    return (edge, math.inf) if _higher_is_better(claim, places) else (-math.inf, -edge)


def examples_noise(metric: str, places: Sequence[Cell], predictions: Predictions) -> tuple[float, float]:
    """Standard error and degrees of freedom of the mean difference over draws of the evaluation examples.

    Cells of one task share their examples, so their errors add up; those of different tasks add in quadrature.
    """
    by_task: dict[str, float] = {}
    fewest = math.inf
    for cell in places:
        name = next(iter(cell.arm[0].metrics)) if metric == MAIN else metric
        found, examples = variance_of_examples(cell.arm, cell.reference, predictions, name)
        by_task[cell.task] = by_task.get(cell.task, 0.0) + math.sqrt(found)
        fewest = min(fewest, examples)
    return math.hypot(*by_task.values()) / len(places), fewest - 1


def floor_of(claim: ClaimConfig, places: Sequence[Cell]) -> NoiseFloor | None:
    """How far runs of the reference arm differ by seed alone: seeds 1 and 2, 3 and 4, … are pairs.

    None for fewer than two seeds, and for numbers without noise.
    """
    if claim.metric in COUNTED or any(len(cell.reference) < 2 for cell in places):
        return None
    rows = []
    for cell in places:
        found = np.array([measured(claim.metric, run) for run in cell.reference])
        found = np.log(found) if claim.metric in COSTS else found
        even = len(found) // 2 * 2
        rows.append(found[1:even:2] - found[:even:2])
    return noise_floor(rows, min(len(cell.reference) for cell in places))


def _detectable(result: ClaimResult, power: float) -> float | None:
    """The smallest effect beyond the margin that these seeds find, with the spread they have; None if unknown."""
    found = result.evidence
    if found is None or found.reading == "random" or min(found.seeds) < 2:
        return None
    spread = math.sqrt(float(np.mean(np.square(found.spreads))))
    if not spread > 0:
        return None
    return smallest_effect(spread, min(found.seeds), alpha=result.alpha, power=power, tasks=len(found.seeds))


def _counted(rows: Sequence[Array], kind: str, above: float, below: float, alpha: float) -> ClaimResult:
    """Numbers without noise: supported if every ratio lies in the range, refuted if none does."""
    found = bound(list(rows), 1.0, scale="ratio", counted=True, alpha=alpha)
    every = np.concatenate(list(rows))
    kept = (every <= below) & (every >= above)
    word: Literal["supported", "refuted", "inconclusive"] = (
        "supported" if kept.all() else "inconclusive" if kept.any() else "refuted"
    )
    note = "" if kept.all() or not kept.any() else f"{int(kept.sum())} of {len(kept)} values are within"
    return replace(found, kind=kind, verdict=word, above=above, below=below, note=note)


def _higher_is_better(claim: ClaimConfig, places: Sequence[Cell]) -> bool:
    if claim.metric in MEASURES:
        return True
    name = next(iter(places[0].arm[0].metrics)) if claim.metric == MAIN else claim.metric
    return METRICS[name].higher_is_better


def _settle(verdict: ClaimVerdict, word: Word) -> str:
    if word != "inconclusive":
        return verdict.settle
    assert verdict.result is not None
    if verdict.result.verdict != "inconclusive":
        return "one claim less in the plan, or more seeds: it stands alone, but not after the correction"
    if any(seeds < 2 for seeds in verdict.result.seeds):
        return "at least two seeds per task"
    seeds = what_would_settle(verdict.result)
    if seeds is None:
        return "more than 999 seeds, if estimate and spread stayed as they are"
    return f"about {seeds} seeds per task, if estimate and spread stayed as they are"
