"""Claims of a hypothesis as claims that a plan can decide, with the reason wherever one had to be changed.

A plan compares an arm with a reference: metrics as differences, costs as ratios. What no run of a plan measures stays
in as not testable, with the command that measures it. Nothing is dropped.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from rankwise.experiments.plan import COSTS, MAIN
from rankwise.research.artefacts import Claim
from rankwise.tasks.metrics import canonical_metric

MARGINS = {"metric": 0.005, "cost": 0.02}
"""Taken where a claim of equality gives none: half a point, and 2 %."""
COST_OF = {"train_seconds": "train_seconds", "parameters": "parameters", "adapter_memory": "parameters"}
"""Quantities that a run's costs answer; memory for an adapter is what its parameters take."""
ELSEWHERE = {
    "latency_ms": "latency is measured by `rankwise cost`, not by training runs",
    "active_modules": "which adapters inputs open is shown by `rankwise explain` on a finished run",
    "other": "nothing that a run records answers it",
}
WHOLE = {"active_share": "uses all of its modules"}
"""Costs of which plain LoRA has 1, so that a bound on the value is one on the ratio: what is said about that."""

ArmOf = Callable[[str], str | None]
"""An arm of the design by what a claim calls it, or None."""


def plan_claim(claim: Claim, arm_of: ArmOf, reference: str | None) -> Claim:
    """The claim with arms of the design, in a form that a plan can decide, or as not testable with the reason.

    Args:
        claim: of a hypothesis.
        arm_of: finds arms.
        reference: arm that stands in where a claim names none (plain LoRA); None if there is no such arm.
    """
    if claim.kind == "not-testable":
        return untestable(claim, claim.reason or "the hypothesis says so")
    metric = measured_by(claim)
    if metric is None:
        return untestable(claim, ELSEWHERE.get(claim.quantity, ELSEWHERE["other"]))
    arms = {side: arm_of(name) if name else None for side, name in (("arm", claim.arm), ("reference", claim.reference))}
    for side, name in (("arm", claim.arm), ("reference", claim.reference)):
        if name and arms[side] is None:
            return untestable(claim, f"no arm of the design is '{name}'")
    if arms["arm"] is None:
        return untestable(claim, "it does not say which method it is about")
    reasons = [claim.reason] if claim.reason else []
    absolute = claim.kind == "bound" and metric not in WHOLE
    if arms["reference"] is None and not absolute:
        arms["reference"] = reference
        known = f", which {WHOLE[metric]}" if metric in WHOLE else ""
        reasons.append(f"names no reference; {reference} is taken{known}")
    if arms["reference"] is None:
        return untestable(claim, "a value by itself depends on model, data and machine; it names no reference")
    if arms["arm"] == arms["reference"]:
        return untestable(claim, f"arm and reference are the same arm, {arms['arm']}")
    changed = claim.model_copy(update={**arms, "metric": metric})
    return _fitted(changed, reasons)


def measured_by(claim: Claim) -> str | None:
    """The metric or cost of a plan that answers a claim's quantity; None if there is none."""
    if claim.metric in COSTS:
        return claim.metric
    if claim.quantity in COST_OF:
        return COST_OF[claim.quantity]
    if claim.quantity in COSTS:
        return claim.quantity
    if claim.quantity != "accuracy":
        return None
    return MAIN if claim.metric in (MAIN, "", "accuracy") else canonical_metric(claim.metric) or MAIN


def untestable(claim: Claim, reason: str) -> Claim:
    """The claim as one that no run of the plan decides."""
    empty: dict[str, Any] = {"at_most": None, "at_least": None, "margin": 0.0}
    return claim.model_copy(update={"kind": "not-testable", "metric": MAIN, "reason": reason, **empty})


def _fitted(claim: Claim, reasons: list[str]) -> Claim:
    """Margins and bounds as the kind needs them."""
    changes: dict[str, Any] = {}
    cost = claim.metric in COSTS
    if claim.kind == "bound":
        sides = (claim.at_most is not None) + (claim.at_least is not None)
        if sides == 0:
            return untestable(claim, "a bound without a number")
        if sides == 2:
            return _two_sided(claim, reasons)
        limit = claim.at_most if claim.at_most is not None else claim.at_least
        if cost and limit is not None and limit <= 0:
            return untestable(claim, f"a cost of {limit:g} times the reference's is impossible")
        changes = {"margin": 0.0}
    else:
        changes = {"at_most": None, "at_least": None}
        if claim.kind in ("equivalence", "non-inferiority") and claim.margin == 0:
            margin = MARGINS["cost" if cost else "metric"]
            changes["margin"] = margin
            reasons.append(f"gives no margin; {margin:g} is taken")
    if claim.expected is not None and not math.isfinite(claim.expected):
        changes["expected"] = None
    return claim.model_copy(update={**changes, "reason": "; ".join(dict.fromkeys(reasons))})


def _two_sided(claim: Claim, reasons: list[str]) -> Claim:
    """A bound on both sides of "the same" is an equality with a margin; another one is two claims."""
    assert claim.at_most is not None
    assert claim.at_least is not None
    if claim.metric in COSTS and 0 < claim.at_least < 1 < claim.at_most:
        margin = max(claim.at_most, 1 / claim.at_least) - 1
    elif claim.metric not in COSTS and claim.at_least < 0 < claim.at_most:
        margin = max(claim.at_most, -claim.at_least)
    else:
        return untestable(claim, "a bound with two numbers; write two claims")
    reasons = [*reasons, "a bound on both sides is tested as an equality"]
    changes = {"kind": "equivalence", "margin": float(f"{margin:.4g}"), "at_most": None, "at_least": None}
    return claim.model_copy(update={**changes, "reason": "; ".join(dict.fromkeys(reasons))})


def claim_data(claim: Claim, source: str) -> dict[str, Any]:
    """A claim of a design as a plan's file has it, without what is default there."""
    data: dict[str, Any] = {"id": plan_id(claim.id), "text": claim.text, "source": source, "kind": claim.kind}
    if claim.kind == "not-testable":
        return {**data, "reason": claim.reason}
    data |= {"arm": claim.arm, "reference": claim.reference, "metric": claim.metric}
    optional: Mapping[str, Any] = {
        "margin": claim.margin or None,
        "effect": effect_of(claim),
        "at_most": claim.at_most,
        "at_least": claim.at_least,
        "tasks": list(claim.tasks) or None,
        "reason": claim.reason or None,
    }
    return {**data, **{name: value for name, value in optional.items() if value is not None}}


def effect_of(claim: Claim) -> float | None:
    """The true effect that a plan has to see: what is predicted, if that lies beyond the margin."""
    if claim.kind != "superiority" or claim.expected is None or claim.metric in COSTS:
        return None
    found = abs(claim.expected)
    return found if found > claim.margin and claim.expected > 0 else None


def plan_id(name: str) -> str:
    """A claim's id as plans allow it: it begins with a letter."""
    found = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    return found if found[:1].isalpha() else f"C{found}"
