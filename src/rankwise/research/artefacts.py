"""What the stages of research hand to each other: papers, hypotheses, evaluations, designs. Plain, typed, frozen data.

Every class here is a file's content or a part of one (see `project`), and what a language model is asked for is one of
these classes too, so its answers are validated by the same definitions. Nothing here imports torch.
"""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

MAX_TEXT = 100_000
"""Characters in one field; more is no summary but a document."""
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Words = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,119}$")]

Style: TypeAlias = Literal["minimal", "free"]
"""`minimal`: the smallest change of a base method; `free`: any proposal."""
ClaimKind: TypeAlias = Literal["superiority", "non-inferiority", "equivalence", "bound", "not-testable"]
Quantity: TypeAlias = Literal[
    "accuracy", "train_seconds", "inference_flops", "latency_ms", "parameters", "adapter_memory", "total_rank",
    "active_share", "active_modules", "other",
]  # fmt: skip
Level: TypeAlias = Literal["error", "warning", "note"]


class Artefact(BaseModel):
    """Frozen, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Statement(Artefact):
    """One thing that a summary says, and where the paper says it."""

    text: Words = Field(description="what the paper says, in a sentence or a paragraph")
    passage: Text | None = Field(default=None, description="words of the paper that say so, verbatim; none: not given")


class Paper(Artefact):
    """A prior paper as the other stages use it."""

    id: Name = Field(description="short and unique in the project, such as zhang-2023-adalora or p-3f9a1c")
    title: Words
    authors: tuple[str, ...] = ()
    year: int | None = Field(default=None, ge=1800, le=2200)
    doi: str | None = None
    arxiv: str | None = None
    source: Text = Field(default="", description="file or address that it was read from")
    contributions: tuple[Statement, ...] = ()
    methodology: tuple[Statement, ...] = ()
    setup: tuple[Statement, ...] = Field(default=(), description="experimental setup")
    limitations: tuple[Statement, ...] = ()
    future: tuple[Statement, ...] = Field(default=(), description="future research directions")
    code: Text | None = Field(default=None, description="experiment code, kept as text and never executed")
    result: Text | None = Field(default=None, description="experiment result")


class Papers(Artefact):
    """All papers of a project, and what was merged into them."""

    papers: tuple[Paper, ...] = ()
    merged: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="paper id to titles of the duplicates that were merged into it"
    )


class Claim(Artefact):
    """A sentence that runs are to decide on. Names of arms are those of the hypothesis; the design maps them."""

    id: Name = Field(description="short name, such as C1")
    text: Words = Field(description="the claim in words, one comparison only")
    kind: ClaimKind
    arm: str | None = Field(default=None, description="method that it is about, by name")
    reference: str | None = Field(default=None, description="method that it is compared with, by name")
    quantity: Quantity = Field(default="accuracy", description="what is compared")
    metric: str = Field(default="main", description="`main` (decides on each task), a metric or a cost")
    margin: float = Field(default=0.0, ge=0, description="0.005 is half a point of accuracy; of costs, relative")
    expected: float | None = Field(
        default=None, description="predicted difference (accuracy: 0.006 is 0.6 points) or, of costs, relative change"
    )
    at_most: float | None = None
    at_least: float | None = None
    tasks: tuple[str, ...] = Field(default=(), description="tasks that it is about; none: all")
    reason: Text = Field(default="", description="why it cannot be tested, or what was changed to make it testable")


class Hypothesis(Artefact):
    """A proposal: what is open, what to do about it, how to test it, what should come out."""

    title: Text = Field(default="", description="name of the method, with its short form")
    open_problems: Words
    method: Words
    experimental_setup: Words
    primary_metric: Text = ""
    experimental_code: Text = Field(default="", description="sketch, kept as text and never executed")
    expected_result: Words
    expected_conclusion: Text = ""
    claims: tuple[Claim, ...] = Field(default=(), description="every testable sentence of the expected result, as data")
    changes: Text = Field(default="", description="what changed against the hypothesis it refines, and why")


class Score(Artefact):
    """A mark with its reason."""

    score: int = Field(ge=1, le=10)
    reason: Words


class Closest(Artefact):
    """Prior work that comes close."""

    paper_id: Name
    quote: Words = Field(description="words of the paper's entry that show the overlap, verbatim")
    overlap: Words = Field(description="what is the same, and what is not")


class Defect(Artefact):
    """Something that code found wrong, without a model's opinion."""

    rule: Name = Field(description="name of the check, such as budget_arith")
    items: tuple[int, ...] = Field(default=(), description="numbers in the list of known defects (docs/defects.md)")
    where: str = Field(default="", description="part of the artefact: method, claims.C1, configs.<run>.training.…")
    message: Words = Field(description="what is wrong, the value, what is allowed or true")
    level: Level = "error"


class Opinion(Artefact):
    """What a model thinks of a hypothesis."""

    novelty: Score
    significance: Score
    feasibility: Score
    consistency: Score = Field(description="internal consistency, and with earlier rounds")
    closest: tuple[Closest, ...] = Field(default=(), description="closest prior papers, closest first")


class Evaluation(Artefact):
    """Checks first, opinion second. `total` decides which round is taken."""

    defects: tuple[Defect, ...] = ()
    opinion: Opinion | None = Field(default=None, description="none: no model was asked")
    remarks: Text = Field(default="", description="what the evaluator of an imported record wrote, without scores")


class DesignArm(Artefact):
    """One side of the comparison, mapped to a registered method."""

    name: Name
    role: Literal["proposed", "comparative", "control"]
    method: dict[str, Any] = Field(description="the method's section of a run config: {name: glora, …}")
    said: str = Field(default="", description="how the hypothesis calls it")
    why: Text = Field(default="", description="why it is there, if code added it")


class Dataset(Artefact):
    """A dataset by our name, and what tells that it is the one that is meant."""

    task: Words = Field(description="name of a task: glue/mnli, docstrings, …")
    said: str = Field(default="", description="how the hypothesis calls it, or the hub's id")
    rows: int | None = Field(default=None, ge=0, description="training rows that the source states")
    columns: tuple[str, ...] = ()


class Search(Artefact):
    """One searched setting: a full path in the run config and its range."""

    path: Words
    kind: Literal["float", "int", "categorical"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[bool | int | float | str, ...] = ()


class Design(Artefact):
    """How the hypothesis is tested."""

    name: Name = Field(description="short name of the plan")
    question: Words
    model: Words = Field(description="base model: minilm, a hub id or a folder")
    arms: tuple[DesignArm, ...] = Field(min_length=1)
    datasets: tuple[Dataset, ...] = Field(min_length=1)
    metrics: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ("r=4",)
    seeds: int = Field(default=3, ge=1, le=1000)
    training: dict[str, Any] = Field(default_factory=dict, description="as in a run config")
    search: tuple[Search, ...] = ()
    claims: tuple[Claim, ...] = Field(default=(), description="with the names of arms above")
    notes: tuple[str, ...] = Field(default=(), description="what code changed or added, and why")
