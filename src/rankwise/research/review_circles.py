"""Circles: ways in which a result can be put into its own premises. Looked for in data flow, digests and dates."""

from collections.abc import Iterator

from rankwise.experiments.plan_runs import Plan
from rankwise.research.review_material import Material
from rankwise.research.review_types import Circle, Leaf


def circles(material: Material, plan: Plan | None) -> tuple[Circle, ...]:
    """Every circle that is looked for; `plan` is the one that was run, at its profile."""
    return (*_of_runs(material, plan), *_of_text(material))


def _circle(name: str, found: str, why: str, source: str = "derived", *evidence: str) -> Circle:
    leaf = Leaf(text=why, source=source, evidence=evidence)  # type: ignore[arg-type]
    return Circle(name=name, found=found, why=leaf)  # type: ignore[arg-type]


def _of_runs(material: Material, plan: Plan | None) -> Iterator[Circle]:
    verdicts = material.verdicts
    if verdicts is None or plan is None:
        yield _circle("no-runs", "not known", "nothing was run, so nothing can be said about data flow")
        return
    tuning = plan.config.protocol.tuning
    if tuning is None:
        yield _circle(
            "selection-split",
            "no",
            "nothing was selected: every arm ran with the plan's settings",
            "derived",
            "plan.yaml",
        )
    else:
        text = f"learning rates were chosen on {tuning.share:.0%} of the training examples, results are on others"
        yield _circle("selection-split", "no", text, "derived", "plan.yaml")
    late = material.frozen_late
    text = (
        f"{', '.join(late)} were made or changed when there were results"
        if late
        else ("claims, margins and the rule of judgement were frozen with their digests before the first run")
    )
    yield _circle("threshold-after-results", "yes" if late else "no", text, "derived", f"{verdicts.folder}/plan.json")
    yield _circle(
        "signal-sees-evaluation",
        "no",
        "methods are handed training batches only; the evaluation split is read when training has ended",
        "derived",
        "plan.yaml",
    )
    references = {claim.reference for claim in verdicts.claims if claim.reference and claim.verdict != "not testable"}
    ran = {name for claim in verdicts.claims if claim.runs for name in (claim.reference,) if name}
    lacking = sorted(references - ran)
    text = f"not run: {', '.join(lacking)}" if lacking else "every reference was run here, none was copied from a paper"
    yield _circle("baseline-transcribed", "yes" if lacking else "no", text, "measured", *sorted(ran))


def _of_text(material: Material) -> Iterator[Circle]:
    """Expected values that are exactly what was measured would have been written afterwards."""
    same = [
        claim.id
        for claim in material.judged
        if claim.expected is not None and claim.estimate is not None and claim.estimate == claim.expected != 0
    ]
    if any(claim.expected is not None and claim.estimate is not None for claim in material.judged):
        text = (
            f"{', '.join(same)}: the prediction is the estimate to the last digit"
            if same
            else ("no prediction equals its estimate")
        )
        yield _circle("expected-from-measured", "yes" if same else "no", text, "measured", *same)
    if material.record is not None:
        said = " ".join(material.record.sections.get("circularity", "").split())
        if said:
            yield _circle("said-by-the-review", "not known", said[:600], "declared", "imported_review.json")
