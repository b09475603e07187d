"""Tasks of every family at once: from a written name to a config, and from a config to what its data look like."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rankwise.errors import ConfigError, Finding, UnknownNameError
from rankwise.tasks import docstrings
from rankwise.tasks.base import TASKS, TaskConfig, TaskData
from rankwise.tasks.readers import is_file_name, is_hub_id

_LONG = 40
"""Characters from which a value gets a line of its own."""


def canonical_task(name: str) -> str | None:
    """Our name for a task as others write it (`glue_rte`, `GLUE MNLI`, `sst-2`, `docstring`), or None."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    own = {re.sub(r"[^a-z0-9]", "", task): task for task in TASKS}
    for word in (key, f"glue{key}", f"{key}s"):
        if word in own:
            return own[word]
    return None


def parse_task_spec(
    spec: str,
    *,
    text: str | None = None,
    label: str | None = None,
    validation: str | None = None,
    train_examples: int | None = None,
    validation_examples: int | None = None,
    max_length: int | None = None,
) -> TaskConfig:
    """The task config for `docstrings`, `glue/rte`, `path/to/file.csv` or `owner/dataset`.

    `text` (one column, or two with a comma), `label` and `validation` belong to a user's own data only.

    Raises:
        UnknownNameError: neither a task, nor a table file, nor a hub id.
        ConfigError: an option that this task does not have, or a value out of range.
    """
    own = {"text": text, "label": label, "validation": validation}
    caps = {"train_examples": train_examples, "validation_examples": validation_examples, "max_length": max_length}
    given = {key: value for key, value in {**own, **caps}.items() if value is not None}
    name = None if Path(spec).is_file() else canonical_task(spec)
    if name is not None and name != "files":
        foreign = [key for key in own if key in given]
        _refuse(f"task '{name}'", foreign, "is for your own files only; this task brings its own columns")
        return _build(name, given)
    if name == "files":
        raise ConfigError(
            "task 'files'", [Finding("task", "give the file itself, e.g. --task reviews.csv, or a hub id 'owner/name'")]
        )
    if spec.lower().startswith("glue/"):
        raise UnknownNameError(TASKS.explain(spec))
    if not (is_file_name(spec) or is_hub_id(spec) or Path(spec).exists()):
        raise UnknownNameError(
            f"{TASKS.explain(spec)}; or a CSV, TSV, JSONL, JSON or Parquet file; or a hub dataset 'owner/name'"
        )
    return _build("files", {"path": spec, **given})


def _refuse(source: str, options: Sequence[str], reason: str) -> None:
    if options:
        raise ConfigError(source, [Finding(option, reason) for option in options])


def _build(name: str, values: dict[str, Any]) -> TaskConfig:
    """The config, with pydantic's errors as findings."""
    try:
        return TASKS[name].model_validate({"name": name, **values})
    except ValidationError as error:
        findings = [
            Finding(".".join(str(part) for part in e["loc"]), f"{e['msg']}, got {e['input']!r}") for e in error.errors()
        ]
        raise ConfigError(f"task '{name}'", findings) from None


def describe_task(config: TaskConfig) -> tuple[dict[str, object], str]:
    """(statistics as plain data, the same as lines to print) of a task, after its caps.

    Raises:
        DataError: the task cannot be loaded.
        MissingPackageError: it needs a package that is not installed.
    """
    data = config.load()
    found = {**_loaded_statistics(data)}
    if isinstance(config, docstrings.DocstringsTask):
        # How the examples were made: the whole corpus, whatever part of it the caps leave.
        found["corpus"] = docstrings.statistics(docstrings.load_corpus())
    return found, "\n".join(_lines(found))


def _loaded_statistics(data: TaskData) -> dict[str, object]:
    splits = {"train": data.train, **data.validation}
    lengths = sorted(len(text.split()) for split in splits.values() for text in split["text"])
    per_class = {
        split: {name: list(examples["label"]).count(k) for k, name in enumerate(data.label_names)}
        for split, examples in splits.items()
    }
    middle = {f"p{q}": lengths[(len(lengths) - 1) * q // 100] for q in (5, 50, 95)}
    return {
        "task": data.name,
        "kind": data.kind,
        "metrics": list(data.metrics),
        "fingerprint": data.fingerprint,
        "examples": {split: len(examples) for split, examples in splits.items()},
        **({"examples_per_class": per_class} if data.label_names else {}),
        "words_per_text": {"mean": round(sum(lengths) / len(lengths), 1), **middle},
    }


def _lines(value: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """One line per fact; a mapping of plain values is one line, others are indented below their name."""
    for key, entry in value.items():
        name = indent + key.replace("_", " ")
        if not isinstance(entry, Mapping):
            yield f"{name}: {', '.join(map(str, entry)) if isinstance(entry, list) else entry}"
        elif any(isinstance(inner, Mapping) or len(str(inner)) > _LONG for inner in entry.values()):
            yield f"{name}:"
            yield from _lines(entry, indent + "  ")
        else:
            yield f"{name}: {', '.join(f'{inner} {number}' for inner, number in entry.items())}"
