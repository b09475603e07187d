"""From papers to a review in one go, one stage after the other, each written down before the next begins.

Killed anywhere, the same command goes on with the first stage that is not done, and comes to the same result: what a
stage makes depends on the files before it alone. Files that code derived are made again when what they were derived
from has changed; what a model or a person wrote is kept, and said to be stale.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rankwise.errors import ConfigError, Finding, ModelAnswerError
from rankwise.experiments.spreading import How
from rankwise.research.artefacts import Style
from rankwise.research.ask_options import WAYS
from rankwise.research.asking import Asker
from rankwise.research.choice import CHOICE, choose
from rankwise.research.design import DESIGN, PLAN, DesignOptions, make_design, make_plan
from rankwise.research.project import Project, Settings, evaluation_file
from rankwise.research.records_files import IMPORTED_REVIEW
from rankwise.research.review import review
from rankwise.research.review_files import PAGE, REVIEW
from rankwise.research.review_types import Review
from rankwise.research.rounds import PAPERS_FILE, PROJECT_FILE, new_settings, read_settings
from rankwise.research.run import VERDICTS, run
from rankwise.research.stages import derived, stale

Say = Callable[[str], None]
"""Is told what goes on, one line at a time."""


@dataclass(frozen=True)
class Start:
    """What `rankwise research start` is given. None: the project's own, or the default."""

    topic: str | None = None
    papers: Path | None = None
    style: Style | None = None
    rounds: int | None = None
    budget_minutes: float | None = None
    base_model: str | None = None
    profile: str | None = None
    design: DesignOptions = field(default_factory=DesignOptions)
    how: How = field(default_factory=How)
    command: str = "rankwise research start"


def start(project: Project, given: Start, asker: Asker | None, say: Say) -> None:
    """Do every stage that is not done.

    Raises:
        ConfigError: options that contradict the project that is there, nobody to ask where a hypothesis is missing, a
            plan that does not fit the time there is.
        RankwiseError: whatever a stage raises; what was made before stays.
    """
    for name, work in steps(project, given, asker):
        say(f"{name} …")
        work()


Work = Callable[[], object]


def steps(project: Project, given: Start, asker: Asker | None) -> Iterator[tuple[str, Work]]:
    """The stages that are due, in order. Which one is next is looked up when the one before it is done."""
    yield from _begun(project, given)
    if project.rounds() or not project.has(IMPORTED_REVIEW):
        yield from _rounds(project, asker)
        if due(project, CHOICE):
            yield "choice", lambda: choose(project, again=True)
    if due(project, DESIGN):
        yield "design", lambda: make_design(project, asker, given.design, again=True)
    if due(project, PLAN):
        yield "plan", lambda: make_plan(project)
    if due(project, VERDICTS):
        yield "runs", lambda: _run(project, given)
    if due(project, REVIEW):
        yield "review", lambda: _review(project, asker)
    if due_page(project):
        from rankwise.research.page import write_page

        yield "page", lambda: write_page(project)


def due(project: Project, name: str) -> bool:
    """Whether a file is missing, or derived by code from files that have changed since."""
    if not project.has(name):
        return True
    return bool(stale(project, name)) and derived(project, name)


def due_page(project: Project) -> bool:
    """Whether the page is missing, or older than the review that it shows."""
    if not project.has(PAGE):
        return True
    return project.path(PAGE).stat().st_mtime_ns < project.path(REVIEW).stat().st_mtime_ns


def kept(project: Project) -> list[str]:
    """Files that a model or a person wrote and that no longer fit what they were made from, in words."""
    from rankwise.research.stages import standings

    return [
        f"{one.stage.file} was made by {one.by or 'hand'}, and {one.why} since; remove it to make it again"
        for one in standings(project)
        if one.state == "stale" and not derived(project, one.stage.file)
    ]


def _begun(project: Project, given: Start) -> Iterator[tuple[str, Work]]:
    from rankwise.research.ask_commands import begin

    if project.has(PROJECT_FILE):
        _refuse_others(read_settings(project), given, project)
        if given.papers is not None and project.has(PAPERS_FILE):
            begin(project, read_settings(project), given.papers)  # are they among those that are there?
        elif given.papers is not None:
            yield "papers", lambda: begin(project, read_settings(project), given.papers)
        return
    if given.topic is None:
        message = "there is no project in this folder yet: give a topic"
        raise ConfigError(str(project.folder), [Finding("TOPIC", message)])
    names = ("topic", "style", "rounds", "budget_minutes", "base_model")
    settings = new_settings(**{name: getattr(given, name) for name in names})
    yield "papers", lambda: begin(project, settings, given.papers)


def _refuse_others(known: Settings, given: Start, project: Project) -> None:
    """A project is begun once: its topic, style, rounds and base model are those of its first command."""
    findings = [
        Finding(
            name,
            f"is {wanted!r} here and {getattr(known, name)!r} in the project; choose another --output, or change it in "
            "that file",
        )
        for name in ("topic", "style", "rounds", "base_model")
        if (wanted := getattr(given, name)) is not None and wanted != getattr(known, name)
    ]
    if findings:
        raise ConfigError(str(project.path(PROJECT_FILE)), findings)


def _rounds(project: Project, asker: Asker | None) -> Iterator[tuple[str, Work]]:
    """The first hypothesis, then evaluation and refinement in turn until the stop rule ends it.

    Without anybody to ask, hypotheses that are there are evaluated by code, and none is refined.
    """
    from rankwise.research.evaluate import evaluate
    from rankwise.research.hypothesize import hypothesize
    from rankwise.research.refine import refine, stop

    if not project.rounds():
        if asker is None:
            raise ConfigError("the first hypothesis asks a language model", [Finding("", WAYS)])
        yield "hypothesis 0", partial(hypothesize, project, asker)
    while True:
        for number in range(project.rounds()):
            if not project.has(evaluation_file(number)):
                yield f"evaluation {number}", partial(evaluate, project, number, asker)
        if asker is None or project.has(DESIGN) or stop(project) is not None:
            return
        yield f"hypothesis {project.rounds()}", partial(refine, project, asker)


def _run(project: Project, given: Start) -> object:
    return run(
        project, profile=given.profile, budget_minutes=given.budget_minutes, how=given.how, command=given.command
    )


def _review(project: Project, asker: Asker | None) -> Review:
    """The review, with a model's prose if it has any to give: nothing depends on it, so nothing fails for want of it.

    What the model is shown are verdicts, so a recorded conversation may have no answer on another machine.
    """
    try:
        return review(project, asker)
    except ModelAnswerError as error:
        return review(project, None, note=f"without a model's prose: {str(error).partition(chr(10))[0]}")
