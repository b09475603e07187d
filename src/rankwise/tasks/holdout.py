"""A split of the training examples for decisions, so that nothing is decided on the evaluation split."""

from dataclasses import replace

from rankwise.errors import DataError
from rankwise.tasks.base import TaskData
from rankwise.tasks.data import Examples, fingerprint, split_off, to_dataset

SPLIT = "holdout"
"""Name of the split that such a run is measured on."""


def held_out(data: TaskData, share: float, seed: int) -> TaskData:
    """The task with a share of its training examples as its only evaluation split; its validation examples are gone.

    The share is stratified for classification, and every class keeps at least one training example.

    Args:
        data: the whole task.
        share: of the training examples, between 0 and 1.
        seed: decides which ones.

    Raises:
        DataError: there are too few training examples to measure anything on the share.
    """
    columns = data.train
    pair = list(columns["text_pair"][:]) if "text_pair" in columns.column_names else None
    whole = Examples(list(columns["text"][:]), list(columns["label"][:]), pair)
    rest, part = split_off(whole, share, data.kind, seed)
    if len(part) < 2:
        raise DataError(
            f"task '{data.name}': a share of {share:g} of its {len(whole)} training examples leaves {len(part)} to "
            "measure on; error bars need at least 2, so hold out more"
        )
    splits = {"train": rest, SPLIT: part}
    return replace(
        data,
        train=to_dataset(rest, data.kind),
        validation={SPLIT: to_dataset(part, data.kind)},
        fingerprint=fingerprint(data.kind, data.label_names, splits),
    )
