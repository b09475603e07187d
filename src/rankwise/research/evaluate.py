"""What is to be thought of a hypothesis: what code finds first, then, if a model is there, its opinion."""

from dataclasses import replace

from rankwise import __version__
from rankwise.errors import ConfigError, Finding, OutputError
from rankwise.research.artefacts import Closest, Defect, Evaluation, Hypothesis, Opinion, Paper, Papers
from rankwise.research.asking import Asker, Prompt
from rankwise.research.means import told_means
from rankwise.research.project import Made, Project, Settings, evaluation_file, hypothesis_file
from rankwise.research.prompts import quote, render
from rankwise.research.records_files import RECORD
from rankwise.research.rounds import (
    PAPERS_FILE,
    PROJECT_FILE,
    Round,
    read_papers,
    read_remarks,
    read_rounds,
    read_settings,
    told,
    told_defects,
    told_history,
    told_papers,
)

LEAST_WORDS = 5
"""Words of a quote; fewer are found in any paper."""


def evaluate(project: Project, number: int, asker: Asker | None, *, again: bool = False) -> Evaluation:
    """Evaluate a round and write evaluation/NNN.json. Without an asker the checks are all there is.

    Raises:
        ConfigError: no project, no such round, or a file is wrong.
        OutputError: it is evaluated already (and `again` is not said).
        ModelAnswerError, LimitError: as `Asker.ask`.
    """
    settings = read_settings(project)
    rounds = read_rounds(project)
    if not 0 <= number < len(rounds):
        has = f"it has {len(rounds)}: 0 to {len(rounds) - 1}" if rounds else "it has no hypothesis yet"
        raise ConfigError(str(project.folder), [Finding("round", f"there is no round {number}; {has}")])
    name = evaluation_file(number)
    if project.has(name) and not again:
        raise OutputError(f"{project.path(name)} exists; --again evaluates anew")
    before, current = rounds[:number], rounds[number].hypothesis
    papers = read_papers(project)
    evaluation = Evaluation(defects=checked(current, before, papers), remarks=read_remarks(project, number))
    made = Made(by="code", version=__version__)
    if asker is not None:
        asked = prompt(settings, current, evaluation, before, papers)
        answer = asker.ask(asked, Opinion, lambda opinion: opinion_problems(opinion, papers.papers))
        evaluation = evaluation.model_copy(update={"opinion": answer.content})
        made = answer.made
    files = [PROJECT_FILE, PAPERS_FILE, RECORD, *(hypothesis_file(past) for past in range(number + 1))]
    inputs = project.inputs(*files, *(evaluation_file(past) for past in range(number)))
    project.write(name, evaluation, made.model_copy(update={"inputs": inputs}), again=again)
    return evaluation


def checked(hypothesis: Hypothesis, before: tuple[Round, ...], papers: Papers) -> tuple[Defect, ...]:
    """What code finds wrong with a hypothesis, given the rounds before it."""
    from rankwise.research.checks import check_hypothesis

    return check_hypothesis(hypothesis, history=[past.hypothesis for past in before], papers=papers.papers)


def prompt(
    settings: Settings, current: Hypothesis, found: Evaluation, before: tuple[Round, ...], papers: Papers
) -> Prompt:
    """What is asked."""

    def filled(known_by: bool) -> Prompt:
        return render(
            "evaluate",
            topic=quote("topic", settings.topic),
            means=told_means(settings, known_by=known_by),
            hypothesis=told(f"hypothesis of round {len(before)}", current),
            defects=told_defects(found.defects, known_by=known_by),
            history=told_history(before, known_by=known_by),
            papers=told_papers(papers),
        )

    return replace(filled(False), known_by=filled(True).text)


def opinion_problems(opinion: Opinion, papers: tuple[Paper, ...]) -> list[str]:
    """What is wrong with an opinion: papers that are not there, quotes that are not in them."""
    known = {paper.id: paper for paper in papers}
    problems = []
    for place, closest in enumerate(opinion.closest):
        paper = known.get(closest.paper_id)
        if paper is None:
            problems.append(f"closest.{place}.paper_id: no paper has the id {closest.paper_id!r}; {_ids(known)}")
        else:
            problems.extend(f"closest.{place}.quote: {problem}" for problem in _quote_problems(closest, paper))
    if len({closest.paper_id for closest in opinion.closest}) < len(opinion.closest):
        problems.append("closest: names a paper twice")
    return problems


def _quote_problems(closest: Closest, paper: Paper) -> list[str]:
    from rankwise.research.papers import entry
    from rankwise.research.verbatim import found

    if len(closest.quote.split()) < LEAST_WORDS:
        return [f"{closest.quote!r} is too short; quote at least {LEAST_WORDS} words"]
    if not found(closest.quote, entry(paper)):
        return [f"{closest.quote[:120]!r} does not stand in the data of {paper.id}; copy a passage as it is"]
    return []


def _ids(known: dict[str, Paper]) -> str:
    if not known:
        return "there are no papers: leave `closest` empty"
    shown = ", ".join(list(known)[:20])
    return f"the ids are {shown}{', …' if len(known) > 20 else ''}"
