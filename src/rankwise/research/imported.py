"""What a record of another pipeline holds, in our words. `records.read_record` makes it."""

from dataclasses import dataclass, field

from rankwise.research.artefacts import Artefact, Closest, Hypothesis, Paper, Score


@dataclass(frozen=True)
class Round:
    """A hypothesis of a record's history with what its evaluator wrote about it."""

    hypothesis: Hypothesis
    novelty: Score | None = None
    significance: Score | None = None
    novelty_text: str = ""
    significance_text: str = ""
    closest: tuple[Closest, ...] = ()


@dataclass(frozen=True)
class Resource:
    """A model or a dataset of the hub, as a record quotes it. `rows` by split and `columns` are those of its card."""

    kind: str
    id: str
    rows: dict[str, int] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    card: str = ""


@dataclass(frozen=True)
class RecordedRun:
    """A run that a record lists, in its words."""

    id: str
    method: str = ""
    model: str = ""
    dataset: str = ""


@dataclass(frozen=True)
class RecordedDesign:
    """The experimental design of a record (001), in its words; `search` is setting -> range as it is written."""

    summary: str = ""
    proposed_method: str = ""
    comparative_methods: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    search: dict[str, str] = field(default_factory=dict)
    resources: tuple[Resource, ...] = ()
    runs: tuple[RecordedRun, ...] = ()
    environment: str = ""


class ImportedReview(Artefact):
    """A machine review as it was published, as text by section. It is judged, never believed."""

    title: str
    arxiv: str | None
    model: str
    sections: dict[str, str]
    major: tuple[str, ...] = ()
    minor: tuple[str, ...] = ()
    responses: tuple[str, ...] = ()
    cited_by: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    authors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Imported:
    """A whole record. Parts that a record does not have are empty.

    `kind` is `hypothesis` (000), `configs` (001), `refinement` (002) or `review` (004).
    """

    kind: str
    source: str
    model: str = ""
    topic: str = ""
    instructions: str = ""
    papers: tuple[Paper, ...] = ()
    rounds: tuple[Round, ...] = ()
    design_text: str = ""
    run_names: tuple[str, ...] = ()
    configs: dict[str, str] = field(default_factory=dict)
    review: ImportedReview | None = None
    answer_form: str = ""
    """How the answer was written: `json`, `python` (a repr), `fenced`."""
    design: RecordedDesign | None = None
    """The parts of `design_text`."""
