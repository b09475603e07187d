"""Everything that a review is computed from, read once: files of the project, and the records of its runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rankwise.experiments.records import RunRecord
from rankwise.research.artefacts import Defect, Design, Evaluation, Hypothesis, Papers
from rankwise.research.design import DESIGN, PLAN
from rankwise.research.design_subject import chosen_round, imported_review
from rankwise.research.imported import ImportedReview
from rankwise.research.project import Project, Settings, evaluation_file, hypothesis_file
from rankwise.research.records_files import IMPORTED_REVIEW, imported_record
from rankwise.research.review_types import Judged, Verdicts
from rankwise.research.rounds import PAPERS_FILE, read_papers, read_settings
from rankwise.research.run import RUN, VERDICTS


@dataclass(frozen=True)
class Material:
    """What there is to review. Parts that a project does not have are None or empty."""

    settings: Settings
    papers: Papers
    hypothesis: Hypothesis | None = None
    history: tuple[Hypothesis, ...] = ()
    evaluation: Evaluation | None = None
    record: ImportedReview | None = None
    design: Design | None = None
    verdicts: Verdicts | None = None
    runs: Mapping[str, RunRecord] = field(default_factory=dict)
    frozen_late: tuple[str, ...] = ()
    defects: tuple[Defect, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def judged(self) -> tuple[Judged, ...]:
        """Claims with their verdicts."""
        return self.verdicts.claims if self.verdicts else ()

    @property
    def subject(self) -> str:
        """What is reviewed, in a line."""
        if self.hypothesis is not None:
            return self.hypothesis.title.strip() or " ".join(self.hypothesis.method.split())[:120]
        return self.record.title if self.record is not None else self.settings.topic

    def costs(self, name: str) -> list[float]:
        """A counted cost of every completed run that has it."""
        return [run.costs[name] for run in self.runs.values() if name in run.costs]


def gather(project: Project) -> Material:
    """Read a project.

    Raises:
        ConfigError: no project, nothing to review, or a file is wrong.
        StoreError: the store of its runs cannot be read.
    """
    from rankwise.errors import ConfigError, Finding

    settings, papers = read_settings(project), read_papers(project)
    verdicts = project.read(VERDICTS, Verdicts) if project.has(VERDICTS) else None
    design = project.read(DESIGN, Design) if project.has(DESIGN) else None
    runs, late = _runs(project, verdicts)
    common = [DESIGN, PLAN, RUN, VERDICTS]
    if project.rounds():
        number = chosen_round(project)
        hypothesis = project.read(hypothesis_file(number), Hypothesis)
        history = tuple(project.read(hypothesis_file(past), Hypothesis) for past in range(number))
        name = evaluation_file(number)
        evaluation = project.read(name, Evaluation) if project.has(name) else None
        return Material(
            settings,
            papers,
            hypothesis=hypothesis,
            history=history,
            evaluation=evaluation,
            design=design,
            verdicts=verdicts,
            runs=runs,
            frozen_late=late,
            defects=_defects(project, number, hypothesis, history, design, papers),
            files=(PAPERS_FILE, hypothesis_file(number), name, *common),
        )
    record = imported_review(project)
    if record is None:
        raise ConfigError(str(project.folder), [Finding("", "there is nothing to review: no hypothesis, no review")])
    return Material(
        settings,
        papers,
        record=record,
        design=design,
        verdicts=verdicts,
        runs=runs,
        frozen_late=late,
        defects=_record_defects(record, papers),
        files=(PAPERS_FILE, IMPORTED_REVIEW, *common),
    )


def _runs(project: Project, verdicts: Verdicts | None) -> tuple[dict[str, RunRecord], tuple[str, ...]]:
    """Completed runs of the profile that was judged, and claims that were made after results."""
    from rankwise.experiments.compare import STORE
    from rankwise.experiments.store import Store

    if verdicts is None or not verdicts.folder or not project.has(f"{verdicts.folder}/{STORE}"):
        return {}, ()
    with Store(project.path(f"{verdicts.folder}/{STORE}")) as store:
        found = {name: store.get(name) for name in store.completed()}
    late = tuple(claim.id for claim in verdicts.claims if claim.post_hoc)
    return {name: run for name, run in found.items() if run is not None}, late


def _defects(
    project: Project,
    number: int,
    hypothesis: Hypothesis,
    history: tuple[Hypothesis, ...],
    design: Design | None,
    papers: Papers,
) -> tuple[Defect, ...]:
    """What the checks find in the round that is reviewed, in the design, and in the record that it came in."""
    from rankwise.research.checks import check_design, check_hypothesis, check_record

    record = imported_record(project)
    found: tuple[Defect, ...]
    if record is not None and number < len(record.rounds) and record.rounds[number].hypothesis == hypothesis:
        own = f"hypothesis.{number:03d}" if len(record.rounds) > 1 else "hypothesis"
        every = check_record(record)
        found = tuple(one for one in every if one.where.startswith(own) or not one.where.startswith("hypothesis"))
    else:
        found = check_hypothesis(hypothesis, history=history, papers=papers.papers)
    if design is not None:
        found = (*found, *check_design(design, hypothesis, papers=papers.papers))
    return tuple(dict.fromkeys(found))


def _record_defects(record: ImportedReview, papers: Papers) -> tuple[Defect, ...]:
    from rankwise.research.checks import check_review

    return check_review(record, papers.papers)
