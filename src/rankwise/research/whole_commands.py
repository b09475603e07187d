"""What the commands design, run, review, status and start do, from plain values to plain values."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.shown import Summary
from rankwise.experiments.spreading import How
from rankwise.research.artefacts import Design
from rankwise.research.ask_options import ModelOptions, asker, with_prompt
from rankwise.research.choice import CHOICE
from rankwise.research.design import DESIGN, DesignOptions, make_design, make_plan
from rankwise.research.design_plugins import add_plugins
from rankwise.research.project import Project
from rankwise.research.review_comments import said
from rankwise.research.review_files import PAGE, PREMISE, REVIEW, SETTLE
from rankwise.research.review_types import Review, Verdicts
from rankwise.research.rounds import read_settings
from rankwise.research.stages import stale
from rankwise.research.start import Start, kept
from rankwise.research.start import start as go
from rankwise.research.status import status as standing

UNITS = {"s": 1 / 60, "sec": 1 / 60, "m": 1.0, "min": 1.0, "": 1.0, "h": 60.0}


@dataclass(frozen=True)
class Naming:
    """What was typed about methods: `SAID=METHOD` pairs and files of plug-ins."""

    pairs: Sequence[str] = ()
    plugins: Sequence[Path] = ()
    strict: bool = False

    def options(self) -> DesignOptions:
        """As the design takes it.

        Raises:
            ConfigError: a pair without `=`.
        """
        wrong = [pair for pair in self.pairs if "=" not in pair.strip("=")]
        if wrong:
            raise ConfigError("--map", [Finding(pair, "write SAID=METHOD, as in 'GG-LoRA=glora'") for pair in wrong])
        return DesignOptions(dict(pair.split("=", 1) for pair in self.pairs), self.strict)


@dataclass(frozen=True)
class StartOptions:
    """The options of `start` as they were typed."""

    topic: str | None = None
    papers: Path | None = None
    style: str | None = None
    rounds: int | None = None
    budget: str | None = None
    base_model: str | None = None
    profile: str | None = None
    naming: Naming = field(default_factory=Naming)
    how: How = field(default_factory=How)


def minutes_of(text: str) -> float:
    """`30min`, `2h`, `90s` or `45` (minutes).

    Raises:
        ConfigError: none of these, or no time at all.
    """
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*(s|sec|m|min|h|)\s*", text.lower(), re.ASCII)
    minutes = float(match[1]) * UNITS[match[2]] if match else 0.0
    if minutes <= 0:
        raise ConfigError("--budget", [Finding("", f"'{text}' is no time; write 30min, 2h or 90s")])
    return minutes


def design(folder: Path, options: ModelOptions, naming: Naming, *, again: bool) -> Summary:
    """Design the test of the chosen hypothesis, and write the plan and the run configs.

    Raises:
        ConfigError, UnknownNameError, OutputError, ModelAnswerError, LimitError: see `design.make_design`.
    """
    project = Project(folder)
    read_settings(project)
    someone, wanted = asker(options, project), naming.options()

    def work() -> Summary:
        add_plugins(project, naming.plugins)
        old = _old_design(project, naming) if not again else ""
        if not project.has(DESIGN) or again:
            make_design(project, someone, wanted, again=again)
        files = make_plan(project)
        found = project.read(DESIGN, Design)
        arms = [f"  {arm.name:<16}{arm.role:<13}{arm.said or arm.why}"[:160] for arm in found.arms]
        claims = [f"  {claim.id:<16}{claim.kind:<16}{claim.text}"[:200] for claim in found.claims]
        notes = [f"  note: {note}" for note in found.notes]
        head = [f"{found.name}: {found.question}"[:300], *filter(None, [old])]
        lines = [*head, "arms", *arms, "claims", *claims, *notes, *files]
        lines.append(f"next: rankwise research run {folder}")
        return Summary("\n".join(lines), {"design": found.model_dump(mode="json"), "files": files, "old": old})

    return with_prompt(project, work)


def _old_design(project: Project, naming: Naming) -> str:
    """What is to be said of a design that is there and no longer fits; empty if it does, or if there is none."""
    names = (CHOICE, DESIGN) if project.has(DESIGN) else ()
    changed = "; ".join(filter(None, (stale(project, name) for name in names if project.has(name))))
    why = [f"it is old: {changed}"] if changed else []
    if names:
        why += [
            f"{name} is for a new one"
            for name, given in (("--map", naming.pairs), ("--strict", naming.strict))
            if given
        ]
    return f"{DESIGN} is the one that was there, and {', '.join(why)}; --again makes a new one" if why else ""


def run(folder: Path, *, profile: str | None, budget: str | None, how: How, command: str) -> Summary:
    """Do the missing runs of a project's plan and judge its claims.

    Raises:
        ConfigError: no plan, or nothing fits the time there is.
        RankwiseError: what can go wrong in a run.
    """
    from rankwise.research.run import run as carry_out

    project = Project(folder)
    read_settings(project)
    minutes = minutes_of(budget) if budget else None
    with project.locked():
        add_plugins(project, ())
        found = carry_out(project, profile=profile, budget_minutes=minutes, how=how, command=command)
    return _verdicts(project, found)


def _verdicts(project: Project, found: Verdicts) -> Summary:
    lines = [f"profile {found.profile}: {found.model} on {', '.join(found.tasks)}"]
    lines += [f"  {said(claim)}" for claim in found.claims]
    lines += [*found.notes, str(project.path(f"{found.folder}/report.html"))]
    lines.append(f"next: rankwise research review {project.folder}")
    return Summary("\n".join(lines), found.model_dump(mode="json"))


def review(subject: Path, options: ModelOptions, *, output: Path | None) -> Summary:
    """Review a project; or a record, which is imported into `output` first.

    Raises:
        ConfigError: neither a project nor a record, or a record without --output.
        OutputError: `output` holds another project.
    """
    from rankwise.research.page import write_page
    from rankwise.research.review import review as judge

    project = _project_of(subject, output)
    read_settings(project)
    someone = asker(options, project)

    def work() -> Summary:
        add_plugins(project, ())
        if not project.has(DESIGN):
            make_design(project)
            make_plan(project)
        found = judge(project, someone)
        write_page(project)
        return _reviewed(project, found)

    return with_prompt(project, work)


def _project_of(subject: Path, output: Path | None) -> Project:
    if subject.is_dir():
        if output is not None:
            raise ConfigError("review", [Finding("--output", f"is for a record; {subject} is a project")])
        return Project(subject)
    if output is None:
        raise ConfigError("review", [Finding("--output", f"is missing: {subject} is a record, name a folder for it")])
    from rankwise.research.import_commands import import_record

    import_record(subject, output)
    return Project(output)


def _reviewed(project: Project, found: Review) -> Summary:
    lines = [found.subject, "", found.summary.text]
    lines += [f"  note: {note}" for note in found.notes if note.startswith("without ")]  # how it was made
    lines += [f"  correction: {one.text}" for one in found.corrections]
    lines.append(f"{len(found.comments)} comments, {len(found.open_comments())} open")
    lines += [f"  {one.id} ({one.severity}, {one.status}): {one.objection.text}"[:300] for one in found.open_comments()]
    files = [name for name in (REVIEW, PAGE, SETTLE, PREMISE) if project.has(name)]
    lines += ["", f"what would settle it: {found.settle.text}"[:400], *(str(project.path(name)) for name in files)]
    return Summary("\n".join(lines), found.model_dump(mode="json"))


def status(folder: Path) -> Summary:
    """How a project stands.

    Raises:
        ConfigError: there is no project in the folder.
    """
    return standing(Project(folder))


def start(folder: Path, given: StartOptions, options: ModelOptions, command: str) -> Summary:
    """Do every stage that is not done, from papers to the page.

    Raises:
        RankwiseError: whatever a stage raises; what was made before stays.
    """
    if given.style not in (None, "minimal", "free"):
        raise ConfigError("start", [Finding("--style", f"is {given.style!r}; allowed: minimal, free")])
    project = Project(folder)
    someone = asker(options, project)
    asked = Start(
        topic=given.topic,
        papers=given.papers,
        style=given.style,  # type: ignore[arg-type]
        rounds=given.rounds,
        budget_minutes=minutes_of(given.budget) if given.budget else None,
        base_model=given.base_model,
        profile=given.profile,
        design=given.naming.options(),
        how=given.how,
        command=command,
    )

    def work() -> Summary:
        add_plugins(project, given.naming.plugins)
        go(project, asked, someone, lambda text: print(f"rankwise: {text}", file=sys.stderr))
        found = _reviewed(project, project.read(REVIEW, Review))
        return Summary("\n".join([*kept(project), found.text]), found.data)

    return with_prompt(project, work)
