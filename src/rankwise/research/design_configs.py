"""One run config per arm and dataset of a design, named as the records name theirs, in our schema.

They are what `rankwise run` takes: each by itself, at the design's first budget, with the search that every arm gets.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.errors import Finding
from rankwise.experiments.schema import method_registry
from rankwise.experiments.yaml_text import dump_yaml, parse_yaml
from rankwise.research.artefacts import Dataset, Design, DesignArm, Search
from rankwise.research.datasets import task_entry

FOLDER = "configs"


def config_names(design: Design) -> dict[str, tuple[DesignArm, Dataset]]:
    """Name of every run config to its arm and task: `proposed-<model>--<dataset>`, `comparative-1-…`, `control-1-…`."""
    counts: dict[str, int] = {}
    found: dict[str, tuple[DesignArm, Dataset]] = {}
    for arm in design.arms:
        counts[arm.role] = counts.get(arm.role, 0) + 1
        single = arm.role == "proposed" and sum(each.role == "proposed" for each in design.arms) == 1
        label = arm.role if single else f"{arm.role}-{counts[arm.role]}"
        for dataset in design.datasets:
            name = f"{label}-{_slug(Path(design.model).name)}--{_slug(_short(dataset))}"
            found[name] = (arm, dataset)
    return found


def config_texts(design: Design) -> dict[str, str]:
    """File name in the project to the YAML of a run config."""
    found = {}
    for name, (arm, dataset) in config_names(design).items():
        found[f"{FOLDER}/{name}.yaml"] = f"# {name}: {arm.said or arm.name}\n{dump_yaml(_config(design, arm, dataset))}"
    return found


def _config(design: Design, arm: DesignArm, dataset: Dataset) -> dict[str, Any]:
    method = dict(arm.method)
    if "budget" in method_registry()[str(method["name"])].model_fields:
        method["budget"] = design.budgets[0]
    data: dict[str, Any] = {
        "model": design.model,
        "task": task_entry(dataset),
        "method": method,
        "training": dict(design.training),
        "seed": 0,
    }
    if design.metrics:
        data["evaluation"] = {"metrics": list(_metrics(design, dataset.task))}
        if not data["evaluation"]["metrics"]:
            del data["evaluation"]
    if design.search:
        data["sweep"] = {"search_space": {one.path: _distribution(one) for one in design.search}}
    return data


def _metrics(design: Design, task: str) -> tuple[str, ...]:
    """The design's metrics that the task reports, its own deciding one first; none: the task's own."""
    from rankwise.tasks.glue import SPECS

    spec = SPECS.get(task.removeprefix("glue/"))
    if spec is None:
        return ()
    return tuple(metric for metric in spec.metrics if metric in design.metrics or metric == spec.metrics[0])


def _distribution(one: Search) -> dict[str, Any]:
    if one.kind == "categorical":
        return {"type": "categorical", "choices": list(one.choices)}
    low, high = (int(end) if one.kind == "int" and end is not None else end for end in (one.low, one.high))
    return {"type": one.kind, "low": low, "high": high, **({"log": True} if one.log else {})}


def config_findings(texts: Mapping[str, str]) -> list[Finding]:
    """What `rankwise config check` finds wrong with run configs (file name to YAML), errors only.

    They have no `defaults` list and no overrides, so Hydra, which takes most of the time, has nothing to add.
    """
    from rankwise.experiments.checks import check_config
    from rankwise.experiments.schema import RunConfig
    from rankwise.experiments.validation import Words, validate

    found: list[Finding] = []
    for name, text in texts.items():
        result = validate(parse_yaml(text, name).data, Words())
        findings = check_config(result) if isinstance(result, RunConfig) else result
        found += [Finding(f"{name}: {one.path}", one.message) for one in findings if one.level == "error"]
    return found


def _short(dataset: Dataset) -> str:
    """A task's name; of a file its own name, without the folders."""
    return Path(dataset.task).name if Path(dataset.task).is_file() else dataset.task


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:60] or "x"
