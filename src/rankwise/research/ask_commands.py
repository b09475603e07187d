"""What the commands that ask a language model do."""

from dataclasses import dataclass
from pathlib import Path

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.shown import Summary
from rankwise.research.artefacts import Evaluation, Hypothesis, Papers, Style
from rankwise.research.ask_options import ModelOptions, asker, somebody, with_prompt
from rankwise.research.asking import Asker
from rankwise.research.choice import standings
from rankwise.research.differences import between
from rankwise.research.differences import text as differences_text
from rankwise.research.project import Made, Project, Settings, evaluation_file, hypothesis_file
from rankwise.research.rounds import PAPERS_FILE, PROJECT_FILE, new_settings, read_rounds, read_settings, scores


@dataclass(frozen=True)
class Start:
    """What `hypothesize` begins a project with."""

    topic: str
    papers: Path | None = None
    style: Style | None = None
    """None: the project's own, of a new one `minimal`."""


def hypothesize(start: Start, folder: Path, options: ModelOptions) -> Summary:
    """`rankwise research hypothesize`: begin a project (or go on with one of the same topic) and propose.

    Raises:
        ConfigError: a project of another topic or with other papers, nobody to ask, or a file that cannot be read.
        OutputError: there is a hypothesis already.
    """
    from rankwise.research.hypothesize import hypothesize as propose

    project = Project(folder)
    someone = somebody(options, project)

    def work() -> Summary:
        begin(project, new_settings(topic=start.topic, style=start.style), start.papers)
        hypothesis = propose(project, someone, style=start.style)
        return _round(project, 0, hypothesis, "proposed")

    return with_prompt(project, work)


def begin(project: Project, settings: Settings, papers: Path | None) -> None:
    """Write project.json and papers.json, where they are not there yet.

    Raises:
        ConfigError: the folder holds a project of another topic or without some of these papers; or the papers cannot
            be read.
    """
    if project.has(PROJECT_FILE):
        there = read_settings(project).topic
        if there != settings.topic:
            message = f"holds a project on {there[:80]!r}, not on {settings.topic[:80]!r}; choose another folder"
            raise ConfigError(str(project.folder), [Finding("topic", message)])
    if papers is not None:
        _begin_papers(project, papers)
    if not project.has(PROJECT_FILE):
        project.write(PROJECT_FILE, settings, Made(by="hand"))


def _begin_papers(project: Project, papers: Path) -> None:
    """Write the papers; where there are some, see that these are among them."""
    from rankwise.research.papers import merge, read_papers

    read = merge(read_papers(papers))
    if not project.has(PAPERS_FILE):
        project.write(PAPERS_FILE, read, Made(by="import"))
        return
    there = project.read(PAPERS_FILE, Papers).papers
    more = len(merge((*there, *read.papers)).papers) - len(there)
    if more > 0:
        message = (
            f"has {more} paper(s) that the project does not have; `rankwise research papers add` adds them, without "
            "--papers the project goes on with its own"
        )
        raise ConfigError(str(papers), [Finding("--papers", message)])


def evaluate(folder: Path, options: ModelOptions, *, number: int | None, again: bool) -> Summary:
    """`rankwise research evaluate`: one round, or every round that has no evaluation yet.

    Raises:
        ConfigError: no project, no hypothesis, no such round.
        OutputError: the round is evaluated already.
    """
    from rankwise.research.evaluate import evaluate as judge

    project = Project(folder)
    read_settings(project)
    someone = asker(options, project)

    def work() -> Summary:
        numbers = _asked_for(project, number, again)
        for item in numbers:
            judge(project, item, someone, again=again)
        return standing(project, numbers)

    return with_prompt(project, work)


def _asked_for(project: Project, number: int | None, again: bool) -> list[int]:
    """The rounds to evaluate: the one that is named, the last one again, or all that have no evaluation."""
    count = project.rounds()
    if number is not None or not count:
        return [number or 0]
    return [count - 1] if again else [item for item in range(count) if not project.has(evaluation_file(item))]


