"""From the chosen hypothesis to a design, a plan and run configs that the code which runs them accepts.

Without a language model the design is read out of the hypothesis' words (`design_draft`); with one it is asked for, and
whatever is wrong with it goes back. Either way it is completed by code (controls, claims, seeds), validated at every
profile by the plan's own checks, and what had to be changed is noted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rankwise import __version__
from rankwise.errors import ConfigError, Finding, RankwiseError
from rankwise.experiments.plan_checks import TaskFacts, check_plan, facts_of
from rankwise.experiments.plan_runs import Plan
from rankwise.research.artefacts import Design, Hypothesis
from rankwise.research.asking import Asker, Prompt
from rankwise.research.datasets import identity, why_not_here
from rankwise.research.design_configs import config_findings, config_texts
from rankwise.research.design_controls import completed, missing_controls, stand_ins
from rankwise.research.design_draft import LEAVE_OUT
from rankwise.research.design_plan import deviations, plan_at, plan_data, plan_text
from rankwise.research.design_power import decidable, task_facts
from rankwise.research.mapping import method_of
from rankwise.research.project import Made, Project, Settings
from rankwise.research.prompts import quote, render
from rankwise.research.rounds import PROJECT_FILE, read_settings, told
from rankwise.tasks import TaskConfig

DESIGN, PLAN = "design.json", "plan.yaml"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
PROFILES = (None, "smoke", "pilot")


@dataclass(frozen=True)
class DesignOptions:
    """What a person says about a design: names of methods, and whether a missing control is refused."""

    names: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False


def make_design(
    project: Project, asker: Asker | None = None, options: DesignOptions | None = None, *, again: bool = False
) -> Design:
    """Design the test of the project's chosen hypothesis (or of its imported review) and write design.json.

    Raises:
        ConfigError: no project or hypothesis; with `strict`, a missing control; a design that cannot be run.
        UnknownNameError: a method that is not registered.
        OutputError: there is a design already (and `again` is not said).
        ModelAnswerError, LimitError: as `Asker.ask`.
    """
    from rankwise.research.design_subject import subject_of

    options = options or DesignOptions()
    settings = read_settings(project)
    subject = subject_of(project, settings)
    made = Made(by="code", version=__version__)
    if asker is None or subject.hypothesis is None:
        found = subject.draft(options.names)
    else:
        hypothesis = subject.hypothesis
        asked = prompt(settings, hypothesis, subject.try_draft(options.names))
        answer = asker.ask(asked, Design, lambda proposed: design_problems(proposed, settings, options))
        found, made = answer.content, answer.made
    if options.strict:
        _refuse_missing(found)
    found = finished(found, settings, options)
    if problems_left := run_problems(found, settings):
        raise ConfigError(f"the design of {project.folder}", [Finding("", problem) for problem in problems_left])
    found = _judged(found, subject.hypothesis)
    inputs = project.inputs(PROJECT_FILE, *subject.files)
    project.write(DESIGN, found, made.model_copy(update={"inputs": inputs}), again=again)
    return found


def make_plan(project: Project) -> list[str]:
    """Write plan.yaml and the run configs that design.json describes; returns the names of the files.

    The plan comes last: where it is, the configs are.

    Raises:
        ConfigError: no design, or one (edited by hand) that cannot be run; every problem.
        OutputError: a file cannot be written.
    """
    settings = read_settings(project)
    design = project.read(DESIGN, Design)
    if problems := run_problems(design, settings):
        raise ConfigError(str(project.path(DESIGN)), [Finding("", problem) for problem in problems])
    texts = config_texts(design)
    for name, text in texts.items():
        project.write_text(name, text, again=True)
    project.write_text(PLAN, plan_text(design, settings, project.digest(DESIGN)), again=True)
    return [*texts, PLAN]


def finished(found: Design, settings: Settings, options: DesignOptions) -> Design:
    """A proposed design with registered methods, controls, claims that can be decided, enough seeds, and notes."""
    found = completed(_mapped(found, options.names))
    found = decidable(found, task_facts(found))
    notes = (*found.notes, *deviations(found, settings))
    return found.model_copy(update={"notes": tuple(dict.fromkeys(notes))})


def design_problems(proposed: Design, settings: Settings, options: DesignOptions) -> list[str]:
    """What is wrong with a design that somebody proposes: one sentence each, for sending back."""
    if strange := foreign(proposed, settings):
        return strange  # before anything is loaded
    try:
        found = finished(proposed, settings, options)
    except RankwiseError as error:
        return _sentences(error)
    problems = [problem for dataset in proposed.datasets for problem in identity(dataset)]
    if not any(arm.role == "proposed" for arm in proposed.arms):
        problems.append("arms: none has the role `proposed`")
    return problems + run_problems(found, settings)


def foreign(proposed: Design, settings: Settings) -> list[str]:
    """Files, and whatever else only a person may name: a proposal takes registered tasks and models of the hub."""
    from rankwise.research.datasets import known_tasks

    known = list(known_tasks())
    found = [
        f"datasets.{place}.task: '{one.task}' is no task; allowed: {', '.join(known)}"
        for place, one in enumerate(proposed.datasets)
        if one.task not in known
    ]
    if proposed.model not in ("minilm", settings.base_model) and not _HUB_ID.fullmatch(proposed.model):
        found.append(
            f"model: '{proposed.model}' must be minilm or a name on the hub such as google-bert/bert-base-uncased"
        )
    return found


def run_problems(design: Design, settings: Settings) -> list[str]:
    """What the code that runs plans and configs would refuse: at the plan as it stands, and at the profiles."""
    found: list[str] = [problem for dataset in design.datasets for problem in identity(dataset)]
    data = plan_data(design, settings)
    for profile in PROFILES:
        try:
            plan = plan_at(data, profile)
            facts = _facts(design, plan)
            if set(facts) == {task.name for task in plan.config.tasks}:
                found += [str(one) for one in check_plan(plan, facts) if one.level == "error"]
        except RankwiseError as error:
            found += _sentences(error)
    if not found:
        found += [str(one) for one in config_findings(config_texts(design))]
    return list(dict.fromkeys(found))


def prompt(settings: Settings, hypothesis: Hypothesis, proposed: Design | None) -> Prompt:
    """What a language model is asked. Cassettes know it by topic and hypothesis: what code adds changes."""
    from rankwise.research.means import told_means

    asked = {"topic": quote("topic", settings.topic), "hypothesis": told("the hypothesis", hypothesis)}
    draft = told("draft", proposed) if proposed is not None else "(none: code did not understand the hypothesis)"
    full = render("design", **asked, means=told_means(settings), draft=draft)
    known = render("design", **asked, means=told_means(settings, known_by=True), draft="(draft)")
    return replace(full, known_by=known.text)


def _facts(design: Design, plan: Plan) -> dict[str, TaskFacts]:
    """What the checks want to know: of loaded data where they are here, else of tables; some may be missing."""
    if all(why_not_here(_name(task)) is None for task in plan.config.tasks):
        return facts_of(plan)
    return task_facts(design)


def _name(task: TaskConfig) -> str:
    return str(getattr(task, "path", "") or task.name)


def _mapped(found: Design, names: Mapping[str, str]) -> Design:
    """The design with every arm's method by our name, and a note where that may be another method than is meant.

    Raises:
        UnknownNameError: one is not registered.
    """
    arms = []
    for arm in found.arms:
        said = str(arm.method.get("name") or arm.said or arm.name)
        if names.get(said) == LEAVE_OUT:
            continue
        method = said if _registered(said) else method_of(said, arm.role, names)
        arms.append(arm.model_copy(update={"method": {**arm.method, "name": method}}))
    notes = (*found.notes, *stand_ins(arms, names))
    return found.model_copy(update={"arms": tuple(arms), "notes": tuple(dict.fromkeys(notes))})


def _registered(name: str) -> bool:
    from rankwise.experiments.schema import method_registry

    return name in method_registry()


def _refuse_missing(found: Design) -> None:
    missing = missing_controls(found.arms)
    if missing:
        findings = [Finding("arms", f"no arm is {arm.method['name']}: {arm.why}") for arm in missing]
        raise ConfigError("--strict", findings)


def _judged(found: Design, hypothesis: Hypothesis | None) -> Design:
    """The design with what the fixed judge finds wrong with it, as notes."""
    from rankwise.research.checks import check_design

    defects = check_design(found, hypothesis)
    notes = [f"check {one.rule}, {one.level}: {one.message}" for one in defects if one.level != "note"]
    return found.model_copy(update={"notes": tuple(dict.fromkeys((*found.notes, *notes)))})


def _sentences(error: RankwiseError) -> list[str]:
    return [str(one) for one in error.findings] if isinstance(error, ConfigError) else [str(error)]
