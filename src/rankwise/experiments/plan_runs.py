"""From a plan's file to its runs: read, checked for form, spread out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rankwise.allocation.budget import parse_budget
from rankwise.errors import BudgetError, ConfigError, Finding
from rankwise.experiments.plan import (
    ArmConfig,
    ClaimConfig,
    PlanConfig,
    ProfileConfig,
    ProtocolConfig,
    TuningConfig,
    replaced,
)
from rankwise.experiments.schema import EvaluationConfig, ModelConfig, RunConfig, TrainingConfig, method_registry
from rankwise.experiments.validation import Words, message, validate
from rankwise.experiments.yaml_text import read_yaml
from rankwise.registry import did_you_mean
from rankwise.tasks import TaskConfig


@dataclass(frozen=True)
class PlannedRun:
    """A run and its place in the plan: what is compared has the same `task`, `budget` and seed."""

    arm: str
    budget: str
    config: RunConfig


@dataclass(frozen=True)
class Plan:
    """A plan at one profile (None: as the file stands) with its runs, seed by seed, so that pairs are near in time.

    `minutes` is how long the profile may take on the machine it is meant for.
    """

    source: str
    profile: str | None
    config: PlanConfig
    runs: tuple[PlannedRun, ...]
    minutes: float | None = None


def load_plan(path: Path, profile: str | None = None) -> Plan:
    """The plan in a YAML file.

    Raises:
        ConfigError: with every problem found.
    """
    file = read_yaml(path)
    return plan_of(file.data, str(path), profile)


def plan_of(
    data: Mapping[str, Any], source: str, profile: str | None = None, *, outside: Mapping[str, Any] | None = None
) -> Plan:
    """The plan that plain data describes.

    Args:
        data: of a plan's file.
        source: where it comes from, for messages.
        profile: to take; None: the plan as it stands.
        outside: `tasks` and `budgets` that claims may name beside the plan's own, because a profile left them out.

    Raises:
        ConfigError: with every problem found.
    """
    try:
        whole = PlanConfig.model_validate(data, context=dict(outside) if outside else None)
        if profile is not None and profile not in whole.profiles:
            there = [str(name) for name in whole.profiles]
            known = f"{did_you_mean(profile, there) or '.'} The plan has: {', '.join(there) or 'none'}"
            raise ConfigError(source, [Finding("--profile", f"no profile '{profile}'{known}")])
        config = whole.at(profile)
    except ValidationError as error:
        raise ConfigError(source, list(_findings(error))) from None
    minutes = whole.profiles[profile].minutes if profile is not None else None
    return Plan(source, profile, config, runs_of(config, source), minutes)


class RecordedMethod(BaseModel):
    """A method's section of a run config as it was written down, complete; read without the method's own class."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str


Methods = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Arm -> budget -> its method's complete section."""


def methods_of(runs: Sequence[PlannedRun]) -> dict[str, dict[str, dict[str, Any]]]:
    """The complete method section of every arm at every budget, as plain data."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        found.setdefault(run.arm, {}).setdefault(run.budget, run.config.method.model_dump(mode="json"))
    return found


def recorded_plan(config: PlanConfig, source: str, profile: str | None, methods: Methods) -> Plan:
    """A plan with the runs it had when `methods_of` wrote its methods down, method classes not needed: no torch.

    Raises:
        KeyError: an arm's method at some budget was not written down.
        ValueError: a section is wrong.
    """
    runs = []
    for seed, task, budget, (name, arm) in product(config.seeds, config.tasks, config.budgets, config.arms.items()):
        training = replaced(config.training.model_dump(mode="json"), arm.training)
        run = RunConfig.model_validate(
            {
                "model": config.model,
                "task": task,
                "method": RecordedMethod.model_validate(methods[name][budget]),
                "training": training,
                "evaluation": config.evaluation,
                "seed": seed,
            }
        )
        runs.append(PlannedRun(name, budget, run))
    return Plan(source, profile, config, tuple(runs))


def runs_of(plan: PlanConfig, source: str) -> tuple[PlannedRun, ...]:
    """Every run of a plan.

    Raises:
        ConfigError: an arm's method, training or budget is not one; every problem once.
    """
    problems: dict[Finding, None] = dict.fromkeys(_budgets(plan))
    made: list[PlannedRun] = []
    for seed in plan.seeds:
        for task in plan.tasks:
            for budget in plan.budgets:
                for name, arm in plan.arms.items():
                    found = _run(plan, name, arm, task, budget, seed)
                    if isinstance(found, RunConfig):
                        made.append(PlannedRun(name, budget, found))
                    else:
                        problems |= dict.fromkeys(found)
    if problems:
        raise ConfigError(source, list(problems))
    return tuple(made)


def _run(
    plan: PlanConfig, name: str, arm: ArmConfig, task: TaskConfig, budget: str, seed: int
) -> RunConfig | tuple[Finding, ...]:
    method = dict(arm.method)
    if "budget" in method:
        return (Finding(f"arms.{name}.method.budget", "comes from the plan's `budgets`, the same for all arms"),)
    known = method_registry()
    chosen = str(method.get("name", ""))
    if chosen in known and "budget" in known[chosen].model_fields:
        method["budget"] = budget
    data = {
        "model": plan.model.model_dump(mode="json"),
        "task": task.model_dump(mode="json"),
        "method": method,
        "training": replaced(plan.training.model_dump(mode="json"), arm.training),
        "evaluation": plan.evaluation.model_dump(mode="json"),
        "seed": seed,
    }
    return validate(data, Words(path=lambda path: _own(path, name, arm)))


def _own(path: str, name: str, arm: ArmConfig) -> str:
    """Where the plan's file says what a run config says at `path`."""
    section, _, key = path.partition(".")
    if section == "method" or (section == "training" and key in arm.training):
        return f"arms.{name}.{path}"
    return path


def _budgets(plan: PlanConfig) -> Iterator[Finding]:
    for budget in plan.budgets:
        try:
            unit = parse_budget(budget).unit
        except BudgetError as error:
            yield Finding("budgets", str(error))
            continue
        if unit == "ranks":
            message = (
                f"'{budget}' counts ranks, but arms are compared at equal parameters; write '0.5%', 'r=4' or '200k'"
            )
            yield Finding("budgets", message)


def _findings(error: ValidationError) -> Iterator[Finding]:
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            yield Finding(path, _unknown_key(path))
            continue
        if item["type"] == "missing":
            yield Finding(path, "is missing")
            continue
        yield Finding(path, message(dict(item), path.rpartition(".")[2]))


_SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    (r"", PlanConfig),
    (r"arms\.[^.]+", ArmConfig),
    (r"claims\.\d+", ClaimConfig),
    (r"protocol", ProtocolConfig),
    (r"(protocol|profiles\.[^.]+)\.tuning", TuningConfig),
    (r"profiles\.[^.]+", ProfileConfig),
    (r"training", TrainingConfig),
    (r"evaluation", EvaluationConfig),
    (r"(profiles\.[^.]+\.)?model", ModelConfig),
)


def _unknown_key(path: str) -> str:
    parent, _, key = path.rpartition(".")
    known = [name for pattern, model in _SECTIONS if re.fullmatch(pattern, parent) for name in model.model_fields]
    where = f"in {parent}" if parent else "at the top"
    return f"unknown key{did_you_mean(key, known) or '.'} Allowed {where}: {', '.join(known)}"
