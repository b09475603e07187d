"""What the runs of a comparison add up to: means over seeds, paired differences, intervals.

Plain NumPy and SciPy on the records and predictions that the store holds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rankwise.errors import DataError
from rankwise.experiments.records import RunRecord
from rankwise.tasks.base import MetricValue
from rankwise.tasks.metrics import METRICS

Array: TypeAlias = NDArray[np.float64]
Predictions: TypeAlias = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
"""Run id -> (predictions, references), each `(examples,)`, of one split in one order."""

RESAMPLES = 1000
"""Bootstrap resamples of the examples: the standard error of a difference is then known to about 2 %."""
_CHUNK = 100
"""Resamples held at once; bounds the memory of the bootstrap."""
_SEED = 0

_ONE_SEED = "one seed: the interval covers the noise of the evaluation examples only, not of training"


@dataclass(frozen=True)
class Comparison:
    """`difference` is the mean over paired seeds of arm minus reference, `low` to `high` its interval.

    `n` is the number of paired seeds and `examples` that of evaluation examples; `note` is what a reader must know
    to read the interval, or empty.
    """

    arm: str
    reference: str
    task: str
    metric: str
    difference: float
    low: float
    high: float
    n: int
    examples: int
    confidence: float = 0.95
    note: str = ""


@dataclass(frozen=True)
class TimeRatio:
    """Median, lowest and highest over the paired seeds of the arm's training time over the reference's."""

    median: float
    low: float
    high: float


def summarise(values: Sequence[MetricValue]) -> MetricValue:
    """One metric over the seeds of a method: mean, standard error of that mean, number of seeds.

    The standard error is the seeds' standard deviation (n - 1 in the denominator) over the root of n. One seed says
    nothing about seeds: its own standard error over the evaluation examples is kept, with n = 1.

    Raises:
        DataError: there are no values.
    """
    if not values:
        raise DataError("no runs to summarise: at least one is needed")
    if len(values) == 1:
        return MetricValue(values[0].value, values[0].se, 1)
    each = np.array([value.value for value in values])
    return MetricValue(float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each))), len(each))


def time_ratio(arm: Sequence[RunRecord], reference: Sequence[RunRecord]) -> TimeRatio:
    """How much longer the arm trained than the reference, seed by seed; NaN if the reference took no time.

    Raises:
        DataError: the two do not have the same seeds.
    """
    pairs = _pair(arm, reference)
    ratios = [one.train_seconds / other.train_seconds if other.train_seconds > 0 else math.nan for one, other in pairs]
    return TimeRatio(float(np.median(ratios)), float(np.min(ratios)), float(np.max(ratios)))


def compare_arms(
    arm: Sequence[RunRecord],
    reference: Sequence[RunRecord],
    predictions: Predictions,
    metric: str,
    *,
    confidence: float = 0.95,
) -> Comparison:
    """The difference between two methods that ran with the same seeds and were evaluated on the same examples.

    Two things are sampled, seeds and examples, and they are crossed: every seed sees every example. With S paired
    seeds, N examples and D_s the difference of the metric for seed s,

        variance = V_seeds + V_examples
        V_seeds    = var(D_s) / S                      S - 1 degrees of freedom
        V_examples = variance of mean(D_s) when other  N - 1 degrees of freedom
                     examples are drawn, seeds fixed

    V_examples is var(d_i) / N for accuracy, d_i being the difference on example i averaged over the seeds; for any
    other metric it comes from a bootstrap of the examples, the same draws for both arms. Each part gets the half-width
    it would have alone, and the two are added in quadrature,

        half² = t²(S - 1) · V_seeds + t²(N - 1) · V_examples,

    which is exact when one part vanishes and was at 95 % or above in simulations of every mixture, also for two seeds,
    where one t quantile with pooled degrees of freedom (Satterthwaite) covered only 87 %.

    In the model d_si = mean + seed_s + example_i + rest_si each of the two parts contains var(rest) / (S N) while
    the true variance has it once: the interval is slightly wide. The bootstrap that draws seeds and examples at once
    has the same bias, for the same reason (Owen 2007). With one seed V_seeds cannot be estimated: the interval covers
    V_examples alone and `note` says so.

    Sources: W. G. Howe, "Approximate confidence limits on the mean of X + Y", Journal of the American Statistical
    Association 69, 1974; G. Y. Zou and A. Donner, "Construction of confidence limits about effect measures",
    Statistics in Medicine 27, 2008; A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007.

    Args:
        arm: completed runs of one method, one per seed.
        reference: completed runs of the other, of the same seeds.
        predictions: what each of these runs predicted on the evaluation split.
        metric: a name in `tasks.metrics.METRICS`.
        confidence: of the interval.

    Raises:
        DataError: seeds, tasks, models or examples of the runs do not match, or there are fewer than two examples.
        UnknownNameError: no such metric.
    """
    if not 0 < confidence < 1:
        raise DataError(f"confidence {confidence}: must be between 0 and 1")
    pairs = _pair(arm, reference)
    runs = [one for one, _ in pairs] + [other for _, other in pairs]
    _check_same_setting(runs)
    predicted, right = _matrix(runs, predictions)
    seeds, examples = len(pairs), len(right)

    values = _values(metric, predicted, right, np.ones((1, examples)))[:, 0]
    differences = values[:seeds] - values[seeds:]
    difference = float(differences.mean())
    from_examples = _variance_of_examples(metric, predicted, right)
    from_seeds = float(differences.var(ddof=1)) / seeds if seeds > 1 else 0.0
    half = _half_width(from_seeds, seeds, from_examples, examples, confidence)
    return Comparison(
        arm=arm[0].method,
        reference=reference[0].method,
        task=arm[0].task,
        metric=metric,
        difference=difference,
        low=difference - half,
        high=difference + half,
        n=seeds,
        examples=examples,
        confidence=confidence,
        note=_ONE_SEED if seeds == 1 else "",
    )


def variance_of_examples(
    arm: Sequence[RunRecord], reference: Sequence[RunRecord], predictions: Predictions, metric: str
) -> tuple[float, int]:
    """Variance of the mean difference over draws of the evaluation examples, seeds fixed; and how many there are.

    Raises:
        DataError: as `compare_arms`.
    """
    pairs = _pair(arm, reference)
    predicted, right = _matrix([one for one, _ in pairs] + [other for _, other in pairs], predictions)
    return _variance_of_examples(metric, predicted, right), len(right)


def _half_width(from_seeds: float, seeds: int, from_examples: float, examples: int, confidence: float) -> float:
    tail = (1 + confidence) / 2
    square = float(stats.t.ppf(tail, examples - 1)) ** 2 * from_examples
    if seeds > 1:
        square += float(stats.t.ppf(tail, seeds - 1)) ** 2 * from_seeds
    return math.sqrt(square)


def _pair(arm: Sequence[RunRecord], reference: Sequence[RunRecord]) -> list[tuple[RunRecord, RunRecord]]:
    """The runs of both arms seed by seed, in the order of the seeds."""
    by_seed: list[dict[int, RunRecord]] = []
    for runs, name in ((arm, "the arm"), (reference, "the reference")):
        found = {run.seed: run for run in runs}
        if not runs:
            raise DataError(f"{name} has no completed run to compare")
        if len(found) < len(runs):
            raise DataError(
                f"{name} '{runs[0].method}' has several runs of one seed: {sorted(run.seed for run in runs)}"
            )
        by_seed.append(found)
    ours, theirs = by_seed
    if ours.keys() != theirs.keys():
        raise DataError(
            f"'{arm[0].method}' ran with seeds {sorted(ours)} and '{reference[0].method}' with {sorted(theirs)}; "
            f"a paired comparison needs the same seeds for both"
        )
    return [(ours[seed], theirs[seed]) for seed in sorted(ours)]


def _check_same_setting(runs: Sequence[RunRecord]) -> None:
    for what in ("task", "model"):
        found = sorted({str(getattr(run, what)) for run in runs})
        if len(found) > 1:
            raise DataError(f"runs of different {what}s cannot be compared: {', '.join(found)}")


def _matrix(runs: Sequence[RunRecord], predictions: Predictions) -> tuple[Array, Array]:
    """Predictions `(runs, examples)` and the references `(examples,)` that all of them share."""
    rows: list[Array] = []
    right = np.empty(0)
    for run in runs:
        if run.run_id not in predictions:
            raise DataError(f"run {run.run_id} ({run.method}, seed {run.seed}) has no stored predictions")
        row, own = (np.asarray(part, dtype=float) for part in predictions[run.run_id])
        right = right if rows else own
        if row.shape != own.shape or not np.array_equal(own, right):
            raise DataError(
                f"run {run.run_id} ({run.method}, seed {run.seed}) was evaluated on other examples than run "
                f"{runs[0].run_id} ({len(own)} and {len(right)} examples, or other references)"
            )
        if not (np.isfinite(row).all() and np.isfinite(own).all()):
            raise DataError(f"run {run.run_id} ({run.method}, seed {run.seed}) has predictions that are not numbers")
        rows.append(row)
    if len(right) < 2:
        raise DataError(f"an interval needs at least 2 evaluation examples, there are {len(right)}")
    return np.stack(rows), right


def _variance_of_examples(metric: str, predicted: Array, right: Array) -> float:
    """Variance, over draws of the examples, of the mean over seeds of the difference.

    predicted: `(2 S, N)`, the arm's seeds first. Examples on which all runs agree in every respect are one group,
    and drawing examples is drawing group sizes from a multinomial, which is fast for classes.
    """
    seeds, examples = len(predicted) // 2, len(right)
    if metric == "accuracy":
        correct = (predicted == right).astype(float)
        return float((correct[:seeds].mean(axis=0) - correct[seeds:].mean(axis=0)).var(ddof=1)) / examples
    _, first, sizes = np.unique(np.vstack([predicted, right]), axis=1, return_index=True, return_counts=True)
    order = np.argsort(first)  # an order that does not depend on which arm is the reference
    chosen, sizes = first[order], sizes[order]
    rng = np.random.default_rng(_SEED)
    drawn = []
    for _ in range(RESAMPLES // _CHUNK):
        weights = rng.multinomial(examples, sizes / examples, size=_CHUNK).astype(float)
        values = _values(metric, predicted[:, chosen], right[chosen], weights)
        drawn.append(values[:seeds].mean(axis=0) - values[seeds:].mean(axis=0))
    return float(np.concatenate(drawn).var(ddof=1))


def _values(metric: str, predicted: Array, right: Array, weights: Array) -> Array:
    """The metric of every run under every weighting of the examples: `(runs, resamples)`.

    predicted: `(runs, examples)`; right: `(examples,)`; weights: `(resamples, examples)`, how often each counts.
    """
    definition = METRICS[metric]
    if definition.fits == "regression":
        return np.stack([definition.function(row, right, weights) for row in predicted])
    classes = max(2, int(max(predicted.max(), right.max())) + 1)
    if definition.fits == "binary" and classes > 2:
        raise DataError(f"metric '{metric}' is for two classes; class index {classes - 1} found")
    values = []
    for row in predicted:
        cell = right.astype(np.intp) * classes + row.astype(np.intp)  # rows are the true classes
        is_cell = np.zeros((len(right), classes**2))
        is_cell[np.arange(len(right)), cell] = 1.0
        values.append(definition.function((weights @ is_cell).reshape(-1, classes, classes)))
    return np.stack(values)
