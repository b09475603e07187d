"""Metrics of a run's predictions, and its evaluation loss."""

import math
from typing import TYPE_CHECKING

import numpy as np

from rankwise.experiments.schema import RunConfig
from rankwise.experiments.store import Store
from rankwise.tasks.base import Kind, MetricValue, TaskData

if TYPE_CHECKING:
    from rankwise.training.fit import Fitted


def metrics_of(
    config: RunConfig, data: TaskData, run_id: str, fitted: "Fitted", store: Store
) -> dict[str, MetricValue]:
    """Metrics of every validation split; those of further splits carry the split's name.

    Predictions go into the store, so that every comparison can be computed again from it.
    """
    from rankwise.tasks.metrics import check_metric, decode, evaluate

    names = [check_metric(m, data.kind, data.num_labels) for m in config.evaluation.metrics or data.metrics]
    metrics: dict[str, MetricValue] = {}
    for index, (split, logits) in enumerate(fitted.logits.items()):
        predictions, references = decode(data.kind, logits), fitted.references[split]
        store.add_predictions(run_id, split, predictions, references)
        found = evaluate(names, predictions, references) | {"loss": task_loss(data.kind, logits, references)}
        suffix = "" if index == 0 else f"_{split.removeprefix('validation_')}"
        metrics |= {f"{name}{suffix}": value for name, value in found.items()}
    return metrics


def task_loss(kind: Kind, logits: np.ndarray, references: np.ndarray) -> MetricValue:
    """Cross entropy (squared error for regression) with its standard error; no penalty of any method is in it.

    Args:
        kind: of the task.
        logits: (examples, labels).
        references: (examples,).
    """
    if kind == "regression":
        each = (logits.reshape(-1) - references) ** 2
    else:
        shifted = logits - logits.max(axis=1, keepdims=True)
        each = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(shifted)), references.astype(int)]
    n = len(each)
    return MetricValue(float(each.mean()), float(each.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan, n)
