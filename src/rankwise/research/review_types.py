"""What a review is made of. Every leaf says where it comes from, and what it rests on.

`measured`: computed from runs; `derived`: computed from configs, files or arithmetic; `declared`: what the hypothesis
or a record says of itself; `model`: what a language model wrote. Only measured and derived leaves decide anything.
"""

from typing import Literal, TypeAlias

from pydantic import Field

from rankwise.research.artefacts import Artefact, Defect, Name, Text, Words

Source: TypeAlias = Literal["measured", "derived", "declared", "model"]
Severity: TypeAlias = Literal["major", "minor"]
Status: TypeAlias = Literal["answered", "open", "not testable"]
Word: TypeAlias = Literal["supported", "refuted", "inconclusive", "not tested", "not testable"]


class Leaf(Artefact):
    """One statement of a review."""

    text: Words
    source: Source
    evidence: tuple[str, ...] = Field(
        default=(), description="run ids, claim ids, paper ids, files or rules it rests on"
    )


class Judged(Artefact):
    """A claim with the verdict of its runs."""

    id: Name
    text: Words
    kind: str
    arm: str | None = None
    reference: str | None = None
    metric: str = ""
    verdict: Word = "not tested"
    estimate: float | None = Field(default=None, description="difference of a metric, ratio of a cost")
    low: float | None = None
    high: float | None = None
    scale: str = Field(default="", description="difference or ratio")
    confidence: float | None = None
    p_adjusted: float | None = None
    tasks: int = 0
    seeds: tuple[int, ...] = Field(default=(), description="paired seeds per task and budget")
    runs: tuple[str, ...] = Field(default=(), description="ids of every run that was used")
    missing: tuple[str, ...] = ()
    post_hoc: bool = False
    settle: Text = ""
    reason: Text = ""
    expected: float | None = Field(default=None, description="what the hypothesis predicted, in the unit of `estimate`")


class Verdicts(Artefact):
    """The verdicts of a project: what its runs say about its claims, and what these runs were."""

    plan: Name
    profile: str | None = None
    model: Words
    tasks: tuple[str, ...]
    budgets: tuple[str, ...]
    seeds: tuple[int, ...]
    claims: tuple[Judged, ...] = ()
    notes: tuple[str, ...] = ()
    folder: str = Field(default="", description="run folder, relative to the project")


class Comment(Artefact):
    """An objection of the referee. It stays open until runs that speak about its claim answer it."""

    id: Name
    severity: Severity
    about: str = Field(default="", description="claim id, or part of the hypothesis or the design")
    objection: Leaf
    wants: Text = Field(default="", description="what evidence would answer it")
    status: Status = "open"


class Response(Artefact):
    """An answer to a comment. Without run ids it answers nothing."""

    comment: Name
    reply: Leaf
    runs: tuple[str, ...] = ()
    revised: bool = Field(default=False, description="whether the text says that something was changed because of it")


class Circle(Artefact):
    """One way in which a result could have been put into its own premises, looked for in data flow and dates."""

    name: Name
    found: Literal["no", "yes", "not known"]
    why: Leaf


class Entry(Artefact):
    """One setting of a method in the ledger."""

    arm: Name
    name: Name
    value: str
    state: Literal["searched", "given", "sourced", "free"] = Field(
        description="searched alike for every arm; given by the hypothesis; a default whose source is documented; "
        "a default without a source"
    )
    note: Text = ""


class Entity(Artefact):
    """Something that a method adds to a model beside plain low-rank factors."""

    arm: Name
    name: Words
    parameters: int = Field(ge=0)
    note: Text = ""


class Ledger(Artefact):
    """What was free to choose, counted."""

    entries: tuple[Entry, ...] = ()
    entities: tuple[Entity, ...] = ()
    note: Leaf | None = None

    def count(self, state: str) -> int:
        """Settings in a state."""
        return sum(entry.state == state for entry in self.entries)


class Near(Artefact):
    """Prior or later work that is close."""

    title: Words
    paper_id: str | None = None
    label: str = Field(default="", description="what the source says about how it stands to the subject")
    overlap: Leaf | None = None


class Review(Artefact):
    """A review in the shape of a machine review, with every leaf's source."""

    subject: Words
    core_claim: Leaf
    carries: Leaf = Field(description="the machinery that carries the claim")
    if_right: tuple[Leaf, ...] = Field(default=(), description="what follows if the core claim is right")
    between_lines: tuple[Leaf, ...] = Field(default=(), description="extensions that are not the authors'")
    premise: Leaf = Field(description="the load-bearing premise, with how it can be tested")
    settle: Leaf = Field(description="what would settle it; the plan is `settle.yaml`")
    settle_plan: str | None = Field(default=None, description="file of the runnable plan")
    summary: Leaf
    significance: Leaf
    prose: tuple[Leaf, ...] = Field(default=(), description="summary, significance and machinery in a model's words")
    claims: tuple[Judged, ...] = ()
    comments: tuple[Comment, ...] = ()
    responses: tuple[Response, ...] = ()
    circularity: tuple[Circle, ...] = ()
    ledger: Ledger = Ledger()
    corrections: tuple[Leaf, ...] = Field(default=(), description="what the reviewed text gets wrong, and what is true")
    cited: tuple[Near, ...] = Field(default=(), description="closest prior work")
    citing: tuple[Near, ...] = Field(default=(), description="closest later work")
    defects: tuple[Defect, ...] = Field(default=(), description="what the checks found")
    notes: tuple[str, ...] = ()

    def open_comments(self) -> tuple[Comment, ...]:
        """Comments without an answer from runs."""
        return tuple(comment for comment in self.comments if comment.status == "open")


class ProposedComment(Artefact):
    """A comment that a language model writes."""

    severity: Severity
    about: str = Field(default="", description="id of the claim that it is about, or empty")
    objection: Words
    wants: Text = Field(default="", description="what evidence would answer it")


class ProposedResponse(Artefact):
    """A response that a language model writes to a comment of the list it was given."""

    comment: Name
    reply: Words
    runs: tuple[str, ...] = Field(
        min_length=1, description="ids of runs in the list that speak about the claim of the comment"
    )


class ReviewProse(Artefact):
    """What a language model may add to a review; everything in it is marked as its writing."""

    summary: Words
    significance: Words
    carries: Words = Field(description="what machinery carries the core claim")
    between_lines: tuple[Words, ...] = Field(default=(), description="extensions that are not the authors'")
    comments: tuple[ProposedComment, ...] = ()
    responses: tuple[ProposedResponse, ...] = ()
