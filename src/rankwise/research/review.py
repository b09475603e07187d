"""The review of a project: computed from its files and runs, with prose of a language model only where one is asked.

Everything that decides is computed (`review_text`, `review_comments`, `review_circles`, `review_ledger`). A model may
add sentences and comments, marked as its own; a response of it that cites no run about its comment is sent back, and
its comment stays open. What would settle it is written as plans that can be run.
"""

from dataclasses import replace
from typing import Any

from rankwise import __version__
from rankwise.errors import ConfigError, Finding
from rankwise.experiments.plan_runs import Plan
from rankwise.research.asking import Asker, Prompt
from rankwise.research.design_plan import plan_at
from rankwise.research.project import Made, Project
from rankwise.research.prompts import quote, render
from rankwise.research.review_circles import circles
from rankwise.research.review_comments import accepted, comments, corrections, response_problems, responses, said
from rankwise.research.review_files import PREMISE, REVIEW, SETTLE
from rankwise.research.review_ledger import ledger
from rankwise.research.review_material import Material, gather
from rankwise.research.review_settle import premise_data, settle_data, settle_text
from rankwise.research.review_text import (
    between_lines,
    carries,
    cited,
    citing,
    core_claim,
    if_right,
    premise,
    settle,
    significance,
    summary,
)
from rankwise.research.review_types import Leaf, Ledger, Response, Review, ReviewProse
from rankwise.research.rounds import told


def review(project: Project, asker: Asker | None = None, *, note: str = "") -> Review:
    """Review a project as far as it is, and write review.json, settle.yaml and (for allocations) settle-premise.yaml.

    Made again, it replaces them: they follow from the other files.

    Args:
        project: with a hypothesis or an imported review.
        asker: adds prose; None: the review is what code computes.
        note: what readers must know of how it was made.

    Raises:
        ConfigError: no project, or nothing to review.
        ModelAnswerError, LimitError: as `Asker.ask`.
    """
    material = gather(project)
    plans = _plans(material)
    found = compute(project, material, plans.get(SETTLE))
    if note := note or (_lost(project) if asker is None else ""):
        found = found.model_copy(update={"notes": (*found.notes, note)})
    made = Made(by="code", version=__version__)
    if asker is not None:
        answer = asker.ask(prompt(material, found), ReviewProse, lambda prose: prose_problems(prose, found))
        found, made = with_prose(found, answer.content), answer.made
    for name, data in plans.items():
        project.write_text(name, settle_text(data, name), again=True)
    inputs = project.inputs(*material.files)
    project.write(REVIEW, found, made.model_copy(update={"inputs": inputs}), again=True)
    return found


def _lost(project: Project) -> str:
    """What readers must know where a review with a model's prose is replaced by one without."""
    try:
        before = project.made(REVIEW) if project.has(REVIEW) else Made(by="code")
    except ConfigError:
        return ""  # not a review at all
    if before.by == "code":
        return ""
    return f"without the prose of the review that was here (by {before.model or before.by}); it takes a model"


def compute(project: Project, material: Material, settling: dict[str, Any] | None) -> Review:
    """The review that needs no language model."""
    made = comments(material)
    design = material.design
    return Review(
        subject=material.subject,
        core_claim=core_claim(material),
        carries=carries(material),
        if_right=if_right(material),
        between_lines=between_lines(material),
        premise=premise(material),
        settle=settle(material, settling),
        settle_plan=SETTLE if settling is not None else None,
        summary=summary(material),
        significance=significance(material),
        claims=material.judged,
        comments=tuple(made),
        responses=(*_told_responses(material), *responses(made, material.judged)),
        circularity=circles(material, _plan_that_ran(project, material)),
        ledger=ledger(design, material.settings.base_model) if design is not None else Ledger(),
        corrections=corrections(material.defects) if material.record is not None else (),
        cited=cited(material),
        citing=citing(material),
        defects=material.defects,
        notes=design.notes if design is not None else (),
    )


