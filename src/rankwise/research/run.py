"""Runs of a project: the profile that fits the time there is, the plan through `experiments`, a verdict on every claim.

Which profile is taken is written down before the first run (run.json), so that a killed command goes on with the same
one. Runs are in the store of `runs/<profile>`; verdicts.json is computed from it and can be made again at any time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from rankwise import __version__
from rankwise.errors import ConfigError, Finding
from rankwise.experiments.plan import COSTS
from rankwise.experiments.plan_runs import Plan, load_plan
from rankwise.experiments.schema import task_config
from rankwise.experiments.spreading import How
from rankwise.experiments.verdict_table import as_data
from rankwise.experiments.verdicts import ClaimVerdict
from rankwise.research.artefacts import Artefact, Claim, Design
from rankwise.research.datasets import task_entry, why_no_model, why_not_here
from rankwise.research.design import DESIGN, PLAN
from rankwise.research.design_claims import plan_id
from rankwise.research.design_plugins import PLUGINS
from rankwise.research.project import Made, Project
from rankwise.research.review_types import Judged, Verdicts
from rankwise.research.rounds import read_settings

RUN, VERDICTS, RUNS = "run.json", "verdicts.json", "runs"
PROFILES = ("full", "pilot", "smoke")
"""Largest first: the first that is possible here and fits is taken."""
BEYOND = 1.5
"""Time of a run over that of plain LoRA, taken for all methods (the estimate times plain LoRA)."""
PER_RUN = 3.0
"""Seconds between two runs: loading, writing, counting."""


class Estimate(Artefact):
    """What a profile would take here, or why it cannot be run here."""

    profile: str
    runs: int = Field(ge=0, description="runs and trials")
    minutes: float | None = Field(default=None, description="none: not possible here, or not needed to know")
    note: str = ""


class RunChoice(Artefact):
    """The profile that is run, and why."""

    profile: str
    why: str
    budget_minutes: float
    estimates: tuple[Estimate, ...] = ()


def choose_profile(project: Project, wanted: str | None = None, budget_minutes: float | None = None) -> RunChoice:
    """The profile to run: what is asked for, else the largest that this machine can run in the time there is.

    Raises:
        ConfigError: no plan, no such profile, or nothing fits.
    """
    settings = read_settings(project)
    file = project.path(PLAN)
    if not file.is_file():
        raise ConfigError(str(project.folder), [Finding("", f"has no {PLAN}; `rankwise research design` comes first")])
    budget = budget_minutes or settings.budget_minutes
    if wanted is not None:
        plan = load_plan(file, wanted)
        estimate = Estimate(profile=wanted, runs=len(plan.runs), note="asked for")
        return RunChoice(profile=wanted, why="asked for", budget_minutes=budget, estimates=(estimate,))
    estimates: list[Estimate] = []
    for profile in PROFILES:
        estimates.append(_estimate(file, profile))
        minutes = estimates[-1].minutes
        if minutes is not None and minutes <= budget:
            why = f"about {minutes:.0f} minutes here, of {budget:g} that there are"
            return RunChoice(profile=profile, why=why, budget_minutes=budget, estimates=tuple(estimates))
    findings = [Finding(one.profile, one.note or f"takes about {one.minutes:.0f} minutes here") for one in estimates]
    findings.append(Finding("--budget", f"{budget:g} minutes are too few; give more, or name the --profile anyway"))
    raise ConfigError(str(file), findings)


def _estimate(file: Path, profile: str) -> Estimate:
    """Minutes of a profile here, from a few timed steps."""
    from rankwise.experiments.plan_model import seconds_of
    from rankwise.experiments.tuning import every_run

    plan = load_plan(file, profile)
    runs = len(every_run(plan))
    if reason := why_not(plan):
        return Estimate(profile=profile, runs=runs, note=reason)
    seconds = sum(seconds_of(plan).values()) * BEYOND + PER_RUN * runs
    return Estimate(profile=profile, runs=runs, minutes=round(seconds / 60, 2))


def why_not(plan: Plan) -> str | None:
    """Why a plan cannot be run on this machine, or None."""
    if reason := why_no_model(plan.config.model.name):
        return f"base model {plan.config.model.name}: {reason}"
    for task in plan.config.tasks:
        if reason := why_not_here(str(getattr(task, "path", "") or task.name)):
            return f"data of {task.name}: {reason}"
    return None


def run(
    project: Project,
    *,
    profile: str | None = None,
    budget_minutes: float | None = None,
    how: How | None = None,
    command: str = "rankwise research run",
) -> Verdicts:
    """Do the missing runs of the project's plan and write verdicts.json.

    Raises:
        ConfigError: see `choose_profile`; or the plan cannot answer its claims.
        RankwiseError: what can go wrong in a run; finished runs are kept.
    """
    from rankwise.experiments.plan_commands import compare_plan

    if how is not None and how.engine is not None and project.has(PLUGINS):
        message = "workers know nothing of the project's plug-ins; do its runs here, without --engine"
        raise ConfigError(str(project.path(PLUGINS)), [Finding("--engine", message)])
    choice = _chosen(project, profile, budget_minutes)
    folder = project.path(folder_of(project, choice.profile))
    compare_plan(
        project.path(PLAN), profile=choice.profile, output=folder, store=None, command=command, how=how or How()
    )
    return judge(project, choice.profile)


def _chosen(project: Project, wanted: str | None, budget_minutes: float | None) -> RunChoice:
    """The choice that is written down already, if the plan is still that one and nothing else is asked for."""
    if project.has(RUN):
        known = project.read(RUN, RunChoice)
        same_plan = project.made(RUN).inputs == project.inputs(PLAN)
        same = wanted in (None, known.profile) and budget_minutes in (None, known.budget_minutes)
        if same_plan and same:
            return known
    choice = choose_profile(project, wanted, budget_minutes)
    project.write(RUN, choice, Made(by="code", version=__version__, inputs=project.inputs(PLAN)), again=True)
    return choice


def folder_of(project: Project, profile: str) -> str:
    """The run folder of a profile: `runs/<profile>`, with the plan's name where an earlier plan of another name has it.

    Raises:
        ConfigError: no plan.
        OutputError: the folder's frozen plan was changed by hand.
    """
    from rankwise.experiments.frozen import FROZEN, read_frozen

    name, folder = load_plan(project.path(PLAN), profile).config.name, f"{RUNS}/{profile}"
    if project.has(f"{folder}/{FROZEN}") and read_frozen(project.path(folder)).plan.config.name != name:
        return f"{folder}-{name}"
    return folder


def judge(project: Project, profile: str) -> Verdicts:
    """Write verdicts.json from the results store of a profile, without running anything.

    Raises:
        OutputError: the profile was never run.
        StoreError: its store cannot be read.
    """
    from rankwise.experiments.compare import STORE
    from rankwise.experiments.judgement import judgement
    from rankwise.experiments.store import Store

    where = folder_of(project, profile)
    folder = project.path(where)
    with Store(folder / STORE) as store:
        found = judgement(folder, store, load_plan(project.path(PLAN), profile))
    config = found.plans[-1].config
    expected = {plan_id(claim.id): claim for claim in project.read(DESIGN, Design).claims}
    verdicts = Verdicts(
        plan=config.name,
        profile=profile,
        model=config.model.name,
        tasks=tuple(task.name for task in config.tasks),
        budgets=config.budgets,
        seeds=config.seeds,
        claims=tuple(judged(each, expected.get(each.claim.id)) for each in found.verdicts),
        notes=(*found.notes, *_about(project, config.model.name, [task.name for task in config.tasks])),
        folder=where,
    )
    inputs = project.inputs(PLAN, RUN)
    project.write(VERDICTS, verdicts, Made(by="code", version=__version__, inputs=inputs), again=True)
    return verdicts


def judged(found: ClaimVerdict, claim: Claim | None = None) -> Judged:
    """A verdict as an artefact; `claim` is that of the design, for what it expects."""
    data = as_data(found)
    kept = {name: data[name] for name in Judged.model_fields if name in data and data[name] is not None}
    expected = claim.expected if claim is not None else None
    if expected is not None and found.claim.metric in COSTS:
        expected = 1 + expected
    return Judged.model_validate({**kept, "verdict": found.word, "expected": expected})


def _about(project: Project, model: str, tasks: Sequence[str]) -> list[str]:
    """What the verdicts are not about: the model and tasks that the design names and this profile replaced."""
    design = project.read(DESIGN, Design)
    named = [task_config(task_entry(dataset)).name for dataset in design.datasets]
    parts = []
    if model != design.model:
        parts.append(f"{model} in place of {design.model}")
    if sorted(tasks) != sorted(named):
        parts.append(f"{', '.join(tasks)} in place of {', '.join(named)}")
    return [f"note: these runs are of {'; '.join(parts)}: the verdicts are about that"] if parts else []


def status_of(project: Project) -> dict[str, Any]:
    """How many runs of the chosen profile are completed: `profile`, `completed`, `planned`."""
    from rankwise.experiments.compare import STORE
    from rankwise.experiments.store import Store

    if not project.has(RUN):
        return {}
    profile = project.read(RUN, RunChoice).profile
    store = project.path(f"{folder_of(project, profile)}/{STORE}")
    plan = load_plan(project.path(PLAN), profile)
    done: set[str] = set()
    if store.is_file():
        with Store(store) as opened:
            done = set(opened.completed())
    planned = {one.config.run_id for one in plan.runs}
    return {"profile": profile, "completed": len(planned & done), "planned": len(planned)}
