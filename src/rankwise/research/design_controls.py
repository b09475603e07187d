"""What a design has to have whether or not its author thought of it: the arms without which no claim means anything."""

from collections.abc import Mapping, Sequence

from rankwise.experiments.plan import MAIN
from rankwise.research.artefacts import Claim, Design, DesignArm
from rankwise.research.design_claims import plan_claim
from rankwise.research.mapping import PEERS, ablation_of, key_of, method_named

UNIFORM, RANDOM = "lora", "random"
ALLOCATORS = frozenset({"adalora", "peft_adalora", "glora", "eva", "heuristic", "truncate"})
"""Methods that decide where rank goes: beating uniform ranks may only show that ranks differ, random ones tell."""
ADDED = "added by code"
STANDS_IN = "stand-in: arm"
"""How a note begins that says so."""


def missing_controls(arms: Sequence[DesignArm]) -> list[DesignArm]:
    """Controls that the arms call for and lack."""
    methods = {str(arm.method.get("name")) for arm in arms}
    taken = {arm.name for arm in arms}
    found = []
    if UNIFORM not in methods:
        why = "without uniform LoRA of the same number of parameters no gain can be told from what the budget gives"
        found.append(DesignArm(name=_free("lora", taken), role="control", method={"name": UNIFORM}, why=why))
    proposed = {str(arm.method.get("name")) for arm in arms if arm.role == "proposed"}
    if proposed & ALLOCATORS and RANDOM not in methods:
        why = "random ranks at the same budget tell whether the signal matters or only that ranks differ"
        found.append(DesignArm(name=_free("random", taken), role="control", method={"name": RANDOM}, why=why))
    return found


def stand_ins(arms: Sequence[DesignArm], names: Mapping[str, str]) -> list[str]:
    """Arms that run another method than their words name, as far as code can read them: one sentence each.

    A language model chose what stands for them (a person's choice is in `names`); verdicts are about what ran.
    """
    found = []
    for arm in arms:
        method, said = str(arm.method["name"]), arm.said or arm.name
        known = method if arm.role == "control" else method_named(said, names)
        if known is None or method not in (known, PEERS.get(known)):
            found.append(f"{STANDS_IN} {arm.name} runs {method}, and code does not know '{said}' as a name of it")
    return found


def completed(design: Design) -> Design:
    """The design with its controls, claims in a form that a plan can decide, and a claim for every added control."""
    added = missing_controls(design.arms)
    arms = (*design.arms, *added)
    uniform = next(arm.name for arm in arms if arm.method.get("name") == UNIFORM)
    claims = [plan_claim(claim, lambda name: arm_of(name, arms), uniform) for claim in design.claims]
    proposed = [arm.name for arm in arms if arm.role == "proposed"]
    for arm in added:
        claims += [
            _control_claim(name, arm)
            for name in proposed
            if not any({name, arm.name} <= {claim.arm, claim.reference} for claim in claims if claim.metric == MAIN)
        ]
    if not any(claim.kind != "not-testable" for claim in claims) and proposed and uniform not in proposed:
        claims.append(_control_claim(proposed[0], next(arm for arm in arms if arm.name == uniform)))
    notes = (*design.notes, *(f"arm {arm.name} {ADDED}: {arm.why}" for arm in added))
    return design.model_copy(
        update={"arms": arms, "claims": _unique(claims), "notes": tuple(dict.fromkeys((*notes, *_changed(claims))))}
    )


def arm_of(said: str, arms: Sequence[DesignArm]) -> str | None:
    """The arm that a claim means: by its name, by what the hypothesis calls it, or by the method that is meant."""
    for arm in arms:
        if key_of(said) in {key_of(arm.name), key_of(arm.said)}:
            return arm.name
    variant = ablation_of(said)
    method = variant[1] if variant else method_named(said)
    if method is None:
        return None
    for wanted in (method, PEERS.get(method)):
        for arm in arms:
            if wanted is not None and arm.method.get("name") == wanted:
                return arm.name
    return None


def _control_claim(proposed: str, control: DesignArm) -> Claim:
    return Claim(
        id=f"control-{control.name}",
        text=f"{proposed} is better than {control.name} at the same number of parameters",
        kind="superiority",
        arm=proposed,
        reference=control.name,
        reason=f"{ADDED}: {control.why or 'no other claim of the hypothesis can be decided by runs'}",
    )


def _unique(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """Claims with ids of their own; the same sentence about the same arms once."""
    found: dict[tuple[object, ...], Claim] = {}
    taken: set[str] = set()
    for claim in claims:
        key = (claim.text, claim.kind, claim.arm, claim.reference, claim.metric, claim.margin, claim.at_most)
        if key in found:
            continue
        name, turn = claim.id, 2
        while name.lower() in taken:
            name, turn = f"{claim.id}-{turn}", turn + 1
        taken.add(name.lower())
        found[key] = claim.model_copy(update={"id": name})
    return tuple(found.values())


def _changed(claims: Sequence[Claim]) -> list[str]:
    return [f"claim {claim.id} is not testable: {claim.reason}" for claim in claims if claim.kind == "not-testable"]


def _free(name: str, taken: set[str]) -> str:
    turn, found = 2, name
    while found in taken:
        found, turn = f"{name}-{turn}", turn + 1
    return found
