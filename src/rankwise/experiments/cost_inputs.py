"""The texts that costs are measured on, as batches: a run's evaluation data, a task of one's own, or docstrings."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor

from rankwise.errors import ConfigError, DataError, Finding, ModelError
from rankwise.experiments.adapter_base import Base
from rankwise.experiments.records import RunRecord
from rankwise.experiments.runner import load_task
from rankwise.experiments.schema import RunConfig
from rankwise.tasks.base import TaskConfig
from rankwise.tasks.families import parse_task_spec
from rankwise.training.data import encode
from rankwise.training.models import BaseModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TASK = "docstrings"


@dataclass(frozen=True)
class Wanted:
    """What was asked for: a task and its columns (as in `compare`), and how many of its texts."""

    task: str | None = None
    text: str | None = None
    label: str | None = None
    examples: int = 64


@dataclass(frozen=True)
class Inputs:
    """Encoded texts: `what` says in words where they come from, `rows` has token ids and the rest per text."""

    what: str
    rows: list[dict[str, list[int]]]
    tokenizer: "PreTrainedTokenizerBase"
    device: torch.device

    @property
    def tokens(self) -> float:
        """Mean length."""
        return sum(len(row["input_ids"]) for row in self.rows) / len(self.rows)

    def batches(self, size: int) -> list[dict[str, Tensor]]:
        """All texts in batches of just `size`, padded to the longest of a batch; texts come again where they must."""
        count = max(1, len(self.rows) // size)
        rows = islice(cycle(self.rows), count * size)
        return [self._batch(list(islice(rows, size))) for _ in range(count)]

    def _batch(self, rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        padded = self.tokenizer.pad({key: [row[key] for row in rows] for key in rows[0]}, return_tensors="pt")
        return {key: value.to(self.device) for key, value in padded.items()}


def read_inputs(base: Base, record: RunRecord | None, wanted: Wanted, device: torch.device) -> Inputs:
    """Evenly spaced texts of the main evaluation split.

    Raises:
        ConfigError: a task or column that is none.
        DataError: the data cannot be read.
        ModelError: the base model comes without a tokenizer.
    """
    if base.tokenizer is None:
        raise ModelError("the base model has no tokenizer, so no text can be put to it; save one into its folder")
    config, whose = _task(record, wanted)
    try:
        data = load_task(config)
    except DataError as error:
        if wanted.task is not None:
            raise
        raise DataError(f"{error}\nthe texts are {whose}; name others with --task") from error
    split = next(iter(data.validation.values()))
    count = min(wanted.examples, len(split))
    picked = split.select([i * len(split) // count for i in range(count)])
    longest = BaseModel(base.model, base.tokenizer).max_tokens or config.max_length
    encoded = encode(picked, base.tokenizer, min(config.max_length, longest))
    names = [name for name in encoded.column_names if name not in ("labels", "length")]
    rows: list[dict[str, list[int]]] = [{name: row[name] for name in names} for row in encoded]
    return Inputs(f"{count} texts of {data.name} ({whose})", rows, base.tokenizer, device)


def _task(record: RunRecord | None, wanted: Wanted) -> tuple[TaskConfig, str]:
    """The task, and where it was named."""
    if wanted.task is None and (wanted.text or wanted.label):
        message = "--text and --label name columns of your own data; say which with --task"
        raise ConfigError("cost", [Finding("", message)])
    if wanted.task is not None:
        return parse_task_spec(wanted.task, text=wanted.text, label=wanted.label), "--task"
    if record is not None:
        return _run_config(record.config).task, "the run's evaluation data"
    return parse_task_spec(DEFAULT_TASK), "embedded; --task names others"


def _run_config(config: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(dict(config))
    except ValidationError as error:
        message = f"the run's config is of another version ({error.error_count()} fields differ); name a --task"
        raise ConfigError("cost", [Finding("", message)]) from error
