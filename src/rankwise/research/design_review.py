"""A runnable plan out of a machine review: what would settle the paper's claim, with the controls its referee asks for.

The subject is the paper's method. What the review says would settle it, and what its major comments ask for, name the
comparisons: uniform ranks, random ranks, gradient norms and so on, at equal numbers of parameters and several budgets.
"""

import re
from collections.abc import Mapping

from rankwise.research.artefacts import Claim, Dataset, Design, DesignArm
from rankwise.research.extract import settings
from rankwise.research.imported import ImportedReview
from rankwise.research.mapping import PEERS, method_of
from rankwise.research.wording import clause_with, plain, states

CONTROLS: Mapping[str, tuple[str, str]] = {
    "lora": (
        r"\buniform(?:ly)?\b|\bevenly\b|\bstandard LoRA\b|\bLoRA with identical\b",
        "the same budget spent uniformly",
    ),
    "random": (r"\brandom\b", "a random allocation"),
    "glora": (r"\bgradient[- ]norms?\b", "ranks by gradient norms"),
    "heuristic": (r"\bheuristic\b|\bhand-?(?:made|set|crafted)\b", "a fixed rule"),
    "truncate": (
        r"\btruncat\w+|\bsingular[- ]value threshold\b|\bpost[- ]hoc prun\w+",
        "training uniformly and cutting",
    ),
}
"""Method of a control to the words that ask for it, and what it is in a sentence."""
BUDGETS = ("r=1", "r=2", "r=8")
"""Low ones first: that is where adaptive ranks should matter most."""
COMPARABLE = 0.1
"""Taken for "comparable": 10 %."""


def draft_of_review(review: ImportedReview, *, base_model: str, extra: Mapping[str, str] | None = None) -> Design:
    """The design that a review asks for.

    Raises:
        UnknownNameError: the paper's method is not registered; the message has the nearest.
    """
    said = extra or {}
    title = review.title.partition(":")[0].strip() or review.title
    subject = method_of(title, "proposed", said)
    asked = "\n".join([review.sections.get("what_would_settle_it", ""), *review.major, *review.minor])
    arms = [DesignArm(name=subject, role="proposed", method={"name": subject}, said=title)]
    if (peer := PEERS.get(subject)) is not None:
        why = "the implementation that its users have"
        arms.append(DesignArm(name=peer, role="comparative", method={"name": peer}, said=title, why=why))
    for method, (pattern, what) in CONTROLS.items():
        if method != subject and (clause := clause_with(asked, pattern)):
            why = f"the review asks for {what}: {plain(clause)[:300]}"
            arms.append(DesignArm(name=method, role="control", method={"name": method}, said=what, why=why))
    found = settings(asked + "\n" + review.sections.get("abstract", ""))
    return Design(
        name=f"settle-{subject}",
        question=f"Does {title} beat the same number of parameters spent without its signal?",
        model=base_model,
        arms=tuple(arms),
        datasets=tuple(Dataset(task=task, said=task) for task in found.tasks or _glue(asked)),
        budgets=BUDGETS,
        seeds=10,
        training={"max_steps": 3000, "batch_size": 32, "learning_rate": 5e-4},
        claims=tuple(_claims(review, subject, arms)),
        notes=("the review states no model, length or seeds; these are chosen by code",),
    )


def _glue(asked: str) -> tuple[str, ...]:
    """Tasks of GLUE of different kinds and sizes, where a review only says GLUE; else the task that needs no data."""
    return ("glue/cola", "glue/rte", "glue/mrpc", "glue/sst2") if re.search(r"\bGLUE\b", asked) else ("docstrings",)


def _claims(review: ImportedReview, subject: str, arms: list[DesignArm]) -> list[Claim]:
    """Better than every control at equal parameters, most at the lowest budget; and what it says about time."""
    found = [
        Claim(
            id=f"A-{arm.name}",
            text=f"{subject} beats {arm.said}, at equal parameters",
            kind="superiority",
            arm=subject,
            reference=arm.name,
        )
        for arm in arms
        if arm.role == "control"
    ]
    everything = "\n".join([*review.sections.values()])
    if clause := states(everything, r"\b(?:training|step) time\b.{0,40}\b(?:comparable|similar|close)\b"):
        found.append(
            Claim(
                id="A-time",
                text=f"{subject}'s training time is comparable to LoRA's",
                kind="non-inferiority",
                arm=subject,
                reference="lora",
                quantity="train_seconds",
                margin=COMPARABLE,
                reason=f"the review gives no number ({plain(clause)[:200]}); 10 % is taken for comparable",
            )
        )
    if premise := review.sections.get("load_bearing_premise"):
        found.append(
            Claim(
                id="A-premise",
                text=" ".join(premise.split())[:2000],
                kind="not-testable",
                arm=subject,
                reason="needs a probe of the mechanism (score of a module against the loss without its adapter), "
                "which training runs do not do; the review's settle-premise.yaml does",
            )
        )
    return found