def refine(folder: Path, options: ModelOptions, *, anyway: bool) -> Summary:
    """`rankwise research refine`: one more round, unless the stop rule says that it is enough.

    Raises:
        ConfigError: no project, nothing to refine, nobody to ask.
    """
    from rankwise.research.refine import refine as better
    from rankwise.research.refine import stop

    project = Project(folder)
    read_settings(project)

    def work() -> Summary:
        reason = None if anyway else stop(project)
        if reason:
            return Summary(f"no further round: {reason} (--anyway makes one)", {"round": None, "stopped": reason})
        someone: Asker = somebody(options, project)
        number = project.rounds()
        hypothesis = better(project, someone)
        return _round(project, number, hypothesis, "refined")

    return with_prompt(project, work)


def diff(folder: Path, first: int | None, second: int | None) -> Summary:
    """`rankwise research diff`: what changed between two rounds; the last two, if none are named.

    Raises:
        ConfigError: no project, or no such rounds.
    """
    project = Project(folder)
    read_settings(project)
    rounds = read_rounds(project)
    last = len(rounds) - 1
    if first is not None and second is None:
        first, second = first, last
    a, b = last - 1 if first is None else first, last if second is None else second
    if not (0 <= a <= last and 0 <= b <= last):
        has = f"it has {len(rounds)} round(s)" + (f", 0 to {last}" if rounds else "")
        raise ConfigError(str(folder), [Finding("round", f"cannot compare round {a} with round {b}: {has}")])
    difference = between(rounds[a].hypothesis, rounds[b].hypothesis)
    data = {"before": a, "after": b, **difference.model_dump(mode="json")}
    return Summary(f"round {a} -> round {b}\n\n{differences_text(difference)}", data)


def standing(project: Project, told: list[int]) -> Summary:
    """How the rounds stand, best first, and what was found in those that are `told`."""
    rounds = read_rounds(project)
    lines = []
    for number in told:
        evaluation = rounds[number].evaluation
        if evaluation is not None:
            lines += [f"round {number}: {rounds[number].hypothesis.title or '(no title)'}", *_findings(evaluation), ""]
    if not told:
        lines += ["every round is evaluated already; --again evaluates the last one anew", ""]
    ordered = standings(rounds)
    lines.append("round  errors  scores of 40  title")
    for item in ordered:
        mark = "-" if item.total is None else str(item.total)
        lines.append(f"{item.round:>5}  {item.errors:>6}  {mark:>12}  {item.title[:80]}")
    data = {
        "evaluated": told,
        "standings": [item.model_dump(mode="json") for item in ordered],
        "evaluations": {
            str(item.number): item.evaluation.model_dump(mode="json")
            for item in rounds
            if item.number in told and item.evaluation is not None
        },
    }
    return Summary("\n".join(lines), data)


def _findings(evaluation: Evaluation) -> list[str]:
    lines = [f"  {item.level}: {item.where + ': ' if item.where else ''}{item.message}" for item in evaluation.defects]
    lines = lines or ["  code found nothing wrong"]
    if evaluation.opinion is None:
        return [*lines, "  no model was asked for its opinion"]
    for name, score in scores(evaluation.opinion).items():
        lines.append(f"  {name} {score.score}/10: {score.reason}")
    lines += [f"  close to {close.paper_id}: {close.overlap}" for close in evaluation.opinion.closest]
    return lines


def _round(project: Project, number: int, hypothesis: Hypothesis, done: str) -> Summary:
    """A new round, for people and as data."""
    file = project.path(hypothesis_file(number))
    lines = [f"{done} round {number}: {hypothesis.title}", f"  {file}", "", hypothesis.method.strip(), "", "claims"]
    lines += [f"  {claim.id}  {claim.kind}: {claim.text}" for claim in hypothesis.claims]
    data = {"round": number, "file": str(file), "hypothesis": hypothesis.model_dump(mode="json")}
    if number and hypothesis.changes:
        before = project.read(hypothesis_file(number - 1), Hypothesis)
        difference = between(before, hypothesis)
        data["difference"] = difference.model_dump(mode="json")
        lines += ["", f"against round {number - 1}", "", differences_text(difference)]
    lines += ["", f"next: rankwise research evaluate {project.folder}"]
    return Summary("\n".join(lines), data)
