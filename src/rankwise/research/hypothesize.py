"""The first proposal: topic and papers in, a hypothesis with its claims as data out."""

from dataclasses import replace

from rankwise.errors import OutputError
from rankwise.research.artefacts import Hypothesis, Papers, Style
from rankwise.research.asking import Answer, Asker, Prompt
from rankwise.research.means import told_means
from rankwise.research.project import Project, Settings, hypothesis_file
from rankwise.research.prompts import quote, render, source
from rankwise.research.rounds import PAPERS_FILE, PROJECT_FILE, read_papers, read_settings, told_papers
from rankwise.research.wellformed import MendOnce, hypothesis_problems


def hypothesize(project: Project, asker: Asker, *, style: Style | None = None) -> Hypothesis:
    """Ask for the first hypothesis of a project and write it to hypothesis/000.json.

    `style` is the project's own if it is not given.

    Raises:
        ConfigError: no project, or a file of it is wrong.
        OutputError: there is a hypothesis already.
        ModelAnswerError, LimitError: as `Asker.ask`.
    """
    settings = read_settings(project)
    name = hypothesis_file(0)
    if project.has(name):
        raise OutputError(f"{project.path(name)} exists; remove it to propose anew, or refine it")
    papers = read_papers(project)
    inputs = project.inputs(PROJECT_FILE, PAPERS_FILE)
    answer = propose(settings, papers, asker, style=style)
    project.write(name, answer.content, answer.made.model_copy(update={"inputs": inputs}))
    return answer.content


def propose(settings: Settings, papers: Papers, asker: Asker, *, style: Style | None = None) -> Answer[Hypothesis]:
    """Ask for a proposal on a project's topic; `style` is the project's own if it is not given.

    Raises:
        ModelAnswerError, LimitError: as `Asker.ask`.
    """
    problems = MendOnce(hypothesis_problems, (), papers.papers)
    return asker.ask(prompt(settings, papers, style), Hypothesis, problems)


def prompt(settings: Settings, papers: Papers, style: Style | None = None) -> Prompt:
    """What is asked."""

    def filled(known_by: bool) -> Prompt:
        return render(
            f"hypothesize-{style or settings.style}",
            topic=quote("topic", settings.topic),
            papers=told_papers(papers),
            rules=source("rules").strip(),
            means=told_means(settings, known_by=known_by),
        )

    return replace(filled(False), known_by=filled(True).text)
