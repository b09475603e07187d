"""A design as the text of a plan: what the hypothesis asks for, and profiles that this machine can run.

The plan as it stands (profile `full`) has the model, tasks, budgets and length that the design names. `smoke` and
`pilot` replace what is not here and shorten the rest; verdicts at a profile are about that profile's model and tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rankwise.experiments.plan_runs import Plan, plan_of
from rankwise.experiments.yaml_text import dump_yaml
from rankwise.research.artefacts import Design, Search
from rankwise.research.datasets import here, task_entry, why_no_model, why_not_here
from rankwise.research.design_claims import claim_data
from rankwise.research.project import Settings

FALLBACK = "docstrings"
"""The task that needs no data."""
SHARE = 0.1
"""Of the training examples, for tuning."""
RATES = (5e-4, 1e-3, 2e-3)
SMOKE_STEPS, PILOT_STEPS = 40, 200
CONDITIONAL_STEPS = 80
"""Gates need steps to open and close."""
CONDITIONAL = frozenset({"galora", "cogalora", "radlora"})
HEAD = (
    "# Made by `rankwise research design` from design.json (sha256 {digest}).\n"
    "# As it stands: what the hypothesis asks for. Profiles smoke and pilot: what this machine can run.\n"
)


def plan_data(design: Design, settings: Settings) -> dict[str, Any]:
    """A plan's file as plain data."""
    source = "the hypothesis of this project"
    data: dict[str, Any] = {
        "name": design.name,
        "question": design.question,
        "model": design.model,
        "arms": {arm.name: {"method": dict(arm.method)} for arm in design.arms},
        "tasks": [task_entry(dataset) for dataset in design.datasets],
        "budgets": list(design.budgets),
        "seeds": design.seeds,
        "training": dict(design.training),
        "claims": [claim_data(claim, source) for claim in design.claims],
    }
    if rates := tuned_rates(design.search):
        data["protocol"] = {"tuning": {"learning_rates": list(rates), "share": SHARE}}
    data["profiles"] = {"smoke": _smoke(design, settings), "pilot": _pilot(design, settings), "full": {}}
    return data


def plan_text(design: Design, settings: Settings, digest: str) -> str:
    """The text of `plan.yaml`; `digest` is that of the design's file."""
    return HEAD.format(digest=digest) + dump_yaml(plan_data(design, settings))


def made_from(text: str) -> str | None:
    """The digest of the design that a plan's text was made from; None if it does not say."""
    for line in text.splitlines()[:5]:
        if line.startswith("#") and "sha256 " in line:
            return line.partition("sha256 ")[2].rstrip(").").strip()
    return None


def plan_at(data: Mapping[str, Any], profile: str | None, source: str = "plan.yaml") -> Plan:
    """The plan that the data describe.

    Raises:
        ConfigError: every problem.
    """
    return plan_of(data, source, profile)


def tuned_rates(search: Sequence[Search]) -> tuple[float, ...]:
    """Learning rates that every arm tries alike: the choices, or low, geometric middle and high of a range."""
    for one in search:
        if one.path != "training.learning_rate":
            continue
        if one.choices:
            rates = {float(choice) for choice in one.choices if isinstance(choice, int | float) and float(choice) > 0}
        elif one.low and one.high and one.low > 0:
            rates = {one.low, float(f"{(one.low * one.high) ** 0.5:.3g}"), one.high}
        else:
            rates = set()
        return tuple(sorted(rates)) if len(rates) > 1 else ()
    return ()


def deviations(design: Design, settings: Settings) -> tuple[str, ...]:
    """What profiles replace because it is not on this machine, one sentence each."""
    found = []
    if reason := why_no_model(design.model):
        found.append(
            f"base model {design.model} is not here ({reason}): profiles smoke and pilot run {settings.base_model}"
        )
    lacking = {dataset.task: why_not_here(dataset.task) for dataset in design.datasets}
    for task, reason in lacking.items():
        if reason:
            found.append(f"data of {task} are not here ({reason}): profiles smoke and pilot leave it out")
    if all(lacking.values()):
        found.append(f"none of the tasks is here: profiles smoke and pilot run {FALLBACK} instead")
    return tuple(found)


def runs_here(design: Design) -> bool:
    """Whether the plan as it stands can run on this machine: model and all data are here."""
    return why_no_model(design.model) is None and all(why_not_here(d.task) is None for d in design.datasets)


def _tasks(design: Design, limit: int, caps: Mapping[str, int]) -> list[Any]:
    """Tasks of a profile: those of the design that are here, smallest first, else the one that needs no data."""
    there = here(dataset.task for dataset in design.datasets)
    return [task_entry(dataset, caps) for dataset in design.datasets if dataset.task in there][:limit]


def _smoke(design: Design, settings: Settings) -> dict[str, Any]:
    methods = {str(arm.method.get("name")) for arm in design.arms}
    steps = CONDITIONAL_STEPS if methods & CONDITIONAL else SMOKE_STEPS
    given = design.training.get("max_steps")
    return {
        "model": settings.base_model,
        "tasks": _tasks(design, 1, {"train_examples": 2000, "validation_examples": 600})
        or [{"name": FALLBACK, "validation_examples": 600}],
        "budgets": list(design.budgets[:1]),
        "seeds": 2,
        "training": _short(min(steps, given) if isinstance(given, int) else steps, 8, 3e-3),
        "tuning": None,
        "minutes": 10,
    }


def _pilot(design: Design, settings: Settings) -> dict[str, Any]:
    tuning = {"learning_rates": list(RATES), "share": SHARE} if tuned_rates(design.search) else None
    return {
        "model": settings.base_model,
        "tasks": _tasks(design, 3, {"train_examples": 8000}) or [{"name": FALLBACK}],
        "budgets": list(design.budgets[:2]),
        "seeds": 3,
        "training": _short(PILOT_STEPS, 16, 1e-3),
        "tuning": tuning,
        "minutes": 120,
    }


def _short(steps: int, batch: int, rate: float) -> dict[str, Any]:
    return {"max_steps": steps, "batch_size": batch, "learning_rate": rate, "precision": "fp32", "save_every": None}
