"""From decisions and predictions to what `explain.json` holds: plain data, no NaN."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.adapters.conditional.decisions import Decisions
from rankwise.adapters.conditional.rad_cache import CacheReport
from rankwise.experiments.card import short_name
from rankwise.experiments.explain_statistics import (
    PERMUTATIONS,
    Integers,
    extremes,
    information,
    rank_counts,
    share_by_class,
    thirds,
)
from rankwise.experiments.explain_subject import Subject
from rankwise.tasks.metrics import evaluate

SHOWN = 5
"""Examples at either end."""
THIRDS = ("least adapted third", "middle third", "most adapted third")
LABEL_THIRDS = ("lowest labels", "middle labels", "highest labels")
LEVEL = 0.05
"""A module's decision says something about the class if its p-value over all modules is at most this."""


@dataclass(frozen=True)
class Observed:
    """Of every example, in the order of the split: decisions, predictions and labels (class indices, or numbers).

    `cache` is what the adapter's memory of decisions did meanwhile, if it has one: hits are examples that came again.
    """

    decisions: Decisions
    predictions: NDArray[Any]
    labels: NDArray[Any]
    cache: CacheReport | None = None

    @property
    def ranks(self) -> Integers:
        """(examples, modules)."""
        found: Integers = self.decisions.ranks.numpy()
        return found


def described(subject: Subject, observed: Observed) -> dict[str, Any]:
    """Everything `rankwise explain` says, as JSON holds it; docs/explain.md describes the fields."""
    decisions, ranks = observed.decisions, observed.ranks
    opened = ranks > 0
    shares = opened.mean(axis=0)
    classes, names = groups(subject, observed.labels)
    record = subject.source.record
    return {
        "checkpoint": str(subject.source.folder),
        "run_id": record.run_id if record else None,
        "method": record.method if record else None,
        "peft_type": subject.kind,
        "base_model": short_name(subject.model),
        "task": short_name(subject.task.name),
        "split": subject.split,
        "examples": len(ranks),
        "examples_in_split": subject.of,
        "kind": decisions.kind,
        "share_open": float(shares.mean()),
        "share_of_rank": float(ranks.mean(axis=0).sum() / sum(decisions.full)),
        "never_open": int((shares == 0).sum()),
        "always_open": int((shares == 1).sum()),
        "sometimes_open": int(((shares > 0) & (shares < 1)).sum()),
        "cache": None if observed.cache is None else asdict(observed.cache) | {"rate": observed.cache.rate},
        "permutations": PERMUTATIONS,
        "modules": _modules(observed, classes, names),
        "classes": _classes(ranks, classes, names),
        "ranks_used": {str(rank): count for rank, count in rank_counts(ranks).items()},
        "thirds": _thirds(subject, observed),
        **_examples(subject, observed),
    }


def groups(subject: Subject, labels: NDArray[Any]) -> tuple[Integers, tuple[str, ...]]:
    """The class of every example, and the names of the classes; for regression thirds of the label."""
    if subject.task.kind == "classification":
        return labels.astype(np.int64), subject.task.label_names
    return thirds(labels.astype(np.float64)), LABEL_THIRDS


def _modules(observed: Observed, classes: Integers, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    ranks, decisions = observed.ranks, observed.decisions
    opened = ranks > 0
    said = information(ranks, classes)
    by_class = share_by_class(opened, classes, len(names))
    return {
        name: {
            "rank": decisions.full[i],
            "open": float(opened[:, i].mean()),
            "mean_rank": float(ranks[:, i].mean()),
            "open_by_class": {
                label: float(by_class[k, i]) for k, label in enumerate(names) if np.isfinite(by_class[k, i])
            },
            "bits": float(said.bits[i]),
            "bits_by_chance": float(said.chance[i]),
            "p": float(said.p[i]),
        }
        for i, name in enumerate(decisions.names)
    }


def _classes(ranks: Integers, classes: Integers, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    found = {}
    for k, name in enumerate(names):
        rows = ranks[classes == k]
        if len(rows):
            found[name] = {
                "examples": len(rows),
                "share_open": float((rows > 0).mean()),
                "mean_total_rank": float(rows.sum(axis=1).mean()),
            }
    return found


def _thirds(subject: Subject, observed: Observed) -> list[dict[str, Any]]:
    """How good predictions are for little and much adapted examples."""
    total = observed.ranks.sum(axis=1)
    group = thirds(total)
    metric = "accuracy" if subject.task.kind == "classification" else "mse"
    found = []
    for k, name in enumerate(THIRDS):
        rows = group == k
        if rows.any():
            value = evaluate([metric], observed.predictions[rows], observed.labels[rows])[metric]
            spread = {"from": int(total[rows].min()), "to": int(total[rows].max())}
            measured = {"metric": metric, "value": value.value, "se": _number(value.se)}
            found.append({"third": name, "total_rank": spread, "examples": int(rows.sum()), **measured})
    return found


def _examples(subject: Subject, observed: Observed) -> dict[str, list[dict[str, Any]]]:
    total, opened = observed.ranks.sum(axis=1), (observed.ranks > 0).sum(axis=1)
    most, least = extremes(total, opened, SHOWN)

    def shown(i: int) -> dict[str, Any]:
        row: Mapping[str, Any] = subject.examples[i]
        pair = {"text_pair": row["text_pair"]} if "text_pair" in row else {}
        return {
            "example": subject.index[i],
            "text": row["text"],
            **pair,
            "label": said_of(subject, observed.labels[i]),
            "prediction": said_of(subject, observed.predictions[i]),
            "open": int(opened[i]),
            "total_rank": int(total[i]),
        }

    return {"most_adapted": [shown(i) for i in most], "least_adapted": [shown(i) for i in least]}


def said_of(subject: Subject, value: Any) -> str | float:  # noqa: ANN401 - an entry of an array
    """A label or prediction: a class by its name, a number as it is."""
    return subject.task.label_names[int(value)] if subject.task.kind == "classification" else float(value)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
