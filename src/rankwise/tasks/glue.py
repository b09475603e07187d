"""The eight GLUE tasks that have public validation labels and are commonly reported (Wang et al. 2018).

Data come from a local folder (`data`, or the environment variable RANKWISE_DATA) or else from the hub
(`nyu-mll/glue`). The local layout is a `manifest.json` beside one folder per task:

    glue/manifest.json                 {"rte": {"splits": {"train": {"rows": …, "sha256": …}, …}}, …}
    glue/rte/train.jsonl.gz            one object per line, the hub's column names, `label` an index or a float
    glue/rte/validation.jsonl.gz       (mnli: `validation` is the matched set)

A local file is hashed against the manifest before it is read (milliseconds), so a damaged one is named. Local copies
may hold fewer rows than the official task; `OFFICIAL_TRAIN_ROWS` is what papers mean by "one epoch".
"""

import gzip
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from rankwise.errors import DataError
from rankwise.tasks.base import TASKS, Kind, TaskConfig, TaskData
from rankwise.tasks.data import Examples, assemble, load_hub

HUB = "nyu-mll/glue"
DATA_VARIABLE = "RANKWISE_DATA"

OFFICIAL_TRAIN_ROWS = {
    "glue/sst2": 67_349,
    "glue/cola": 8_551,
    "glue/mrpc": 3_668,
    "glue/rte": 2_490,
    "glue/stsb": 5_749,
    "glue/mnli": 392_702,
    "glue/qnli": 104_743,
    "glue/qqp": 363_846,
}


@dataclass(frozen=True)
class _Spec:
    """What a GLUE task looks like, in the hub's words."""

    texts: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    validation: tuple[str, ...] = ("validation",)

    @property
    def kind(self) -> Kind:
        return "classification" if self.label_names else "regression"


_PAIR = ("sentence1", "sentence2")
SPECS: Mapping[str, _Spec] = {
    "sst2": _Spec(("sentence",), ("negative", "positive")),
    "cola": _Spec(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
    "mrpc": _Spec(_PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "rte": _Spec(_PAIR, ("entailment", "not_entailment")),
    "stsb": _Spec(_PAIR, (), ("pearson", "spearman")),
    "mnli": _Spec(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        validation=("validation_matched", "validation_mismatched"),
    ),
    "qnli": _Spec(("question", "sentence"), ("entailment", "not_entailment")),
    "qqp": _Spec(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
}


class GlueTask(TaskConfig):
    """One GLUE task, `glue/<name>`."""

    data: str | None = Field(
        default=None,
        description=f"folder that holds glue/manifest.json (or the manifest itself); default: ${DATA_VARIABLE}, "
        f"else the hub ({HUB})",
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name.removeprefix("glue/") not in SPECS or not name.startswith("glue/"):
            raise ValueError(f"'{name}' is not a GLUE task; allowed: {', '.join(f'glue/{key}' for key in SPECS)}")
        return name

    def load(self) -> TaskData:
        """Read the task from the local folder, or else from the hub.

        Raises:
            DataError: the folder has no manifest or not this task, a file is missing, damaged or malformed, or
                the hub cannot be reached.
        """
        key = self.name.removeprefix("glue/")
        spec = SPECS[key]
        folder = self.data if self.data is not None else os.environ.get(DATA_VARIABLE)
        splits = _load_local(key, spec, Path(folder).expanduser()) if folder else _load_hub(key, spec)
        train = splits.pop("train")
        return assemble(self, self.name, spec.kind, train, splits, spec.label_names, spec.metrics)


for _key in SPECS:
    TASKS.register(f"glue/{_key}")(GlueTask)


def _load_hub(key: str, spec: _Spec) -> dict[str, Examples]:
    hint = f"Set {DATA_VARIABLE} to a folder that holds glue/manifest.json to read local files instead."
    hub = load_hub(HUB, key, hint)
    return {
        split: _examples({c: hub[split][c] for c in (*spec.texts, "label")}, spec)
        for split in ("train", *spec.validation)
    }


def _load_local(key: str, spec: _Spec, folder: Path) -> dict[str, Examples]:
    """Train and every validation split that the manifest lists."""
    root = next((r for r in (folder / "glue", folder) if (r / "manifest.json").is_file()), None)
    if root is None:
        raise DataError(f"no glue/manifest.json in '{folder}' (from `data` or {DATA_VARIABLE})")
    listed = _read_manifest(root / "manifest.json", key)
    names = {"train": "train", spec.validation[0]: "validation"}
    names |= {split: split for split in spec.validation if split in listed}
    missing = [name for name in names.values() if name not in listed]
    if missing:
        raise DataError(
            f"{root / 'manifest.json'} lists no {missing[0]} split for '{key}'; it has: {', '.join(listed)}"
        )
    return {split: _read_split(root / key / f"{name}.jsonl.gz", listed[name], spec) for split, name in names.items()}


def _read_manifest(path: Path, key: str) -> dict[str, dict[str, Any]]:
    """Split name -> its entry."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        splits = {str(name): dict(entry) for name, entry in manifest[key]["splits"].items()}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path} has no entry '{key}' with `splits`") from error
    return splits


def _read_split(path: Path, entry: Mapping[str, Any], spec: _Spec) -> Examples:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} is listed in the manifest but cannot be read: {error.strerror}") from error
    if (digest := hashlib.sha256(content).hexdigest()) != entry.get("sha256"):
        raise DataError(
            f"{path} is damaged: its sha256 is {digest[:12]}…, the manifest says {str(entry.get('sha256'))[:12]}…"
        )
    try:
        rows = [json.loads(line) for line in gzip.decompress(content).decode("utf-8").split("\n") if line.strip()]
        return _examples({name: [row[name] for row in rows] for name in (*spec.texts, "label")}, spec)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is not gzipped JSON lines with the expected columns: {error}") from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: a row lacks the column {error}; needed: {', '.join(spec.texts)}, label") from error


def _examples(columns: Mapping[str, Sequence[Any]], spec: _Spec) -> Examples:
    """The common columns out of the hub's."""
    number = int if spec.label_names else float
    pair = [str(t) for t in columns[spec.texts[1]]] if len(spec.texts) == 2 else None
    return Examples([str(t) for t in columns[spec.texts[0]]], [number(v) for v in columns["label"]], pair)
