"""The ledger: every setting that the arms of a design have, and what it was decided by; every part that a method adds.

Counted from the config classes, so it cannot say "no free parameters" of a method that has ten. A default counts as
sourced if the field's own description names where it comes from (a paper, PEFT, the authors); otherwise it is free.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from rankwise.errors import RankwiseError
from rankwise.experiments.schema import TrainingConfig, method_registry
from rankwise.research.artefacts import Design, DesignArm
from rankwise.research.datasets import why_no_model
from rankwise.research.review_types import Entity, Entry, Leaf, Ledger

_SOURCED = re.compile(r"\bpapers?\b|\bPEFT|\barXiv\b|\bauthors\b|\bet al\b|\brecord\b", re.IGNORECASE)
_COMMON = ("name", "target_modules")
EVERYONE = "all-arms"


def ledger(design: Design, base_model: str) -> Ledger:
    """The ledger of a design.

    Args:
        design: whose arms are looked at (not its controls: they decide nothing).
        base_model: on which the parts that methods add are counted, if the design's own is not here.
    """
    arms = [arm for arm in design.arms if arm.role != "control"]
    entries = [*_training(design), *(entry for arm in arms for entry in _arm(design, arm))]
    model = design.model if why_no_model(design.model) is None else base_model
    entities = [entity for arm in arms for entity in entities_of(arm, design.budgets[0], model)]
    found = Ledger(entries=tuple(entries), entities=tuple(entities))
    counts = {state: found.count(state) for state in ("searched", "given", "sourced", "free")}
    text = (
        f"{len(entries)} settings: {counts['searched']} searched alike for every arm, {counts['given']} given by the "
        f"text, {counts['sourced']} defaults with a documented source, {counts['free']} defaults without one; "
        f"{len(entities)} kind{'' if len(entities) == 1 else 's'} of parts beside low-rank factors (counted on {model})"
    )
    return found.model_copy(update={"note": Leaf(text=text, source="derived", evidence=("design.json",))})


def _training(design: Design) -> Iterator[Entry]:
    """What all arms share."""
    searched = {one.path: one for one in design.search}
    for name, field in TrainingConfig.model_fields.items():
        value = design.training.get(name, field.default)
        if value is None and name not in design.training:
            continue
        path = f"training.{name}"
        state = "searched" if path in searched else "given" if name in design.training else _default(field.description)
        note = (
            f"range {searched[path].choices or (searched[path].low, searched[path].high)}" if path in searched else ""
        )
        yield Entry(arm=EVERYONE, name=path, value=str(value), state=state, note=note)  # type: ignore[arg-type]
    yield Entry(arm=EVERYONE, name="budgets", value=", ".join(design.budgets), state="given")


def _arm(design: Design, arm: DesignArm) -> Iterator[Entry]:
    """Every setting of an arm's method, budget excepted: that is the plan's."""
    searched = {one.path for one in design.search}
    for name, value, description in settings_of(arm.method):
        state = "given" if name in arm.method else _default(description)
        state = "searched" if f"method.{name}" in searched else state
        yield Entry(arm=arm.name, name=name, value=str(value)[:200], state=state, note=(description or "")[:300])  # type: ignore[arg-type]


def settings_of(method: Mapping[str, Any]) -> list[tuple[str, object, str | None]]:
    """(name, value, description) of every setting of a method's section, defaults included."""
    kind = method_registry()[str(method["name"])]
    skipped = (*_COMMON, "budget")
    return [
        (name, method.get(name, field.get_default(call_default_factory=True)), field.description)
        for name, field in kind.model_fields.items()
        if name not in skipped
    ]


def _default(description: str | None) -> str:
    return "sourced" if description and _SOURCED.search(description) else "free"


def entities_of(arm: DesignArm, budget: str, model: str) -> list[Entity]:
    """Parts that a method adds to a model beside `lora_A` and `lora_B`, with their parameters, counted by building it.

    Empty where the base model is not here or the method cannot be built on it.
    """
    if why_no_model(model) is not None or arm.method.get("name") == "full":
        return []
    try:
        counts = _counted(json.dumps(arm.method, sort_keys=True), budget, model)
    except RankwiseError:
        return []
    return [
        Entity(arm=arm.name, name=part, parameters=number, note=f"at {budget} on {model}")
        for part, number in sorted(counts.items())
    ]


@lru_cache(maxsize=64)
def _counted(method: str, budget: str, model: str) -> Mapping[str, int]:
    from rankwise.training.models import load_base_model

    given = json.loads(method)
    kind = method_registry()[str(given["name"])]
    section = {**given, **({"budget": budget} if "budget" in kind.model_fields else {})}
    base = load_base_model(model, num_labels=2, kind="classification", seed=0, revision=None)
    head = {name for name, parameter in base.model.named_parameters() if parameter.requires_grad}
    built = kind.model_validate(section).build(base.model, total_steps=1000, seed=0)
    counts: dict[str, int] = {}
    for name, parameter in built.model.named_parameters():
        plain = re.search(r"\blora_(?:A|B)\.\w+\.weight$|\blora_embedding_[AB]\b", name)
        if not parameter.requires_grad or plain or any(name.endswith(own) for own in head):
            continue
        if "modules_to_save" in name or "classifier" in name or ".score." in name:
            continue
        part = _part_name(name)
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def _part_name(name: str) -> str:
    """`…query.lora_router.default.0.weight` is `lora_router`: the innermost word that is no number and no layer."""
    words = [word for word in name.split(".") if not word.isdigit() and word not in ("default", "weight", "bias")]
    named = [word for word in words if re.search(r"gate|router|bank|hyper|rank|lora_[a-z]|magnitude|generator", word)]
    return named[-1] if named else words[-1]
