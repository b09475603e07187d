"""What of a project is designed: its chosen hypothesis, or the review that was imported."""

from collections.abc import Mapping
from dataclasses import dataclass

from rankwise.errors import ConfigError, Finding, UnknownNameError
from rankwise.research.artefacts import Design, Hypothesis, Papers
from rankwise.research.choice import CHOICE, Choice, choose, outdated
from rankwise.research.design_adopt import adopted, record_configs
from rankwise.research.design_draft import draft
from rankwise.research.design_review import draft_of_review
from rankwise.research.imported import ImportedReview, Resource
from rankwise.research.project import Project, Settings, evaluation_file, hypothesis_file
from rankwise.research.records_files import IMPORTED_REVIEW, imported_record
from rankwise.research.rounds import PAPERS_FILE, read_papers


@dataclass(frozen=True)
class Subject:
    """What is to be tested, and the files it was read from."""

    settings: Settings
    hypothesis: Hypothesis | None
    review: ImportedReview | None
    papers: Papers
    configs: Mapping[str, str]
    files: tuple[str, ...]
    resources: tuple[Resource, ...] = ()

    def draft(self, names: Mapping[str, str]) -> Design:
        """The design that code reads out of it.

        Raises:
            UnknownNameError: a method is not registered.
            ConfigError: a run config of the record cannot be read.
        """
        if self.hypothesis is not None:
            found = draft(self.hypothesis, base_model=self.settings.base_model, extra=names)
            return adopted(found, self.configs, self.resources)
        assert self.review is not None
        return draft_of_review(self.review, base_model=self.settings.base_model, extra=names)

    def try_draft(self, names: Mapping[str, str]) -> Design | None:
        """As `draft`, or None where a method is not known: a language model may know what is meant."""
        try:
            return self.draft(names)
        except UnknownNameError:
            return None


def subject_of(project: Project, settings: Settings) -> Subject:
    """What is designed: the hypothesis of the chosen round, else the imported review.

    A project with one hypothesis and no evaluation needs no choice.

    Raises:
        ConfigError: there is neither, or a round that is not evaluated, of several.
    """
    papers = read_papers(project)
    if project.rounds():
        if project.has(CHOICE) and outdated(project):
            choose(project, again=True)
        number = chosen_round(project)
        files = (PAPERS_FILE, CHOICE, hypothesis_file(number))
        hypothesis = project.read(hypothesis_file(number), Hypothesis)
        record = imported_record(project)
        listed = record.design.resources if record is not None and record.design is not None else ()
        return Subject(settings, hypothesis, None, papers, record_configs(project), files, listed)
    review = imported_review(project)
    if review is None:
        message = (
            "there is nothing to design: `rankwise research hypothesize` or `rankwise research import` comes first"
        )
        raise ConfigError(str(project.folder), [Finding("", message)])
    return Subject(settings, None, review, papers, {}, (PAPERS_FILE, IMPORTED_REVIEW))


def chosen_round(project: Project) -> int:
    """The round of choice.json; made here where every round is evaluated and it is not there.

    Raises:
        ConfigError: a round is not evaluated, and there are several.
    """
    if project.has(CHOICE):
        return project.read(CHOICE, Choice).round
    if project.rounds() == 1 and not project.has(evaluation_file(0)):
        return 0
    return choose(project).round


def imported_review(project: Project) -> ImportedReview | None:
    """The review that was imported into a project, or None.

    Raises:
        ConfigError: the file is wrong.
    """
    if not project.has(IMPORTED_REVIEW):
        return None
    return project.read(IMPORTED_REVIEW, ImportedReview)
