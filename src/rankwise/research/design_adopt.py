"""What a record's own run configs add to a design: training, and search ranges as far as they are fair.

The configs are read by the code that reads them for `rankwise config check`, in their dialect. A search over what a
comparison holds equal, or over one arm's own settings, is left out and noted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rankwise.errors import ConfigError
from rankwise.experiments.checks import HELD_EQUAL
from rankwise.experiments.schema import Distribution, RunConfig
from rankwise.experiments.yaml_text import parse_yaml
from rankwise.research.artefacts import Dataset, Design, Search
from rankwise.research.datasets import identity, task_named
from rankwise.research.imported import Resource
from rankwise.research.project import Project

TAKEN = ("epochs", "max_steps", "batch_size", "learning_rate", "weight_decay", "schedule", "max_grad_norm")
"""Settings of training that are taken over where every config has the same value."""
OURS = ("proposed-", "comparative-", "control-")


def record_configs(project: Project) -> dict[str, str]:
    """The run configs of an imported record, by file name; those that a design wrote are not among them."""
    folder = project.path("configs")
    if not folder.is_dir():
        return {}
    texts = {file.name: file.read_text(encoding="utf-8", errors="replace") for file in sorted(folder.glob("*.yaml"))}
    return {name: text for name, text in texts.items() if "method_name:" in text or "run_id:" in text}


def adopted(design: Design, configs: Mapping[str, str], listed: Sequence[Resource] = ()) -> Design:
    """The design with what a record's configs say; itself without configs.

    Args:
        design: read out of the record's hypothesis.
        configs: file name to YAML.
        listed: resources of the hub that the record lists; a dataset that is not what it is called is noted.
    """
    read, notes = _read(configs)
    notes += [f"{problem}; the plan takes the task itself" for one in listed for problem in _strange(one)]
    if not read:
        return design.model_copy(update={"notes": (*design.notes, *notes)})
    training = dict(design.training)
    for name in TAKEN:
        values = {getattr(config.training, name) for config in read.values()}
        if len(values) == 1 and (value := values.pop()) is not None:
            training[name] = value
            training.pop({"epochs": "max_steps", "max_steps": "epochs"}.get(name, ""), None)
    found, more = _search(read)
    notes += _covered(design, read) + more
    search = found or design.search
    return design.model_copy(update={"training": training, "search": search, "notes": (*design.notes, *notes)})


def _strange(resource: Resource) -> list[str]:
    """What contradicts that a dataset of the hub is the task that its name speaks of."""
    task = task_named(resource.id) if resource.kind == "dataset" else None
    if task is None:
        return []
    return identity(Dataset(task=task, said=resource.id, rows=resource.rows.get("train"), columns=resource.columns))


def _read(configs: Mapping[str, str]) -> tuple[dict[str, RunConfig], list[str]]:
    from rankwise.experiments.config import from_dict

    read: dict[str, RunConfig] = {}
    notes: list[str] = []
    for name, text in configs.items():
        try:
            read[name] = from_dict(parse_yaml(text, name).data, source=name).config
        except ConfigError as error:
            notes.append(f"configs/{name} of the record cannot run and is not used: {error.findings[0]}")
    return read, notes


def _covered(design: Design, read: Mapping[str, RunConfig]) -> list[str]:
    """What the hypothesis is about and the record's configs leave out."""
    methods = {config.method.name for config in read.values()}
    tasks = {config.task.name for config in read.values()}
    lacking = [arm.name for arm in design.arms if arm.method.get("name") not in methods]
    missing = [dataset.task for dataset in design.datasets if dataset.task not in tasks]
    notes = []
    if lacking:
        notes.append(f"the record has no run of {', '.join(lacking)}; the plan has")
    if missing:
        notes.append(
            f"the record's runs leave out {', '.join(missing)}, which the hypothesis is about; the plan has them"
        )
    return notes


def _search(read: Mapping[str, RunConfig]) -> tuple[tuple[Search, ...], list[str]]:
    """Ranges that every config searches alike and no claim holds fixed."""
    spaces = [config.sweep.search_space if config.sweep else {} for config in read.values()]
    found: list[Search] = []
    notes: list[str] = []
    for path in sorted({path for space in spaces for path in space}):
        drawn = {str(space.get(path)) for space in spaces}
        if path in HELD_EQUAL:
            notes.append(f"{path} is not searched: a comparison at {HELD_EQUAL[path]} holds it fixed")
        elif path.startswith("method."):
            notes.append(f"{path} is not searched: not every arm has that setting, and tuning is alike for all")
        elif len(drawn) > 1:
            notes.append(f"{path} is not searched: not every arm searches it alike")
        else:
            found.append(_as_search(path, spaces[0][path]))
    return tuple(found), notes


def _as_search(path: str, spread: Distribution) -> Search:
    data: dict[str, Any] = {"path": path, "kind": spread.type, "log": spread.log}
    if spread.choices is not None:
        return Search(**data, choices=spread.choices)
    return Search(**data, low=spread.low, high=spread.high)
