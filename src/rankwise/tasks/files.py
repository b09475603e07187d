"""Your own data: a CSV, TSV, JSON, JSON-lines or Parquet file, or a dataset on the hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from rankwise.errors import DataError
from rankwise.registry import did_you_mean
from rankwise.tasks.base import TASKS, Kind, TaskConfig, TaskData
from rankwise.tasks.data import Examples, assemble, split_off
from rankwise.tasks.labels import as_numbers, check_present, class_name, class_names, detect_kind
from rankwise.tasks.readers import is_hub_id, read_hub, read_table

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_VALIDATION = ("validation", "dev", "valid", "val")


@dataclass(frozen=True)
class _Table:
    """A split as read: where it came from, and its columns."""

    source: str
    columns: Mapping[str, Sequence[Any]]


@TASKS.register("files")
class FilesTask(TaskConfig):
    """Classification or regression on a table of the user's own.

    Labels become class indices in sorted order. Where no validation data are given, a seeded, label-stratified share of
    the training data is set aside: the same rows for every run.
    """

    name: str = Field(default="files", pattern="^files$", description="task name: files")
    path: str = Field(
        min_length=1, description="CSV, TSV, JSONL, JSON (each also .gz) or Parquet file, or a hub id 'owner/name'"
    )
    validation: str | None = Field(
        default=None,
        description="validation file, or the name of a split on the hub; default: a share of the training data",
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of the training data set aside where there are no validation data"
    )
    text: tuple[str, ...] = Field(
        default=("text",),
        min_length=1,
        max_length=2,
        description="column with the text, or two columns for pairs of texts",
    )
    label: str = Field(default="label", description="column with the label")
    kind: Kind | None = Field(
        default=None,
        description="classification or regression; by default told from the labels (text, booleans and few "
        "distinct whole numbers are classes, other numbers are quantities)",
    )

    @field_validator("text", mode="before")
    @classmethod
    def _split_text(cls, value: object) -> object:
        """`premise,hypothesis` is two columns."""
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    def load(self) -> TaskData:
        """Read, check and split the table.

        Raises:
            DataError: what is wrong with which file, column or row.
        """
        train_table, validation_table = _hub_tables(self) if is_hub_id(self.path) else _local_tables(self)
        tables = [table for table in (train_table, validation_table) if table is not None]
        for table in tables:
            _check_columns(self, table)
        labels = train_table.columns[self.label]
        kind = self.kind or detect_kind(train_table.source, self.label, labels)
        names = class_names([v for t in tables for v in t.columns[self.label]]) if kind == "classification" else []
        train = _examples(self, train_table, kind, names)
        if validation_table is not None:
            validation = _examples(self, validation_table, kind, names)
        elif len(train) < 2:
            raise DataError(f"{train_table.source}: one row is not enough to set a validation split aside")
        else:
            train, validation = split_off(train, self.validation_fraction, kind)
        metrics: tuple[str, ...] = ("pearson", "spearman", "mse")
        if kind == "classification":
            metrics = (
                ("accuracy", "f1", "matthews_correlation") if len(names) == 2 else ("accuracy", "matthews_correlation")
            )
        return assemble(self, f"files:{self.path}", kind, train, {"validation": validation}, names, metrics)


def _local_tables(config: FilesTask) -> tuple[_Table, _Table | None]:
    paths = [Path(p).expanduser() for p in (config.path, config.validation) if p is not None]
    tables = [_Table(f"'{path}'", read_table(path)) for path in paths]
    return tables[0], tables[1] if len(tables) > 1 else None


def _hub_tables(config: FilesTask) -> tuple[_Table, _Table | None]:
    """Train and validation of a hub dataset; a split called test is never used for validation unasked."""
    splits = read_hub(config.path)
    wanted = config.validation or next((name for name in _HUB_VALIDATION if name in splits), None)
    for name in ("train", wanted):
        if name is not None and name not in splits:
            raise DataError(f"dataset '{config.path}' has no split '{name}'; it has: {', '.join(splits)}")
    train, validation = (None if name is None else _hub_table(config, name, splits[name]) for name in ("train", wanted))
    assert train is not None
    return train, validation


def _hub_table(config: FilesTask, split: str, dataset: "Dataset") -> _Table:
    """A hub split as plain columns, class indices turned into their names."""
    columns: dict[str, Sequence[Any]] = {name: dataset[name][:] for name in dataset.column_names}
    names = getattr(dataset.features.get(config.label), "names", None)
    if names is not None:
        # The hub marks an example without a label with -1.
        columns[config.label] = [names[i] if i is not None and i >= 0 else None for i in columns[config.label]]
    return _Table(f"{config.path} ({split})", columns)


def _check_columns(config: FilesTask, table: _Table) -> None:
    for option, column in (*(("text", name) for name in config.text), ("label", config.label)):
        if column not in table.columns:
            guess = did_you_mean(column, table.columns)
            known = ", ".join(table.columns)
            raise DataError(f"{table.source}: no column '{column}' for the {option}{guess} Columns: {known}")
        if not len(table.columns[column]):
            raise DataError(f"{table.source} is empty: it has no rows")
        check_present(table.source, column, table.columns[column])


def _examples(config: FilesTask, table: _Table, kind: Kind, names: Sequence[str]) -> Examples:
    values = table.columns[config.label]
    index = {name: i for i, name in enumerate(names)}
    labels: list[int] | list[float]
    if kind == "classification":
        labels = [index[class_name(value)] for value in values]
    else:
        labels = as_numbers(table.source, config.label, values)
    texts = [[str(value) for value in table.columns[column]] for column in config.text]
    return Examples(texts[0], labels, texts[1] if len(texts) == 2 else None)
