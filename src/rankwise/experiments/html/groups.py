"""The runs of a report by task, budget and arm, and what they add up to: means, intervals, paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from rankwise.errors import DataError
from rankwise.experiments.html.inputs import ReportInput, ReportRun, reference_of
from rankwise.experiments.records import RunRecord
from rankwise.experiments.statistics import Comparison, compare_arms, summarise
from rankwise.experiments.store import Store
from rankwise.tasks.base import MetricValue
from rankwise.tasks.metrics import METRICS

CONFIDENCE = 0.95
_NO_EXAMPLES = "seeds only: without stored predictions the noise of the evaluation examples is left out"
_NOTHING = "one seed and no stored predictions: there is no interval"


@dataclass(frozen=True, eq=False)
class Group:
    """The completed runs of one arm on one task at one budget, by seed; two are equal if they are the same object."""

    task: str
    budget: str
    arm: str
    records: tuple[RunRecord, ...]

    @property
    def metric(self) -> str:
        """The metric that decides on the task: the first one."""
        return next((next(iter(r.metrics)) for r in self.records if r.metrics), "")

    def summary(self, metric: str) -> MetricValue | None:
        """Mean, standard error and number of seeds of a metric; None if no run has a finite value of it."""
        values = [r.metrics[metric] for r in self.records if metric in r.metrics]
        values = [value for value in values if math.isfinite(value.value)]
        return summarise(values) if values else None

    def examples(self, metric: str) -> int:
        """Evaluation examples behind each run's value."""
        return max((r.metrics[metric].n for r in self.records if metric in r.metrics), default=0)

    @property
    def parameters(self) -> float:
        """Mean of the adapter parameters in the checkpoints."""
        return sum(r.parameters for r in self.records) / len(self.records)

    @property
    def peak_parameters(self) -> float:
        """Mean of the most parameters trained at once."""
        return sum(r.peak_parameters for r in self.records) / len(self.records)


@dataclass(frozen=True)
class Difference:
    """A paired comparison and the place in the report that it belongs to; `found.arm` is the arm's name."""

    task: str
    budget: str
    found: Comparison


def groups_of(runs: Sequence[ReportRun]) -> list[Group]:
    """The completed runs, grouped; one per seed, in the order in which groups first appear."""
    found: dict[tuple[str, str, str], dict[int, RunRecord]] = {}
    for run in runs:
        if run.record.status == "completed":
            found.setdefault((run.record.task, run.budget, run.arm), {})[run.record.seed] = run.record
    return [Group(*key, tuple(by_seed[seed] for seed in sorted(by_seed))) for key, by_seed in found.items()]


def places_of(groups: Sequence[Group]) -> dict[tuple[str, str], list[Group]]:
    """The groups of each task and budget."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        found.setdefault((group.task, group.budget), []).append(group)
    return found


def arms_of(groups: Sequence[Group]) -> list[str]:
    """Names of the arms in the order in which they first appear."""
    return list(dict.fromkeys(group.arm for group in groups))


def higher_is_better(metric: str) -> bool:
    """Direction of a metric; those of further splits (`accuracy_mismatched`) go by their beginning, losses are low."""
    for name in METRICS:
        if metric == name or metric.startswith(f"{name}_"):
            return METRICS[name].higher_is_better
    return not metric.startswith("loss")


def half_width(summary: MetricValue, confidence: float = CONFIDENCE) -> float:
    """Half the interval of a mean: t over the seeds, or normal over the examples where there is one seed; NaN: none."""
    tail = (1 + confidence) / 2
    factor = special.stdtrit(summary.n - 1, tail) if summary.n > 1 else special.ndtri(tail)
    return float(factor) * summary.se


def differences(report: ReportInput, store: Store) -> list[Difference]:
    """Every arm against the reference on every task at every budget, over the seeds that both ran with.

    The interval is that of `statistics.compare_arms`, over seeds and examples, where predictions are stored.
    """
    reference = reference_of(report)
    found = []
    for (task, budget), groups in places_of(groups_of(report.runs)).items():
        base = next((group for group in groups if group.arm == reference), None)
        for group in groups:
            if base is None or group is base:
                continue
            compared = compare_groups(group, base, store)
            if compared is not None:
                found.append(Difference(task, budget, compared))
    return found


def compare_groups(group: Group, base: Group, store: Store) -> Comparison | None:
    """The main metric of two groups seed by seed; None where they share neither seed nor metric."""
    seeds = {r.seed for r in group.records} & {r.seed for r in base.records}
    metric = group.metric
    sides = [
        [r for r in side.records if r.seed in seeds and math.isfinite(r.metrics.get(metric, _NONE).value)]
        for side in (group, base)
    ]
    seeds = {r.seed for r in sides[0]} & {r.seed for r in sides[1]}
    arm, other = ([r for r in side if r.seed in seeds] for side in sides)
    if not arm:
        return None
    try:
        predictions = {r.run_id: store.predictions(r.run_id, store.splits(r.run_id)[0]) for r in [*arm, *other]}
        found = compare_arms(arm, other, predictions, metric, confidence=CONFIDENCE)
    except (DataError, LookupError):  # no predictions, other examples, or a metric that cannot be made from them
        found = _over_seeds(arm, other, metric)
    return replace(found, arm=group.arm, reference=base.arm)


_NONE = MetricValue(math.nan, math.nan, 0)


def _over_seeds(arm: Sequence[RunRecord], other: Sequence[RunRecord], metric: str) -> Comparison:
    """Paired t interval over the seeds; infinite where there is one."""
    each = np.array([a.metrics[metric].value - b.metrics[metric].value for a, b in zip(arm, other, strict=True)])
    half, note = math.inf, _NOTHING
    if len(each) > 1:
        half = half_width(MetricValue(0.0, float(each.std(ddof=1)) / math.sqrt(len(each)), len(each)))
        note = _NO_EXAMPLES
    mean, examples = float(each.mean()), arm[0].metrics[metric].n
    return Comparison(
        arm[0].method, other[0].method, arm[0].task, metric, mean, mean - half, mean + half, len(each), examples,
        CONFIDENCE, note,
    )  # fmt: skip
