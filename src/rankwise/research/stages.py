"""The table of stages: what each makes, out of what, and how it stands in a project.

A stage is done if its file is there. It is stale if a file that it was made from has changed since: the envelope of its
file holds their digests. What code derived is made again by `start`; what a model or a person wrote is only reported.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rankwise.errors import ConfigError
from rankwise.research.choice import CHOICE, outdated
from rankwise.research.design import DESIGN, PLAN
from rankwise.research.design_plan import made_from
from rankwise.research.project import Made, Project, evaluation_file, hypothesis_file
from rankwise.research.records_files import IMPORTED_REVIEW
from rankwise.research.review_files import PAGE, REVIEW
from rankwise.research.rounds import PAPERS_FILE, PROJECT_FILE
from rankwise.research.run import VERDICTS

REVIEWERS = ("code", "model", "cassette", "answer")
"""Who makes reviews that are made again: a model's prose is an addition to what code computes."""
State: TypeAlias = Literal["done", "stale", "next", "waiting", "not needed"]


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline: the file that it makes, and the command that does it."""

    name: str
    file: str
    command: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """How a stage stands; `why` says what is stale or waited for."""

    stage: Stage
    state: State
    why: str = ""
    by: str = ""


def stages_of(project: Project) -> tuple[Stage, ...]:
    """Every stage of a project, in order: its rounds as far as they are there, with the one that may come next."""
    folder = str(project.folder)
    found = [Stage("project", PROJECT_FILE, f"rankwise research hypothesize TOPIC --output {folder}")]
    found.append(Stage("papers", PAPERS_FILE, f"rankwise research papers add {folder} FILE"))
    if not project.rounds() and project.has(IMPORTED_REVIEW):
        found.append(Stage("imported review", IMPORTED_REVIEW, "rankwise research import RECORD"))
        source = IMPORTED_REVIEW
    else:
        found += _rounds(project, folder)
        found.append(Stage("choice", CHOICE, f"rankwise research design {folder}", (evaluation_file(0),)))
        source = hypothesis_file(0)
    return (
        *found,
        Stage("design", DESIGN, f"rankwise research design {folder}", (source,)),
        Stage("plan", PLAN, f"rankwise research design {folder}", (DESIGN,)),
        Stage("verdicts", VERDICTS, f"rankwise research run {folder}", (PLAN,)),
        Stage("review", REVIEW, f"rankwise research review {folder}", (source,)),
        Stage("page", PAGE, f"rankwise research review {folder}", (REVIEW,)),
    )


def _rounds(project: Project, folder: str) -> list[Stage]:
    found = []
    count = project.rounds()
    for number in range(max(1, count)):
        command = f"rankwise research {'refine' if number else 'hypothesize'} {folder}"
        before = (evaluation_file(number - 1),) if number else ()
        found.append(Stage(f"hypothesis {number}", hypothesis_file(number), command, before))
        evaluate = f"rankwise research evaluate {folder}"
        found.append(Stage(f"evaluation {number}", evaluation_file(number), evaluate, (hypothesis_file(number),)))
    if count and _goes_on(project):
        before = (evaluation_file(count - 1),)
        found.append(Stage(f"hypothesis {count}", hypothesis_file(count), f"rankwise research refine {folder}", before))
    return found


def _goes_on(project: Project) -> bool:
    """Whether the stop rule leaves room for another round, and no design was made of those there are."""
    from rankwise.research.refine import stop

    return project.has(PROJECT_FILE) and not project.has(DESIGN) and stop(project) is None


def standings(project: Project) -> tuple[Standing, ...]:
    """How every stage of a project stands; the first one that can be done and is not is `next`."""
    found: list[Standing] = []
    named = False
    for stage in stages_of(project):
        if project.has(stage.file):
            changed = stale(project, stage.file)
            found.append(Standing(stage, "stale" if changed else "done", changed, _by(project, stage.file)))
            continue
        lacking = [name for name in stage.needs if not project.has(name)]
        if stage.name in ("papers", "choice") and (project.rounds() or project.has(IMPORTED_REVIEW)):
            found.append(Standing(stage, "not needed", "an optional file"))
        elif stage.name.startswith("evaluation") and project.has(DESIGN):
            found.append(Standing(stage, "not needed", "the design was made without it"))
        elif lacking or named:
            found.append(Standing(stage, "waiting", f"for {', '.join(lacking)}" if lacking else ""))
        else:
            named = stage.name != "papers"
            found.append(Standing(stage, "next" if named else "not needed", "" if named else "an optional file"))
    return tuple(found)


def stale(project: Project, name: str) -> str:
    """What a file was made from and is no longer so, in words; empty if nothing is."""
    if name == PLAN:
        made = made_from(project.path(PLAN).read_text(encoding="utf-8", errors="replace"))
        fresh = made is None or not project.has(DESIGN) or made == project.digest(DESIGN)
        return "" if fresh else f"{DESIGN} changed"
    envelope = _made(project, name)
    if name == CHOICE and envelope.by == "code" and outdated(project):
        return "rounds or their evaluations changed"
    changed = [one for one, digest in envelope.inputs.items() if not project.has(one) or project.digest(one) != digest]
    return f"{', '.join(changed)} changed" if changed else ""


def derived(project: Project, name: str) -> bool:
    """Whether a file may be made again because it follows from others: whatever code made, and reviews."""
    return name == PLAN or _made(project, name).by in (("code",) if name != REVIEW else REVIEWERS)


def _made(project: Project, name: str) -> Made:
    if name.endswith(".json"):
        try:
            return project.made(name)
        except ConfigError:
            pass  # written by hand without an envelope; whoever reads it says what is wrong
    return Made(by="hand")


def _by(project: Project, name: str) -> str:
    made = _made(project, name)
    return "" if not name.endswith(".json") else f"{made.by}{f' ({made.model})' if made.model else ''}"
