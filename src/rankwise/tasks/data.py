"""What every task family shares: sampling, checks, the content hash and the columns handed out."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankwise.errors import DataError
from rankwise.hub import hub_reachable
from rankwise.tasks.base import Kind, TaskConfig, TaskData

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLE_SEED = 0
"""Seed of every sample and split made here: data are the same for every run, whatever the run's own seed."""


@dataclass(frozen=True)
class Examples:
    """One split in memory, columns of equal length. `label` holds class indices or floats."""

    text: Sequence[str]
    label: Sequence[int] | Sequence[float]
    text_pair: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.text)

    def take(self, indices: NDArray[np.intp]) -> "Examples":
        """The examples at `indices`, in that order."""
        picked = [int(i) for i in indices]
        pair = None if self.text_pair is None else [self.text_pair[i] for i in picked]
        return Examples([self.text[i] for i in picked], [self.label[i] for i in picked], pair)

    def columns(self) -> dict[str, list[Any]]:
        """Column name -> values, as handed out."""
        pair = {} if self.text_pair is None else {"text_pair": list(self.text_pair)}
        return {"text": list(self.text), **pair, "label": list(self.label)}


def stratified_sample(
    labels: Sequence[int] | Sequence[float], count: int, kind: Kind, seed: int = SAMPLE_SEED
) -> NDArray[np.intp]:
    """Indices, ascending, of `count` examples drawn without replacement; all of them where there are fewer.

    For classification every class keeps its share (largest remainder, at least one example while `count`
    allows); for regression the draw is uniform.
    """
    total = len(labels)
    rng = np.random.default_rng(seed)
    if count >= total:
        return np.arange(total)
    if kind == "regression":
        return np.sort(rng.permutation(total)[:count])
    classes, members = np.unique(np.asarray(labels), return_inverse=True)
    sizes = np.bincount(members, minlength=len(classes))
    quota = _shares(sizes, count)
    picked = [rng.permutation(np.flatnonzero(members == k))[: quota[k]] for k in range(len(classes))]
    return np.sort(np.concatenate(picked))


def _shares(sizes: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """`count` places over classes in proportion to `sizes`, exactly, at least one each if there are enough places."""
    floor = np.minimum(sizes, 1 if count >= len(sizes) else 0)
    exact = floor + (count - floor.sum()) * (sizes - floor) / max(1, (sizes - floor).sum())
    quota: NDArray[np.intp] = np.floor(exact + 1e-9).astype(np.intp)
    by_remainder = np.argsort(-(exact - quota), kind="stable")
    quota[by_remainder[: count - quota.sum()]] += 1
    return quota


def split_off(examples: Examples, fraction: float, kind: Kind, seed: int = SAMPLE_SEED) -> tuple[Examples, Examples]:
    """(rest, part): a stratified `fraction` of the examples split off, at least one and never all of them."""
    count = min(len(examples) - 1, max(1, round(fraction * len(examples))))
    part = stratified_sample(examples.label, count, kind, seed)
    if kind == "classification":  # a class whose only examples would leave stays behind with one
        labels = np.asarray(examples.label)
        gone = [k for k in np.unique(labels) if (labels[part] == k).sum() == (labels == k).sum()]
        part = np.setdiff1d(part, [part[labels[part] == k][0] for k in gone])
    rest = np.setdiff1d(np.arange(len(examples)), part)
    return examples.take(rest), examples.take(part)


def fingerprint(kind: Kind, label_names: Sequence[str], splits: Mapping[str, Examples]) -> str:
    """Hash of the content, 16 hex digits; equal for equal examples in equal order, on any machine."""
    digest = hashlib.sha256(json.dumps([kind, list(label_names)]).encode())
    for name, examples in splits.items():
        digest.update(json.dumps([name, examples.columns()]).encode())
    return digest.hexdigest()[:16]


def check_examples(
    source: str, kind: Kind, train: Examples, validation: Mapping[str, Examples], label_names: Sequence[str]
) -> None:
    """Refuse data that cannot be learned from or that would be scored wrongly.

    Raises:
        DataError: an empty split, one class only, a label out of range or seen only in validation, a label
            that is not finite.
    """
    for split, examples in {"train": train, **validation}.items():
        if not len(examples):
            raise DataError(f"{source}: the {split} split is empty")
        if split != "train" and len(examples) < 2:
            raise DataError(f"{source}: the {split} split has 1 example; error bars need at least 2")
        labels = np.asarray(examples.label)
        if kind == "regression" and not np.isfinite(labels).all():
            row = int(np.flatnonzero(~np.isfinite(labels))[0]) + 1
            raise DataError(f"{source}: the label in row {row} of the {split} split is not a finite number")
        if kind == "classification" and not (labels.min() >= 0 and labels.max() < len(label_names)):
            raise DataError(
                f"{source}: the {split} split has class indices {labels.min()} to {labels.max()}; "
                f"allowed are 0 to {len(label_names) - 1} ({', '.join(label_names)})"
            )
    if kind == "regression":
        return
    known = set(train.label)
    if len(known) == 1:
        raise DataError(
            f"{source}: every training example has the label '{label_names[int(min(known))]}'; need two classes"
        )
    for split, examples in validation.items():
        if unseen := sorted(set(examples.label) - known):
            names = ", ".join(f"'{label_names[int(k)]}'" for k in unseen)
            raise DataError(f"{source}: label {names} occurs in the {split} split but in no training example")


def assemble(
    config: TaskConfig,
    name: str,
    kind: Kind,
    train: Examples,
    validation: Mapping[str, Examples],
    label_names: Sequence[str],
    metrics: Sequence[str],
) -> TaskData:
    """Check the examples, apply the caps of `config` and hand them out in the common shape.

    Raises:
        DataError: as `check_examples`.
    """
    check_examples(name, kind, train, validation, label_names)
    if config.train_examples is not None:
        train = train.take(stratified_sample(train.label, config.train_examples, kind))
    if config.validation_examples is not None:
        cap = config.validation_examples
        validation = {split: e.take(stratified_sample(e.label, cap, kind)) for split, e in validation.items()}
    return TaskData(
        name=name,
        kind=kind,
        train=to_dataset(train, kind),
        validation={split: to_dataset(examples, kind) for split, examples in validation.items()},
        label_names=tuple(label_names),
        metrics=tuple(metrics),
        fingerprint=fingerprint(kind, label_names, {"train": train, **validation}),
    )


def to_dataset(examples: Examples, kind: Kind) -> "Dataset":
    """An in-memory `datasets.Dataset` with the columns `text`, `text_pair` (if any) and `label`."""
    from datasets import Dataset, Features, Value

    columns = examples.columns()
    types = {name: Value("string") for name in columns}
    types["label"] = Value("int64" if kind == "classification" else "float64")
    return Dataset.from_dict(columns, features=Features(types))


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Turn the progress bars of `datasets` off inside the block, and leave them as they were."""
    import datasets

    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def load_hub(repository: str, subset: str | None, hint: str) -> "Mapping[str, Dataset]":
    """Every split of a dataset on the Hugging Face hub.

    Raises:
        DataError: no such dataset, or no network; ends with `hint`.
    """
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = not hub_reachable()  # then the cache is tried at once, without retries
    try:
        with quiet_datasets():
            splits: Mapping[str, Dataset] = datasets.load_dataset(repository, subset)
    # The hub client raises its own, httpx's and the standard library's errors; all mean "could not be had".
    except Exception as error:
        target = f"{repository} ({subset})" if subset else repository
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(f"dataset '{target}' could not be loaded from the Hugging Face hub: {reason} {hint}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    return splits