def _plans(material: Material) -> dict[str, dict[str, Any]]:
    """The plans that would settle it, by file; each is one that the plan checks accept.

    Raises:
        ConfigError: one is refused, which is a mistake in how it was made.
    """
    from rankwise.experiments.plan_check import refuse

    design = material.design
    if design is None:
        return {}
    found: dict[str, dict[str, Any]] = {SETTLE: settle_data(design, material)}
    if (data := premise_data(design, material)) is not None:
        found[PREMISE] = data
    for name, data in found.items():
        refuse(plan_at(data, None, name))
    return found


def _plan_that_ran(project: Project, material: Material) -> Plan | None:
    from rankwise.experiments.frozen import FROZEN, read_frozen

    if material.verdicts is None or not project.has(f"{material.verdicts.folder}/{FROZEN}"):
        return None
    return read_frozen(project.path(material.verdicts.folder)).plan


def _told_responses(material: Material) -> list[Response]:
    """What an imported review lets its authors answer. It cites no run, so it answers nothing."""
    record = material.record
    if record is None:
        return []
    return [
        Response(
            comment=f"major-{number}",
            reply=Leaf(text=" ".join(text.split()), source="declared", evidence=("imported_review.json",)),
            revised="revision: yes" in text.lower(),
        )
        for number, text in enumerate(record.responses, start=1)
        if number <= len(record.major)
    ]


def prompt(material: Material, found: Review) -> Prompt:
    """What a language model is asked."""
    verdicts = "\n".join(said(claim) + f" Runs: {', '.join(claim.runs) or 'none'}." for claim in found.claims)
    listed = "\n".join(
        f"- {one.id} ({one.status}, about {one.about or 'the text'}): {one.objection.text}" for one in found.comments
    )
    subject = (
        told("the hypothesis", material.hypothesis)
        if material.hypothesis is not None
        else quote("the review", material.subject)
    )
    # A recorded conversation is known by its subject: what was measured differs from machine to machine.
    known = render("review", subject=subject, verdicts="(verdicts)", comments="(comments)", premise="(premise)")
    asked = render(
        "review",
        subject=subject,
        verdicts=quote("verdicts", verdicts) if verdicts else "(nothing was run)",
        comments=quote("comments", listed) if listed else "(none)",
        premise=quote("premise", found.premise.text),
    )
    return replace(asked, known_by=known.text)


def prose_problems(prose: ReviewProse, found: Review) -> list[str]:
    """What is wrong with a model's part of a review."""
    ids = {claim.id for claim in found.claims}
    problems = [
        f"comments.{place}.about: there is no claim '{one.about}'; the claims are {', '.join(sorted(ids)) or 'none'}"
        for place, one in enumerate(prose.comments)
        if one.about and one.about not in ids
    ]
    return problems + response_problems(prose.responses, found.comments, found.claims)


def with_prose(found: Review, prose: ReviewProse) -> Review:
    """The review with a model's sentences, comments and responses, all marked. Verdicts decide on the comments' status.

    Raises:
        ConfigError: a response cites runs that do not speak about its comment.
    """
    if problems := prose_problems(prose, found):
        raise ConfigError("the model's part of the review", [Finding("", problem) for problem in problems])
    added = accepted(prose.comments, found.claims, [one.id for one in found.comments])
    answers = tuple(
        Response(comment=one.comment, reply=Leaf(text=one.reply, source="model", evidence=one.runs), runs=one.runs)
        for one in prose.responses
    )
    notes = [
        Leaf(text=prose.summary, source="model"),
        Leaf(text=prose.significance, source="model"),
        Leaf(text=prose.carries, source="model"),
    ]
    extensions = tuple(Leaf(text=text, source="model") for text in prose.between_lines)
    return found.model_copy(
        update={
            "prose": tuple(notes),
            "between_lines": (*found.between_lines, *extensions),
            "comments": (*found.comments, *added),
            "responses": (*found.responses, *answers, *responses(added, found.claims)),
        }
    )
