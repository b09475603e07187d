"""The leaves of a review that say what the subject claims, what carries it and what it rests on. Without a model."""

import re
import statistics
from collections import Counter
from collections.abc import Sequence

from rankwise.research.artefacts import Claim, Design, Paper
from rankwise.research.design_controls import ALLOCATORS
from rankwise.research.design_plan import CONDITIONAL
from rankwise.research.review_comments import merged, said
from rankwise.research.review_files import PREMISE, SETTLE
from rankwise.research.review_material import Material
from rankwise.research.review_types import Leaf, Near, Word
from rankwise.research.wording import short

WORDS: tuple[Word, ...] = ("supported", "refuted", "inconclusive", "not tested", "not testable")


def core_claim(material: Material) -> Leaf:
    """What it says, in its own words: the first claim of the hypothesis, or the section of a review."""
    if material.record is not None:
        return _told(material, "core_claim", material.record.title)
    assert material.hypothesis is not None
    claim = _main_claim(material.design.claims if material.design else material.hypothesis.claims)
    text = claim.text if claim is not None else short(material.hypothesis.expected_result, 600)
    return Leaf(text=f"{material.subject}: {text}", source="declared", evidence=(claim.id,) if claim else ())


def carries(material: Material) -> Leaf:
    """The machinery."""
    if material.record is not None:
        return _told(material, "what_carries_the_argument", material.record.title)
    assert material.hypothesis is not None
    return Leaf(text=short(_line(material.hypothesis.method), 1200), source="declared")


def _told(material: Material, section: str, otherwise: str) -> Leaf:
    """A section of an imported review, with what the checks found to be otherwise."""
    assert material.record is not None
    text = _line(material.record.sections.get(section, "")) or otherwise
    wrong = [one for one in material.defects if one.where == f"review.{section}"]
    if not wrong:
        return Leaf(text=text, source="declared", evidence=("imported_review.json",))
    found = " ".join(f"{one.message}." for one in wrong)
    rules = tuple(dict.fromkeys(one.rule for one in wrong))
    return Leaf(
        text=f"It says: {text} Corrected by code: {found}", source="derived", evidence=("imported_review.json", *rules)
    )


def if_right(material: Material) -> tuple[Leaf, ...]:
    """What follows: the other claims, with their verdicts where there are any."""
    if material.record is not None:
        return _items(material.record.sections.get("if_this_is_right", ""))
    judged = {claim.id: claim for claim in material.judged}
    found = []
    for claim in material.design.claims if material.design else ():
        verdict = judged.get(claim.id)
        if verdict is not None and verdict.runs:
            text = f"{claim.id}: {claim.text.rstrip('.')}. So far: {verdict.verdict}."
            found.append(Leaf(text=text, source="measured", evidence=(claim.id, *verdict.runs)))
        else:
            found.append(Leaf(text=f"{claim.id}: {claim.text}", source="declared", evidence=(claim.id,)))
    return tuple(found)


def between_lines(material: Material) -> tuple[Leaf, ...]:
    """Extensions that a review brought along; they are its editor's, not the authors'."""
    return _items(material.record.sections.get("reading_between_lines", "")) if material.record is not None else ()


def premise(material: Material) -> Leaf:
    """What everything rests on, how it can be tested, and what was measured of it."""
    method = _proposed_method(material.design)
    measured = material.costs("premise")
    if measured:
        text = (
            f"{_premise_of(method)} Rank correlation of score and rise of the loss, mean over {len(measured)} runs: "
            f"{statistics.fmean(measured):+.2f}."
        )
        return Leaf(
            text=text, source="measured", evidence=tuple(n for n, r in material.runs.items() if "premise" in r.costs)
        )
    how = f" `{PREMISE}` tests it." if method in ALLOCATORS else ""
    if material.record is not None and material.record.sections.get("load_bearing_premise"):
        told = _told(material, "load_bearing_premise", "")
        return told.model_copy(update={"text": f"{told.text} Not measured so far.{how}"})
    return Leaf(text=f"{_premise_of(method)} Not measured so far.{how}", source="derived")


def _premise_of(method: str) -> str:
    if method in ALLOCATORS:
        return (
            "The score by which ranks are given tells how much a module matters for the task, so that ranks by it beat "
            "uniform and random ranks at the same number of parameters."
        )
    if method in CONDITIONAL:
        return "What a gate sees at its module tells whether the input needs the adapter there."
    return "The change itself, not the number of trained parameters or the learning rate, makes the difference."


def settle(material: Material, data: dict[str, object] | None) -> Leaf:
    """What would settle it, in words; the plan says it exactly."""
    if data is None:
        return Leaf(text="A design, which this project does not have yet.", source="derived")
    claims = [claim for claim in data["claims"] if claim["kind"] != "not-testable"]  # type: ignore[attr-defined]
    listed = "; ".join(f"{claim['id']}: {claim['text'].rstrip('.')}" for claim in claims)
    tasks = ", ".join(str(task) for task in data["tasks"])  # type: ignore[attr-defined]
    text = (
        f"`{SETTLE}`: {len(claims)} claims, {data['seeds']} paired seeds for every arm on {tasks}, {data['model']}, "
        f"learning rates tuned alike, parameters equal. {listed}. What its verdicts call refuted has failed."
    )
    return Leaf(text=text, source="derived", evidence=(SETTLE,))


