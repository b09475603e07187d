"""Where the numbers come from: machines, package versions, code states and configs, each shown once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.errors import RankwiseError
from rankwise.experiments.html.inputs import ReportRun
from rankwise.experiments.html.tables import Table
from rankwise.experiments.yaml_text import dump_yaml


@dataclass(frozen=True)
class Shared:
    """Text that several runs have in common, with a line that says which."""

    title: str
    text: str
    runs: tuple[str, ...]


def environments(runs: Sequence[ReportRun]) -> list[Shared]:
    """Every distinct environment as YAML, that of most runs first."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.record.environment:
            found.setdefault(_yaml(run.record.environment), []).append(run.record.run_id)
    made = [Shared("", text, tuple(dict.fromkeys(ids))) for text, ids in found.items()]
    made.sort(key=lambda each: -len(each.runs))
    return [Shared(f"Environment {i}", each.text, each.runs) for i, each in enumerate(made, 1)]


def environment_table(runs: Sequence[ReportRun]) -> Table:
    """Every value of every environment and how many runs had it: differences stand out."""
    seen: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for name, value in _leaves(run.record.environment):
            seen.setdefault((name, value), set()).add(run.record.run_id)
    rows = [(name, value, len(ids)) for (name, value), ids in sorted(seen.items())]
    return Table("environment", "Environment", ("what", "value", "runs"), rows)


def configs(runs: Sequence[ReportRun]) -> list[Shared]:
    """Canonical configs as YAML; runs that differ by nothing but the seed share one."""
    found: dict[str, list[ReportRun]] = {}
    for run in runs:
        if run.record.config:
            without = {key: value for key, value in run.record.config.items() if key != "seed"}
            found.setdefault(f"{run.arm}\n{_yaml(without)}", []).append(run)
    made = []
    for key, own in found.items():
        first = own[0].record
        every = sorted({run.record.seed for run in own})
        seeds = f"{'seed' if len(every) == 1 else 'seeds'} {', '.join(map(str, every))}"
        budgets = ", ".join(dict.fromkeys(run.budget for run in own if run.budget))
        title = ", ".join(filter(None, [own[0].arm, first.task, budgets, seeds]))
        made.append(Shared(title, key.partition("\n")[2], tuple(dict.fromkeys(run.record.run_id for run in own))))
    return made


def _yaml(data: Mapping[str, Any]) -> str:
    try:
        return dump_yaml(data)
    except (RankwiseError, ValueError):
        return json.dumps(data, indent=2, ensure_ascii=False, default=str)


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(value, ensure_ascii=False, default=str).strip('"')
