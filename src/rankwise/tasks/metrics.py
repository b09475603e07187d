"""Metrics: what they are called, which tasks they fit, their values and their standard errors.

Every metric has one definition, written so that it evaluates many resamples of the examples at once; the value
is that definition on the examples as they are, and the standard error comes from resamples of them:

- classification metrics are functions of the confusion counts `(resamples, classes, classes)`, rows are the
  true classes. Drawing examples with replacement is the same as drawing the counts from a multinomial, so a
  bootstrap of 1,000 resamples costs nothing however many examples there are.
- regression metrics are functions of predictions, references and how often each example was drawn.

Accuracy needs no resampling: its standard error is that of a binomial share, `sqrt(p (1 - p) / n)`. At p = 0 or
1 it is 0: that plug-in says nothing about examples that were not seen.

Degenerate cases have values, not NaN: Matthews correlation with only one class predicted (or present), F1 without
any positive, and the correlations of a constant are 0, "nothing was learned". A resample that is degenerate
counts as 0 too, so on a handful of examples the standard error is wide rather than undefined.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankwise.errors import DataError, TrainingError, UnknownNameError
from rankwise.registry import Registry
from rankwise.tasks.base import Kind, MetricValue

Array: TypeAlias = NDArray[np.float64]
Fit = Literal["classification", "binary", "regression"]

RESAMPLES = 1000
"""Bootstrap resamples: the standard error itself is then known to about 2 %."""
SEED = 0

_CHUNK = 100
"""Resamples held at once; bounds the memory of the regression bootstrap."""


@dataclass(frozen=True)
class Metric:
    """A metric.

    `fits` is `classification` (any number of classes), `binary` (two classes, class 1 is the positive one) or
    `regression`. `function` maps confusion counts, or (predictions, references, weights), to one value per
    resample.
    """

    name: str
    fits: Fit
    function: Callable[..., Array]
    higher_is_better: bool = True

    @property
    def summary(self) -> str:
        """What it is, in one line."""
        return (self.function.__doc__ or "").partition("\n")[0]

    def suits(self, kind: Kind, num_labels: int) -> bool:
        """Whether the metric exists for such a task."""
        if kind == "regression" or self.fits == "regression":
            return kind == self.fits
        return self.fits == "classification" or num_labels == 2


METRICS: Registry[Metric] = Registry("metric")


def _metric(
    name: str, fits: Fit, higher_is_better: bool = True
) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Decorator that files a function as a metric and leaves the function as it is."""

    def add(function: Callable[..., Array]) -> Callable[..., Array]:
        METRICS.register(name)(Metric(name, fits, function, higher_is_better))
        return function

    return add


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Numerator / denominator, and 0 where the denominator is 0."""
    safe = np.where(denominator > 0, denominator, 1.0)
    return np.where(denominator > 0, numerator / safe, 0.0)


@_metric("accuracy", "classification")
def accuracy(counts: Array) -> Array:
    """Share of examples whose class is predicted."""
    return _ratio(np.trace(counts, axis1=1, axis2=2), counts.sum(axis=(1, 2)))


@_metric("f1", "binary")
def f1(counts: Array) -> Array:
    """Harmonic mean of precision and recall of class 1, as GLUE reports it."""
    hits = counts[:, 1, 1]
    return _ratio(2 * hits, counts[:, 1, :].sum(axis=1) + counts[:, :, 1].sum(axis=1))


@_metric("matthews_correlation", "classification")
def matthews_correlation(counts: Array) -> Array:
    """Correlation of predicted and true class, for any number of classes (Gorodkin 2004)."""
    total = counts.sum(axis=(1, 2))
    true, predicted = counts.sum(axis=2), counts.sum(axis=1)
    covariance = np.trace(counts, axis1=1, axis2=2) * total - (true * predicted).sum(axis=1)
    spread = (total**2 - (true**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(spread))


@_metric("pearson", "regression")
def pearson(predictions: Array, references: Array, weights: Array) -> Array:
    """Linear correlation. predictions, references: (n,) or (resamples, n); weights: (resamples, n)."""
    total = weights.sum(axis=1, keepdims=True)
    x = predictions - (weights * predictions).sum(axis=1, keepdims=True) / total
    y = references - (weights * references).sum(axis=1, keepdims=True) / total
    x_spread, y_spread = (weights * x * x).sum(axis=1), (weights * y * y).sum(axis=1)
    # A constant leaves rounding noise after centring, whose "correlation" would be arbitrary.
    noise = 1e-13 * np.sqrt(total[:, 0])
    x_norm = np.where(np.sqrt(x_spread) > noise * np.abs(predictions).max(), np.sqrt(x_spread), 0.0)
    y_norm = np.where(np.sqrt(y_spread) > noise * np.abs(references).max(), np.sqrt(y_spread), 0.0)
    return np.clip(_ratio((weights * x * y).sum(axis=1), x_norm * y_norm), -1.0, 1.0)


@_metric("spearman", "regression")
def spearman(predictions: Array, references: Array, weights: Array) -> Array:
    """Linear correlation of the ranks, ties at their mean rank, ranked anew in every resample."""
    return pearson(_mid_ranks(predictions, weights), _mid_ranks(references, weights), weights)


@_metric("mse", "regression", higher_is_better=False)
def mse(predictions: Array, references: Array, weights: Array) -> Array:
    """Mean squared error."""
    return _ratio(weights @ (predictions - references) ** 2, weights.sum(axis=1))


@_metric("mae", "regression", higher_is_better=False)
def mae(predictions: Array, references: Array, weights: Array) -> Array:
    """Mean absolute error."""
    return _ratio(weights @ np.abs(predictions - references), weights.sum(axis=1))


def _mid_ranks(values: Array, weights: Array) -> Array:
    """Ranks of `values: (n,)` where example i occurs `weights[r, i]` times; (resamples, n)."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
    per_value = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = np.cumsum(per_value, axis=1) - (per_value - 1) / 2
    group = np.empty(len(values), dtype=np.intp)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    return ranks[:, group]


