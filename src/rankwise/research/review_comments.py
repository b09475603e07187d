"""The referee's comments, and the answers that runs give.

A comment comes from a check that found something, from a claim that needs evidence, or from the text of a review that
was imported. It is answered only by a decided verdict on its claim, whose runs are in the store; everything else stays
open, whatever anybody writes.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from rankwise.experiments.plan import MAIN
from rankwise.experiments.verdicts import COUNTED
from rankwise.research.artefacts import Defect, Design
from rankwise.research.design_controls import STANDS_IN
from rankwise.research.design_review import CONTROLS
from rankwise.research.review_material import Material
from rankwise.research.review_types import Comment, Judged, Leaf, ProposedComment, ProposedResponse, Response
from rankwise.research.wording import plain

DECIDED = ("supported", "refuted")


def comments(material: Material) -> list[Comment]:
    """Every comment that code makes, most severe first."""
    found = [
        *_imported(material),
        *_from_defects(material.defects),
        *_from_claims(material),
        *_from_profile(material),
        *_from_stand_ins(material.design),
    ]
    return sorted(found, key=lambda comment: comment.severity != "major")


def responses(found: Sequence[Comment], judged: Sequence[Judged]) -> list[Response]:
    """The answers of runs, to comments that have one."""
    by_id = {claim.id: claim for claim in judged}
    made = []
    for comment in found:
        claims = [by_id[name] for name in comment.about.split(", ") if name in by_id]
        decided = [claim for claim in claims if claim.verdict in DECIDED and claim.runs]
        if comment.status == "answered" and decided:
            text = " ".join(said(claim) for claim in decided)
            runs = tuple(dict.fromkeys(run for claim in decided for run in claim.runs))
            evidence = (*(claim.id for claim in decided), *runs)
            made.append(
                Response(comment=comment.id, reply=Leaf(text=text, source="measured", evidence=evidence), runs=runs)
            )
    return made


def said(claim: Judged) -> str:
    """A verdict in a sentence, with estimate, interval and n."""
    if claim.verdict == "not testable":
        return f"{claim.id} is not testable: {claim.reason or claim.settle}."
    if claim.verdict == "not tested":
        return f"{claim.id} is not tested: {claim.settle or 'runs are missing'}."
    unit = "ratio" if claim.scale == "ratio" else "difference"
    numbers = _number(claim.estimate, claim.scale)
    if claim.low is not None and claim.high is not None and claim.metric not in COUNTED:
        share = f"{100 * (claim.confidence or 0.9):g} % interval "
        numbers += f" ({share}{_number(claim.low, claim.scale)} to {_number(claim.high, claim.scale)})"
    seeds = f"{min(claim.seeds)} paired seeds" if claim.seeds else "no seeds"
    late = ", post hoc" if claim.post_hoc else ""
    tail = f" What would settle it: {claim.settle}." if claim.verdict == "inconclusive" and claim.settle else ""
    metric = "main metric" if claim.metric == MAIN else claim.metric
    measure = f"{metric} of {claim.arm} against {claim.reference}"
    return f"{claim.id} is {claim.verdict}{late}: {measure}, {unit} {numbers}, {seeds}, {len(claim.runs)} runs.{tail}"


def _number(value: float | None, scale: str) -> str:
    if value is None:
        return "unbounded"
    return f"{value:.3f}" if scale == "ratio" else f"{value:+.4f}"


def status_of(about: Iterable[Judged]) -> str:
    """Answered if every claim that is meant is decided by runs; not testable if none of them can be."""
    claims = list(about)
    if claims and all(claim.verdict == "not testable" for claim in claims):
        return "not testable"
    return "answered" if claims and all(claim.verdict in DECIDED and claim.runs for claim in claims) else "open"


def _from_defects(defects: Iterable[Defect]) -> Iterator[Comment]:
    """What the checks found, the same thing once: errors are major, warnings minor. Only another text answers them."""
    for number, (one, places) in enumerate(merged(defects), start=1):
        if one.level == "note":
            continue
        where = tuple(place for place in places if place)
        yield Comment(
            id=f"D{number}",
            severity="major" if one.level == "error" else "minor",
            about=where[0] if where else "",
            objection=Leaf(text=_numbered(one), source="derived", evidence=(one.rule, *where)),
            wants=f"a text in which the check {one.rule} finds nothing",
        )


def merged(defects: Iterable[Defect]) -> list[tuple[Defect, tuple[str, ...]]]:
    """Every thing that is wrong once, with all places where it is."""
    found: dict[tuple[str, str], tuple[Defect, tuple[str, ...]]] = {}
    for one in defects:
        first, places = found.get((one.rule, one.message), (one, ()))
        found[one.rule, one.message] = (first, (*places, one.where))
    return list(found.values())


def _numbered(one: Defect) -> str:
    known = f" [{', '.join(map(str, one.items))}]" if one.items else ""
    return f"{one.message}{known}"


def corrections(defects: Iterable[Defect]) -> tuple[Leaf, ...]:
    """What a reviewed text gets wrong, with what is true."""
    return tuple(
        Leaf(text=_numbered(one), source="derived", evidence=(one.rule, *(place for place in places if place)))
        for one, places in merged(defects)
        if one.level != "note"
    )


def _from_claims(material: Material) -> Iterator[Comment]:
    """Every claim is asked for evidence, those of the hypothesis and those that code added."""
    for claim in material.judged or _planned(material.design):
        if claim.verdict == "inconclusive":
            text = f"{len(claim.runs)} runs leave {claim.id} open: {claim.text}"
        elif "added by code" in claim.reason:
            text = f"Nothing in the text tells the gain from what this control would give: {claim.text}"
        else:
            text = f"The text gives no measurement for {claim.id}: {claim.text}"
        yield Comment(
            id=f"M-{claim.id}"[:120],
            severity="major",
            about=claim.id,
            objection=Leaf(text=text, source="derived", evidence=("design.json", claim.id)),
            wants=_wanted(claim),
            status=status_of([claim]),  # type: ignore[arg-type]
        )


def _wanted(claim: Judged) -> str:
    """What would answer the demand for evidence on a claim, after the runs that there are."""
    if claim.verdict == "not testable":
        return claim.reason
    if claim.verdict == "inconclusive" and claim.settle:
        return claim.settle
    return "paired runs at the same number of parameters"


def _planned(design: Design | None) -> tuple[Judged, ...]:
    """The claims of a design that has no runs yet."""
    return tuple(
        Judged(
            id=claim.id,
            text=claim.text,
            kind=claim.kind,
            arm=claim.arm,
            reference=claim.reference,
            metric=claim.metric,
            reason=claim.reason,
            verdict="not testable" if claim.kind == "not-testable" else "not tested",
        )
        for claim in (design.claims if design else ())
    )


def _from_profile(material: Material) -> Iterator[Comment]:
    """Verdicts about another model or other tasks than the text speaks of."""
    for note in material.verdicts.notes if material.verdicts else ():
        if "in place of" in note:
            yield Comment(
                id="P-profile",
                severity="major",
                about="verdicts",
                objection=Leaf(text=note.removeprefix("note: "), source="derived", evidence=("verdicts.json",)),
                wants="the plan at profile `full`, on a machine that has its model and data",
            )


def _from_stand_ins(design: Design | None) -> Iterator[Comment]:
    """Arms that run something else than the text proposes, as far as code can tell."""
    told = [note for note in (design.notes if design else ()) if note.startswith(STANDS_IN)]
    for number, note in enumerate(told, start=1):
        yield Comment(
            id=f"S{number}",
            severity="major",
            about="design",
            objection=Leaf(text=note.removeprefix("stand-in: "), source="derived", evidence=("design.json",)),
            wants="the method itself as a plug-in, or a person's word that it is the same (--map)",
        )


def _imported(material: Material) -> Iterator[Comment]:
    """Comments of an imported review. Each is about the claims of our design that do what it asks for."""
    record = material.record
    if record is None:
        return
    claims = {claim.id: claim for claim in material.judged or _planned(material.design)}
    for severity, texts in (("major", record.major), ("minor", record.minor)):
        for number, text in enumerate(texts, start=1):
            about = asked_for(text, claims.values())
            yield Comment(
                id=f"{severity}-{number}",
                severity=severity,  # type: ignore[arg-type]
                about=", ".join(about),
                objection=Leaf(text=" ".join(text.split()), source="declared", evidence=("imported_review.json",)),
                wants="; ".join(claims[name].text for name in about),
                status=status_of(claims[name] for name in about),  # type: ignore[arg-type]
            )


def asked_for(text: str, claims: Iterable[Judged]) -> list[str]:
    """Claims against the controls that a comment names."""
    words = plain(text)
    wanted = {method for method, (pattern, _) in CONTROLS.items() if re.search(pattern, words, re.IGNORECASE)}
    return [claim.id for claim in claims if claim.metric == "main" and claim.reference in wanted]


def accepted(proposed: Sequence[ProposedComment], claims: Sequence[Judged], taken: Iterable[str] = ()) -> list[Comment]:
    """Comments of a language model, with the status that the verdict on their claim gives them."""
    by_id = {claim.id: claim for claim in claims}
    used = set(taken)
    made = []
    for number, one in enumerate(proposed, start=1):
        name = f"L{number}"
        while name in used:
            name = f"L{name}"
        used.add(name)
        about = [by_id[one.about]] if one.about in by_id else []
        made.append(
            Comment(
                id=name,
                severity=one.severity,
                about=one.about,
                objection=Leaf(text=one.objection, source="model"),
                wants=one.wants,
                status=status_of(about),  # type: ignore[arg-type]
            )
        )
    return made


def response_problems(
    proposed: Sequence[ProposedResponse], known: Sequence[Comment], claims: Sequence[Judged]
) -> list[str]:
    """What is wrong with responses: comments that are not there, runs that are none or speak about something else."""
    comment_of = {comment.id: comment for comment in known}
    runs_of = {claim.id: set(claim.runs) for claim in claims}
    problems = []
    for place, one in enumerate(proposed):
        comment = comment_of.get(one.comment)
        if comment is None:
            problems.append(f"responses.{place}.comment: there is no comment '{one.comment}'")
            continue
        allowed = set().union(*(runs_of.get(name, set()) for name in comment.about.split(", ")))
        foreign = [run for run in one.runs if run not in allowed]
        if foreign:
            about = comment.about or "no claim"
            problems.append(
                f"responses.{place}.runs: no run about {about} has the id {', '.join(foreign[:3])}; leave the response "
                f"out if no run answers {comment.id}"
            )
    return problems
