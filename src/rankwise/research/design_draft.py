"""A design out of a hypothesis' words alone, without a language model.

What a text says is taken over; what it leaves out is filled with a default and noted. The same text gives the same
design. `design` completes it (controls, claims) as it completes a model's.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from rankwise.research.artefacts import Claim, Dataset, Design, DesignArm, Hypothesis, Search
from rankwise.research.datasets import known_tasks, task_named
from rankwise.research.extract import Settings, claims, predictions, proposed_name, settings
from rankwise.research.mapping import ablation_of, key_of, method_of, model_of, short_name

RANK, SEEDS = 8, 5
"""Taken where a text names neither rank nor budget, and neither number of seeds."""
SHARES = {"galora": "keep", "cogalora": "active", "radlora": "active"}
"""Where a method takes the share of adapters that stay or open."""
LEAVE_OUT = "none"
"""What a person maps a name to that is to be left out."""


def draft(
    hypothesis: Hypothesis, *, base_model: str = "minilm", extra: Mapping[str, str] | None = None, question: str = ""
) -> Design:
    """The design that a hypothesis describes.

    Args:
        hypothesis: to be tested.
        base_model: where it names none.
        extra: what a person said about names of methods: theirs to ours, or to `none`.
        question: of the plan; none: the hypothesis' first open problem.

    Raises:
        UnknownNameError: a method that is neither registered nor in `extra`; the message has the nearest.
    """
    said = settings(f"{hypothesis.experimental_setup}\n{hypothesis.method}")
    notes: list[str] = []
    found = hypothesis.claims or claims(hypothesis)
    arms = _arms(hypothesis, said, found, extra or {}, notes)
    name = f"test-{arms[0].name}"
    return Design(
        name=name,
        question=question or _first_sentence(hypothesis.open_problems),
        model=_model(said, base_model, notes),
        arms=arms,
        datasets=_datasets(hypothesis, said, notes),
        metrics=tuple(metric for metric in said.metrics if metric not in ("train_seconds", "inference_flops")),
        budgets=(_budget(said, notes),),
        seeds=_seeds(said, notes),
        training=_training(said, notes),
        search=_search(said),
        claims=found,
        notes=tuple(notes),
    )


def _arms(
    hypothesis: Hypothesis, said: Settings, found: Iterable[Claim], extra: Mapping[str, str], notes: list[str]
) -> tuple[DesignArm, ...]:
    """The proposal, the baselines, and whatever claims compare with; one arm per method."""
    proposed = proposed_name(hypothesis.title, hypothesis.method) or hypothesis.title
    names = [proposed, *said.baselines, *(side for claim in found for side in (claim.arm, claim.reference) if side)]
    left = {key_of(name) for name, ours in extra.items() if ours == LEAVE_OUT}
    known = {name: ours for name, ours in extra.items() if ours != LEAVE_OUT}
    arms: list[DesignArm] = []
    for place, name in enumerate(names):
        if key_of(name) in left:
            notes.append(f"'{name}' is left out, as asked")
            continue
        method = _method(name, place, 1 + len(said.baselines), known, notes)
        if method is None:
            continue
        if any(arm.method["name"] == method for arm in arms):
            continue
        section = {"name": method, **_settings_of(method, hypothesis, said, notes)} if place == 0 else {"name": method}
        role = "proposed" if place == 0 else "comparative"
        arms.append(DesignArm(name=short_name(method), role=role, method=section, said=name))  # type: ignore[arg-type]
    return tuple(arms)


def _method(name: str, place: int, listed: int, known: Mapping[str, str], notes: list[str]) -> str | None:
    """The registered method of a name; None for a variant in a claim that is not registered: the claim says so then.

    Raises:
        UnknownNameError: neither.
    """
    variant = ablation_of(name) if place >= listed and key_of(name) not in map(key_of, known) else None
    if variant is None:
        return method_of(name, "proposed" if place == 0 else "comparative", known)
    if variant[1] is not None:
        notes.append(f"'{name}' is {variant[1]}")
    return variant[1]


def _settings_of(method: str, hypothesis: Hypothesis, said: Settings, notes: list[str]) -> dict[str, Any]:
    """The proposal's own settings, as far as the text gives numbers and the method has such fields."""
    from rankwise.experiments.schema import method_registry

    fields = method_registry()[method].model_fields
    found: dict[str, Any] = {}
    if said.beta is not None and "beta" in fields:
        found["beta"] = said.beta
    if said.warmup_epochs is not None and said.epochs and "warmup" in fields and said.warmup_epochs < said.epochs:
        found["warmup"] = round(said.warmup_epochs / said.epochs, 4)
        notes.append(
            f"warm-up: {said.warmup_epochs:g} of {said.epochs:g} epochs is {found['warmup']:.0%} of a run of any length"
        )
    if (share := SHARES.get(method)) in fields:
        for one in predictions(hypothesis.expected_result):
            about = not one.subject or key_of(one.subject) == key_of(proposed_name(hypothesis.title, hypothesis.method))
            if one.quantity == "active_share" and one.form == "value" and about and 0 < one.low < 1 and not one.variant:
                found[str(share)] = round(one.low, 4)
                break
    return found


