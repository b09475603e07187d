"""What a design's seeds and evaluation examples can see, and what follows for its claims.

The same arithmetic by which `plan check` refuses a plan (see `experiments.plan_checks`): a spread over seeds is
assumed, and that arms differ on a share of the evaluation examples. A claim that needs more than that is changed so
that it can be decided, and says so.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from rankwise.experiments.claim_power import smallest_effect
from rankwise.experiments.plan import COSTS, ProtocolConfig
from rankwise.experiments.plan_checks import DISAGREEMENT, SPREAD, TaskFacts
from rankwise.research.artefacts import Claim, Dataset, Design
from rankwise.research.datasets import facts_about, task_entry, why_not_here
from rankwise.research.design_claims import effect_of
from rankwise.tasks.glue import SPECS

MOST_SEEDS = 20
"""More are not proposed; a claim that needs more is changed."""


@dataclass(frozen=True)
class _Need:
    """A claim's place, the effect it needs to be seen, and the smallest that can be seen."""

    place: int
    wanted: float
    visible: float


def task_facts(design: Design) -> dict[str, TaskFacts]:
    """What the plan checks want to know of every task: from tables where they have it, else by loading the data.

    Tasks that are in no table and not here are left out.

    Raises:
        DataError: data that are here cannot be loaded.
    """
    found = {}
    for dataset in design.datasets:
        facts, spec = facts_about(dataset.task), SPECS.get(dataset.task.removeprefix("glue/"))
        if facts is not None and spec is not None:
            found[dataset.task] = TaskFacts(
                dataset.task, spec.kind, max(1, len(spec.label_names)), facts.rows, facts.validation, spec.metrics
            )
        elif why_not_here(dataset.task) is None:
            found |= _loaded(dataset)
    return found


def _loaded(dataset: Dataset) -> dict[str, TaskFacts]:
    from rankwise.experiments.runner import load_task
    from rankwise.experiments.schema import task_config

    config = task_config(task_entry(dataset))
    data = load_task(config)
    validation = len(next(iter(data.validation.values())))
    return {config.name: TaskFacts(config.name, data.kind, data.num_labels, len(data.train), validation, data.metrics)}


def visible(seeds: int, tasks: Sequence[TaskFacts], budgets: int, *, two_sided: bool) -> float:
    """The smallest effect that so many seeds and these tasks' examples find with the protocol's power."""
    protocol = ProtocolConfig()
    alpha = protocol.alpha / (2 if two_sided else 1)
    of_seeds = smallest_effect(SPREAD, seeds, alpha=alpha, power=protocol.power, tasks=len(tasks) * budgets)
    quantiles = float(stats.norm.isf(alpha) + stats.norm.ppf(protocol.power))
    of_examples = quantiles * math.sqrt(sum(DISAGREEMENT / task.validation for task in tasks)) / len(tasks)
    return math.hypot(of_seeds, of_examples)


def decidable(design: Design, facts: Mapping[str, TaskFacts]) -> Design:
    """The design with as many seeds as its claims need (at most `MOST_SEEDS`), the other margins at what is seen."""
    if not facts:
        return design
    seeds = next(
        (n for n in range(max(2, design.seeds), MOST_SEEDS + 1) if not _unseen(design, facts, n)),
        max(2, min(MOST_SEEDS, _enough_for_most(design, facts))),
    )
    claims = list(design.claims)
    for need in _unseen(design, facts, seeds):
        claims[need.place] = _changed(claims[need.place], need, seeds)
    notes = list(design.notes)
    if seeds != design.seeds:
        notes.append(f"{seeds} seeds in place of {design.seeds}: so many find what the claims predict")
    notes += [f"claim {new.id}: {new.reason}" for new, old in zip(claims, design.claims, strict=True) if new != old]
    return design.model_copy(update={"seeds": seeds, "claims": tuple(claims), "notes": tuple(dict.fromkeys(notes))})


def _enough_for_most(design: Design, facts: Mapping[str, TaskFacts]) -> int:
    """The fewest seeds with as many visible claims as with `MOST_SEEDS`."""
    least = len(_unseen(design, facts, MOST_SEEDS))
    return (
        next(n for n in range(max(2, design.seeds), MOST_SEEDS + 1) if len(_unseen(design, facts, n)) <= least)
        if (design.seeds <= MOST_SEEDS)
        else MOST_SEEDS
    )


def _unseen(design: Design, facts: Mapping[str, TaskFacts], seeds: int) -> list[_Need]:
    """Claims whose effect so many seeds do not find."""
    found = []
    for place, claim in enumerate(design.claims):
        wanted = _wanted(claim)
        own = [facts[name] for name in claim.tasks or facts if name in facts]
        if wanted is None or not own:
            continue
        seen = visible(seeds, own, len(design.budgets), two_sided=claim.kind == "equivalence")
        if seen > wanted:
            found.append(_Need(place, wanted, seen))
    return found


def _wanted(claim: Claim) -> float | None:
    """The effect that has to be seen, as `plan check` reckons; None where it asks for none."""
    if claim.kind in ("not-testable", "bound") or claim.metric in COSTS:
        return None
    effect = effect_of(claim)
    wanted = effect - claim.margin if effect is not None else claim.margin
    return wanted if wanted > 0 else None


def _changed(claim: Claim, need: _Need, seeds: int) -> Claim:
    """A claim that can be decided, in place of one that cannot."""
    seen = math.ceil(need.visible * 1000) / 1000
    said = (
        f"{seeds} seeds and the evaluation examples find {need.visible:.4f} at best, the claim needs {need.wanted:.4f}"
    )
    if claim.kind == "superiority":
        reason = f"{said}: tested for any gain, without promise that {claim.expected or need.wanted:g} would be found"
        changes: dict[str, object] = {"expected": None, "margin": 0.0}
    else:
        reason = f"{said}: tested at a margin of {seen:g} in place of {claim.margin:g}"
        text = re.sub(r" \(tested at a margin of [\d.e-]+\)$", "", claim.text)
        changes = {"margin": seen, "text": f"{text} (tested at a margin of {seen:g})"}
    reasons = [claim.reason, reason] if claim.reason else [reason]
    return claim.model_copy(update={**changes, "reason": "; ".join(reasons)})
