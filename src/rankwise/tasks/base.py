"""What a task is: a config that loads examples in one fixed shape.

Every task hands out the same columns, whatever its files call them: `text` (str), `text_pair` (str, only
where the task has two texts), `label` (int class index, or float for regression). A task never sees a
model or a tokenizer.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from rankwise.registry import Registry

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["classification", "regression"]


@dataclass(frozen=True)
class MetricValue:
    """A metric never travels without its standard error and the number of examples (or runs) behind it."""

    value: float
    se: float
    n: int


@dataclass(frozen=True)
class TaskData:
    """A loaded task.

    `validation` maps a split name to its examples, the main one first (MNLI has two). `label_names` is
    empty for regression. `metrics` are names in `tasks.metrics.METRICS`, the primary one first.
    `fingerprint` is a hash of the content: two loads with the same fingerprint hold the same examples.
    """

    name: str
    kind: Kind
    train: "Dataset"
    validation: "dict[str, Dataset]"
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    fingerprint: str

    @property
    def num_labels(self) -> int:
        """Width of the classification head (1 for regression)."""
        return len(self.label_names) if self.kind == "classification" else 1


class TaskConfig(BaseModel, ABC):
    """Settings shared by every task; one subclass per family, registered in `TASKS`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="task name, as `rankwise list` prints it")
    train_examples: int | None = Field(
        default=None, ge=1, description="use only this many training examples (a seeded, label-stratified sample)"
    )
    validation_examples: int | None = Field(
        default=None, ge=1, description="use only this many validation examples (the same ones for every run)"
    )
    max_length: int = Field(default=128, ge=4, le=8192, description="longer texts are cut to this many tokens")

    @abstractmethod
    def load(self) -> TaskData:
        """Read the data.

        Raises:
            DataError: missing file, wrong column, empty split, a label seen only in validation, …
        """


TASKS: Registry[type[TaskConfig]] = Registry("task")