def _model(said: Settings, base_model: str, notes: list[str]) -> str:
    if not said.models:
        notes.append(f"names no base model; {base_model} is taken")
        return base_model
    if len(said.models) > 1:
        notes.append(f"names several base models ({', '.join(said.models)}); the first is taken")
    return model_of(said.models[0])


def _datasets(hypothesis: Hypothesis, said: Settings, notes: list[str]) -> tuple[Dataset, ...]:
    names = said.tasks or tuple(
        task for task in known_tasks() if task_named(hypothesis.experimental_setup) == task and task != "files"
    )
    if not names:
        notes.append("names no dataset that is known here; docstrings is taken")
        return (Dataset(task="docstrings"),)
    return tuple(Dataset(task=name, said=name) for name in names)


def _budget(said: Settings, notes: list[str]) -> str:
    rank = said.rank
    if rank is None and (factors := [factor for _, factor in said.rank_expressions]):
        rank = factors[0]
    if rank is None:
        rank = RANK
        notes.append(f"names no rank; the budget is what uniform LoRA of rank {rank} has")
    totals = [f"{total} ranks" for total in said.budgets]
    if totals:
        notes.append(
            f"its budget of {', '.join(totals)} in total is counted in ranks; arms are compared at equal parameters, "
            f"those of uniform LoRA of rank {rank}"
        )
    return f"r={rank}"


def _seeds(said: Settings, notes: list[str]) -> int:
    if said.seeds is None or said.seeds < 2:
        given = "one seed" if said.seeds == 1 else "no number of seeds"
        notes.append(f"gives {given}; {SEEDS} paired seeds are taken, because one has no spread")
        return SEEDS
    return said.seeds


def _training(said: Settings, notes: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"epochs": said.epochs} if said.epochs else {"max_steps": 1000}
    if not said.epochs:
        notes.append("gives no length of training; 1,000 steps are taken")
    if said.batch_size:
        found["batch_size"] = said.batch_size
    if said.learning_rates:
        found["learning_rate"] = said.learning_rates[0]
    return found


def _search(said: Settings) -> tuple[Search, ...]:
    rates = sorted(set(said.learning_rates))
    if not rates:
        return ()
    choices = rates if len(rates) > 1 else [float(f"{rates[0] * factor:.6g}") for factor in (0.5, 1, 2)]
    return (Search(path="training.learning_rate", kind="categorical", choices=tuple(choices)),)


def _first_sentence(text: str) -> str:
    end = text.find(". ")
    return " ".join((text[: end + 1] if 0 < end < 400 else text[:400]).split())
