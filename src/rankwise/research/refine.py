"""The next round: everything so far in, a better hypothesis out; and when to stop."""

from dataclasses import replace

from rankwise.errors import ConfigError, Finding
from rankwise.research.artefacts import Evaluation, Hypothesis, Papers
from rankwise.research.asking import Asker, Prompt
from rankwise.research.choice import standings
from rankwise.research.evaluate import checked
from rankwise.research.means import told_means
from rankwise.research.project import Project, Settings, evaluation_file, hypothesis_file
from rankwise.research.prompts import quote, render, source
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
    told_evaluation,
    told_history,
    told_papers,
)
from rankwise.research.wellformed import MendOnce, refinement_problems

PATIENCE = 2
"""Rounds without anything better, after which a hypothesis without errors is refined no further."""


def refine(project: Project, asker: Asker) -> Hypothesis:
    """Ask for the next round and write hypothesis/NNN.json. It refines the last round, and sees all of them.

    Rounds that are not evaluated are checked by code here; their evaluations are not written.

    Raises:
        ConfigError: no project, no hypothesis to refine, or a file is wrong.
        ModelAnswerError, LimitError: as `Asker.ask`.
    """
    settings = read_settings(project)
    papers = read_papers(project)
    rounds = _judged(project, _some(project, read_rounds(project)), papers)
    number = len(rounds)
    names = [name(past) for past in range(number) for name in (hypothesis_file, evaluation_file)]
    inputs = project.inputs(PROJECT_FILE, PAPERS_FILE, RECORD, *names)
    history = [past.hypothesis for past in rounds]
    problems = MendOnce(lambda new: refinement_problems(new, history), history, papers.papers)
    answer = asker.ask(prompt(settings, rounds, papers), Hypothesis, problems)
    project.write(hypothesis_file(number), answer.content, answer.made.model_copy(update={"inputs": inputs}))
    return answer.content


def prompt(settings: Settings, rounds: tuple[Round, ...], papers: Papers) -> Prompt:
    """What is asked."""
    current = rounds[-1]

    def filled(known_by: bool) -> Prompt:
        return render(
            "refine",
            round=str(len(rounds)),
            topic=quote("topic", settings.topic),
            means=told_means(settings, known_by=known_by),
            current=told(f"hypothesis of round {current.number}", current.hypothesis),
            evaluation=told_evaluation(current.number, current.evaluation, known_by=known_by),
            history=told_history(rounds[:-1], known_by=known_by),
            papers=told_papers(papers),
            rules=source("rules").strip(),
        )

    return replace(filled(False), known_by=filled(True).text)


def stop(project: Project) -> str | None:
    """Why there is no further round; none: there is one.

    The rounds that the project was given are used up (refinements of an imported record do not count), or the best
    hypothesis has no errors and the two rounds after it brought nothing better (fewer errors, or a higher sum of
    scores). Only evaluated rounds can end it early.

    Raises:
        ConfigError: no project, no hypothesis, or a file is wrong.
    """
    settings = read_settings(project)
    rounds = _some(project, read_rounds(project))
    own = [item for item in rounds[1:] if project.made(hypothesis_file(item.number)).by != "import"]
    return stops(settings, rounds, len(own))


def stops(settings: Settings, rounds: tuple[Round, ...], done: int) -> str | None:
    """As `stop`, of what was read; `done` refinements were made in this project."""
    if done >= settings.rounds:
        return f"all {settings.rounds} refinement(s) are made"
    ordered = standings(rounds)
    if not ordered or len(ordered) < len(rounds):
        return None
    best = ordered[0]
    since = rounds[-1].number - best.round
    if best.errors == 0 and since >= PATIENCE:
        return f"round {best.round} has no errors, and the {since} rounds after it are not better"
    return None


def _judged(project: Project, rounds: tuple[Round, ...], papers: Papers) -> tuple[Round, ...]:
    """The rounds, those without an evaluation with what code finds and what their record says."""
    return tuple(item if item.evaluation else _checked(project, item, rounds[: item.number], papers) for item in rounds)


def _checked(project: Project, item: Round, before: tuple[Round, ...], papers: Papers) -> Round:
    defects = checked(item.hypothesis, before, papers)
    found = Evaluation(defects=defects, remarks=read_remarks(project, item.number))
    return Round(item.number, item.hypothesis, found)


def _some(project: Project, rounds: tuple[Round, ...]) -> tuple[Round, ...]:
    if not rounds:
        message = "there is no hypothesis to refine; `rankwise research hypothesize` makes the first one"
        raise ConfigError(str(project.folder), [Finding("", message)])
    return rounds
