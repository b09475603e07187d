"""What would settle the subject's claim, as plans that can be run: settle.yaml, and settle-premise.yaml for what it
rests on. As they stand they run on this machine; profile `full` has the model and tasks that the text is about.
"""

import re
from collections.abc import Mapping
from typing import Any

from rankwise.experiments.plan import COSTS
from rankwise.experiments.yaml_text import dump_yaml
from rankwise.research.artefacts import Claim, Dataset, Design
from rankwise.research.datasets import here, task_entry, why_no_model
from rankwise.research.design_claims import claim_data
from rankwise.research.design_controls import ALLOCATORS, RANDOM, UNIFORM
from rankwise.research.design_plan import FALLBACK, RATES, SHARE
from rankwise.research.design_power import decidable, task_facts
from rankwise.research.project import Settings
from rankwise.research.review_material import Material
from rankwise.research.review_types import Judged

SEEDS, STEPS, BATCH, RATE = 5, 300, 16, 1e-3
PREMISE_RANK = 4
SIGNALS: Mapping[str, str] = {"adalora": "sensitivity", "peft_adalora": "sensitivity", "eva": "activation"}
"""The signal of `glora` that scores modules as a method does; the record's own for `glora` itself."""
HEAD = "# Made by `rankwise research review`: what would settle it. `rankwise compare {name}` runs it here.\n"


def settle_data(design: Design, material: Material) -> dict[str, Any]:
    """The plan: every open claim that runs can decide, the proposal against its controls, with more seeds.

    Raises:
        DataError: data that are here cannot be loaded.
    """
    local = _local(design, material)
    claims = [claim_data(claim, "the review") for claim in local.claims]
    named = {name for claim in local.claims for name in (claim.arm, claim.reference)}
    full = {
        "model": design.model,
        "tasks": [task_entry(one) for one in design.datasets],
        "training": dict(design.training),
    }
    return {
        "name": f"settle-{design.name}"[:80],
        "question": f"What would settle it: {design.question}"[:1000],
        "model": local.model,
        "arms": {
            arm.name: {"method": dict(arm.method)} for arm in design.arms if arm.name in named or _plain(arm.method)
        },
        "tasks": [task_entry(one) for one in local.datasets],
        "budgets": list(design.budgets),
        "seeds": local.seeds,
        "training": {"max_steps": STEPS, "batch_size": BATCH, "learning_rate": RATE},
        "claims": claims,
        "protocol": {"tuning": {"learning_rates": list(RATES), "share": SHARE}},
        "profiles": {
            "smoke": {"seeds": 2, "budgets": list(design.budgets[:1]), "training": _smoke(), "tuning": None},
            "full": full,
        },
    }


def _local(design: Design, material: Material) -> Design:
    """The design on this machine: its model and tasks or what stands in, open claims, margins that can be seen."""
    open_claims = _open(design, material.judged)
    proposed = next(arm.name for arm in design.arms if arm.role == "proposed")
    claims = [claim.model_copy(update={"tasks": ()}) for claim in design.claims if claim.id in open_claims]
    if not claims:
        claims = [_beats(proposed, arm.name) for arm in design.arms if arm.name != proposed and _plain(arm.method)]
    claims = [one.model_copy(update={"expected": None}) if one.metric not in COSTS else one for one in claims]
    local = design.model_copy(
        update={
            "model": _local_model(design, material.settings),
            "datasets": _local_tasks(design),
            "seeds": _seeds(material.judged, open_claims),
            "claims": tuple(claims),
        }
    )
    return decidable(local, task_facts(local))


def premise_data(design: Design, material: Material) -> dict[str, Any] | None:
    """The plan that tests what an allocation rests on: does the score of a module foretell what its adapter is worth?

    Uniform ranks throughout, so that nothing but the signal differs between the arms. None for other methods.
    """
    proposed = next(arm for arm in design.arms if arm.role == "proposed")
    method = str(proposed.method.get("name"))
    if method not in ALLOCATORS:
        return None
    signal = SIGNALS.get(method, str(proposed.method.get("signal", "estimate")))
    fixed = {"name": "glora", "warmup": 0.5, "floor": PREMISE_RANK, "cap": PREMISE_RANK}
    claim = {
        "id": "premise",
        "text": f"the score of a module (signal {signal}) foretells how much the loss rises without its adapter",
        "source": "the review: the load-bearing premise, against scores drawn at random",
        "kind": "superiority",
        "metric": "premise",
        "arm": "scores",
        "reference": "random-scores",
    }
    return {
        "name": f"premise-{design.name}"[:80],
        "question": f"Does the score that {proposed.said or proposed.name} allocates by tell what a module is worth?",
        "model": _local_model(design, material.settings),
        "arms": {
            "scores": {"method": {**fixed, "signal": signal}},
            "random-scores": {"method": {**fixed, "signal": "random"}},
        },
        "tasks": [task_entry(one) for one in _local_tasks(design)],
        "budgets": [f"r={PREMISE_RANK}"],
        "seeds": SEEDS,
        "training": {"max_steps": STEPS, "batch_size": BATCH, "learning_rate": RATE},
        "evaluation": {"premise": True},
        "claims": [claim],
        "profiles": {"smoke": {"seeds": 2, "training": _smoke()}},
    }


def settle_text(data: Mapping[str, Any], name: str) -> str:
    """The text of such a plan's file."""
    return HEAD.format(name=name) + dump_yaml(data)


def _open(design: Design, judged: tuple[Judged, ...]) -> set[str]:
    """Claims that runs could decide and have not."""
    decided = {claim.id for claim in judged if claim.verdict in ("supported", "refuted")}
    return {claim.id for claim in design.claims if claim.kind != "not-testable" and claim.id not in decided}


def _seeds(judged: tuple[Judged, ...], open_claims: set[str]) -> int:
    """As many as the verdicts say would settle the open claims, between 5 and 20."""
    wanted = [SEEDS]
    for claim in judged:
        found = re.search(r"about (\d+) seeds", claim.settle)
        if claim.id in open_claims and found:
            wanted.append(int(found[1]))
    return min(20, max(wanted))


def _beats(proposed: str, other: str) -> Claim:
    text = f"{proposed} is better than {other} at the same number of parameters"
    return Claim(id=f"settle-{other}", text=text, kind="superiority", arm=proposed, reference=other)


def _plain(method: Mapping[str, Any]) -> bool:
    return method.get("name") in (UNIFORM, RANDOM)


def _local_tasks(design: Design) -> tuple[Dataset, ...]:
    """At most three datasets of the design that are here, else the one that needs no data."""
    there = here(dataset.task for dataset in design.datasets)
    return tuple(one for one in design.datasets if one.task in there)[:3] or (Dataset(task=FALLBACK),)


def _local_model(design: Design, settings: Settings) -> str:
    return design.model if why_no_model(design.model) is None else settings.base_model


def _smoke() -> dict[str, Any]:
    return {"max_steps": 40, "batch_size": 8, "learning_rate": 3e-3}