def summary(material: Material) -> Leaf:
    """What was found, counted."""
    verdicts = material.verdicts
    if verdicts is None:
        count = len(material.design.claims) if material.design else 0
        errors = sum(defect.level == "error" for defect, _ in merged(material.defects))
        text = f"Nothing was run. {count} claims wait for runs; the checks found {errors} errors in the text."
        return Leaf(text=text, source="derived")
    counts = Counter(claim.verdict for claim in verdicts.claims)
    parts = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
    runs = {run for claim in verdicts.claims for run in claim.runs}
    where = f"{verdicts.model} on {', '.join(verdicts.tasks)} at {', '.join(verdicts.budgets)}"
    text = (
        f"Of {len(verdicts.claims)} claims: {parts}. {len(runs)} runs of {where}, {len(verdicts.seeds)} paired seeds "
        f"(profile {verdicts.profile})."
    )
    return Leaf(text=text, source="measured", evidence=("verdicts.json", *sorted(runs)))


def significance(material: Material) -> Leaf:
    """How much would matter: what is predicted against what the runs can see."""
    decided = [
        claim for claim in material.judged if claim.verdict in ("supported", "refuted") and claim.metric == "main"
    ]
    if decided:
        text = " ".join(said(claim) for claim in decided)
        runs = tuple(run for claim in decided for run in claim.runs)
        return Leaf(text=f"What is decided about quality: {text}", source="measured", evidence=runs)
    told = material.record.sections.get("significance", "") if material.record else ""
    if told:
        return Leaf(text=_line(told), source="declared", evidence=("imported_review.json",))
    return Leaf(text="Nothing about quality is decided by runs so far.", source="derived")


def cited(material: Material) -> tuple[Near, ...]:
    """Closest prior work: what a model named (with a quote that stands in the entry), else the nearest by words."""
    papers = {paper.id: paper for paper in material.papers.papers}
    opinion = material.evaluation.opinion if material.evaluation else None
    if opinion is not None and opinion.closest:
        return tuple(
            Near(
                title=papers[one.paper_id].title if one.paper_id in papers else one.paper_id,
                paper_id=one.paper_id,
                overlap=Leaf(text=f"{one.overlap} (quoted: {one.quote})", source="model", evidence=(one.paper_id,)),
            )
            for one in opinion.closest
        )
    if material.hypothesis is None:
        return tuple(Near(title=_line(title)[:500]) for title in material.record.references) if material.record else ()
    return _nearest(material.hypothesis.method, tuple(papers.values()))


def _nearest(text: str, papers: Sequence[Paper], most: int = 3) -> tuple[Near, ...]:
    """Papers whose method shares most of its rare words with a text (Jaccard over words of five letters and more)."""
    own = _vocabulary(text)
    scored = []
    for paper in papers:
        theirs = _vocabulary(" ".join([paper.title, *(one.text for one in paper.methodology)]))
        if own | theirs:
            scored.append((len(own & theirs) / len(own | theirs), paper, sorted(own & theirs)))
    scored.sort(key=lambda item: (-item[0], item[1].id))
    return tuple(
        Near(
            title=paper.title,
            paper_id=paper.id,
            overlap=Leaf(text=f"shares {share:.0%} of the words: {', '.join(words[:12])}", source="derived"),
        )
        for share, paper, words in scored[:most]
        if share > 0
    )


def _vocabulary(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{5,}", text.lower()))


def citing(material: Material) -> tuple[Near, ...]:
    """Later work that a review lists, with its label."""
    return (
        tuple(Near(title=_line(one)[:500], label="as listed") for one in material.record.cited_by)
        if material.record
        else ()
    )


def _main_claim(claims: Sequence[Claim]) -> Claim | None:
    """The first claim of a gain in quality, else the first that can be tested."""
    able = [claim for claim in claims if claim.kind != "not-testable"]
    return next(
        (claim for claim in able if claim.kind == "superiority" and claim.quantity == "accuracy"), None
    ) or next(iter(able), None)


def _proposed_method(design: Design | None) -> str:
    return next((str(a.method.get("name")) for a in (design.arms if design else ()) if a.role == "proposed"), "")


def _items(text: str) -> tuple[Leaf, ...]:
    """Paragraphs of a section of an imported review."""
    parts = [_line(part).lstrip("•-* ") for part in text.split("\n") if part.strip("•-* \t\r")]
    return tuple(Leaf(text=part, source="declared", evidence=("imported_review.json",)) for part in parts)


def _line(text: str) -> str:
    return " ".join(text.split())