def decode(kind: Kind, logits: NDArray[Any]) -> NDArray[Any]:
    """Predictions from a model's output: class indices (n,) from (n, classes), floats (n,) from (n, 1).

    Raises:
        TrainingError: the model put out NaN or infinity.
        ValueError: the shape is neither of the two.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or (kind == "regression" and logits.shape[1] != 1):
        width = "classes" if kind == "classification" else "1"
        raise ValueError(f"{kind} logits of shape {logits.shape}; expected (examples, {width})")
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise TrainingError(
            f"the model's output is NaN or infinite on {bad} of {len(logits)} examples; "
            "training diverged: lower training.learning_rate"
        )
    return logits.argmax(axis=1) if kind == "classification" else logits[:, 0].astype(np.float64)


def evaluate(names: Sequence[str], predictions: NDArray[Any], references: NDArray[Any]) -> dict[str, MetricValue]:
    """Value, standard error and n of each metric, in the order asked for.

    Args:
        names: names in `METRICS`.
        predictions: (n,) class indices, or floats for regression metrics.
        references: (n,) the true ones.

    Raises:
        UnknownNameError: no such metric.
        DataError: no examples, lengths that differ, or F1 on more than two classes.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.shape != references.shape or predictions.ndim != 1 or not len(predictions):
        raise DataError(
            f"metrics need as many predictions as references, at least one; "
            f"got shapes {predictions.shape} and {references.shape}"
        )
    return {name: _evaluate_one(METRICS[name], predictions, references) for name in names}


def _evaluate_one(metric: Metric, predictions: NDArray[Any], references: NDArray[Any]) -> MetricValue:
    n = len(predictions)
    rng = np.random.default_rng(SEED)
    if metric.fits == "regression":
        x, y = predictions.astype(np.float64), references.astype(np.float64)
        value = float(metric.function(x, y, np.ones((1, n)))[0])
        return MetricValue(value, float(_resampled_regression(metric, x, y, rng).std(ddof=1)), n)
    counts = _confusion(metric, predictions, references)
    value = float(metric.function(counts[None])[0])
    if metric.name == "accuracy":
        return MetricValue(value, float(np.sqrt(value * (1 - value) / n)), n)
    drawn = rng.multinomial(n, counts.ravel() / n, size=RESAMPLES).reshape(RESAMPLES, *counts.shape)
    return MetricValue(value, float(metric.function(drawn.astype(np.float64)).std(ddof=1)), n)


def _confusion(metric: Metric, predictions: NDArray[Any], references: NDArray[Any]) -> Array:
    """Counts (classes, classes): row = true class, column = predicted class."""
    classes = max(2, int(max(predictions.max(), references.max())) + 1)
    if metric.fits == "binary" and classes > 2:
        raise DataError(f"{metric.name} is for two classes (1 is the positive one); class index {classes - 1} found")
    pairs = references.astype(np.intp) * classes + predictions.astype(np.intp)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def _resampled_regression(metric: Metric, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """The metric on `RESAMPLES` draws of the examples with replacement."""
    n = len(x)
    values = []
    for _ in range(RESAMPLES // _CHUNK):
        weights = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(_CHUNK)])
        values.append(metric.function(x, y, weights.astype(np.float64)))
    return np.concatenate(values)


def allowed_metrics(kind: Kind, num_labels: int) -> tuple[str, ...]:
    """Names of the metrics that exist for such a task."""
    return tuple(name for name in METRICS if METRICS[name].suits(kind, num_labels))


_ALIASES = {
    "acc": "accuracy",
    "f1score": "f1",
    "f1binary": "f1",
    "matthews": "matthews_correlation",
    "matthewscorr": "matthews_correlation",
    "matthewscorrcoef": "matthews_correlation",
    "matthewscorrelationcoefficient": "matthews_correlation",
    "mcc": "matthews_correlation",
    "pearsonr": "pearson",
    "pearsoncorr": "pearson",
    "pearsoncorrelation": "pearson",
    "spearmanr": "spearman",
    "spearmanrho": "spearman",
    "spearmancorr": "spearman",
    "spearmancorrelation": "spearman",
    "meansquarederror": "mse",
    "meanabsoluteerror": "mae",
}


def canonical_metric(name: str) -> str | None:
    """Our name for a metric as others write it (`matthews_corrcoef`, `acc`, `validation_accuracy`), or None."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    for word in (key, re.sub(r"^(validation|eval|dev|val)", "", key)):
        own = {metric.replace("_", ""): metric for metric in METRICS}
        if found := own.get(word) or _ALIASES.get(word):
            return found
    return None


def check_metric(name: str, kind: Kind, num_labels: int) -> str:
    """The canonical name of a metric that exists for such a task.

    Raises:
        UnknownNameError: no such metric, or not for this kind of task; the message lists the allowed ones.
    """
    found = canonical_metric(name)
    if found is None:
        raise UnknownNameError(METRICS.explain(name))
    if not METRICS[found].suits(kind, num_labels):
        classes = f" with {num_labels} classes" if kind == "classification" else ""
        allowed = ", ".join(allowed_metrics(kind, num_labels))
        raise UnknownNameError(f"metric '{found}' does not exist for {kind}{classes}; allowed: {allowed}")
    return found
