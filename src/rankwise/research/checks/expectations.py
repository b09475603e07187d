"""Rules on what is expected: can it be seen at all, and does it agree with earlier rounds?"""

import math
import re
from collections.abc import Iterator

from scipy import stats

from rankwise.experiments.claim_power import smallest_effect
from rankwise.research.artefacts import Defect, Hypothesis
from rankwise.research.checks.facts import USUAL_ACCURACY, VALIDATION_ROWS, standard_error, task_words
from rankwise.research.checks.registry import Subject, defect, listed, rule
from rankwise.research.extract import Prediction, predictions, proposed_name, stem
from rankwise.research.wording import states
from rankwise.tasks.glue import OFFICIAL_TRAIN_ROWS

SPREAD, DISAGREEMENT, ALPHA, POWER = 0.01, 0.1, 0.05, 0.8
"""What `plan_checks` assumes before there are runs: spread over seeds, share of examples on which arms differ."""
MOST = 4
"""Findings of one kind that are listed; more say the same."""


def gains(subject: Subject) -> Iterator[tuple[str, float]]:
    """Differences of accuracy that are expected: (what is said, size), from changes and from pairs of values."""
    about = [one for one in subject.predictions if one.quantity == "accuracy"]
    stated = [one for one in about if one.form == "change" and one.low > 0]
    for one in stated:
        upto = f" to {100 * one.high:g}" if one.high != one.low else ""
        yield f"+{100 * one.low:g}{upto} points{f' ({one.claim})' if one.claim else ''}", one.high
    values = [one for one in about if one.form == "value" and not one.variant]
    mine = [one for one in values if not one.subject or stem(one.subject) == stem(subject.name)]
    for one in values:
        if mine and one not in mine and mine[0].low > one.low:
            difference = mine[0].low - one.low
            if not any(abs(difference - other.low) < 1e-9 for other in stated):
                yield f"+{100 * difference:.3g} points over {one.subject}", difference


@rule("seeds_mde", "hypothesis", 62)
def visible(subject: Subject) -> Iterator[Defect]:
    """An expected gain is one that so many examples and seeds can show."""
    tasks = [task for task in subject.settings.tasks if task in VALIDATION_ROWS]
    if not tasks:
        return
    seeds = subject.settings.seeds or 1
    quantiles = float(stats.norm.isf(ALPHA) + stats.norm.ppf(POWER))
    of_examples = quantiles * math.sqrt(sum(DISAGREEMENT / VALIDATION_ROWS[task] for task in tasks)) / len(tasks)
    of_seeds = (
        smallest_effect(SPREAD, min(seeds, 999), alpha=ALPHA, power=POWER, tasks=len(tasks)) if seeds > 1 else 0.0
    )
    seen = math.hypot(of_examples, of_seeds)
    value = next(
        (one.low for one in subject.predictions if one.quantity == "accuracy" and one.form == "value"), USUAL_ACCURACY
    )
    for said, gain in list(gains(subject))[:MOST]:
        if not 0 < gain < seen:
            continue
        shown = "; ".join(
            f"{task_words(task)}: {gain * VALIDATION_ROWS[task]:.1f} of {VALIDATION_ROWS[task]:,} examples, standard "
            "error of one "
            f"accuracy of {value:.0%} {100 * standard_error(value, VALIDATION_ROWS[task]):.2f} points"
            for task in tasks
        )
        text = (
            f"{said}: {shown}. {seeds} seed{'s' if seeds != 1 else ''} on these examples show {100 * seen:.1f} points "
            f"or more (power {POWER:.0%}, if arms differ on {DISAGREEMENT:.0%} of the examples)"
        )
        yield defect(text, 62, where="expected_result", level="warning")


@rule("seeds_mde", "hypothesis", 18)
def seeds(subject: Subject) -> Iterator[Defect]:
    """Differences are judged over seeds; times over repeats on one device."""
    compares = any(one.form in ("change", "order", "equal") for one in subject.predictions) or any(
        True for _ in gains(subject)
    )
    count = subject.settings.seeds
    if not compares or (count or 1) > 1:
        return
    said = "one seed" if count == 1 else "no number of seeds"
    timed = any(one.quantity == "train_seconds" for one in subject.predictions)
    also = "; times are compared without repeats" if timed else ""
    text = f"{said}: one run per arm has no spread over seeds to compare a difference with{also}"
    yield defect(text, 18, where="experimental_setup", level="warning")


@rule("seeds_mde", "hypothesis", 16)
def ratios_of_differences(subject: Subject) -> Iterator[Defect]:
    """A share of another method's gain is a ratio of two differences, each within the noise."""
    tasks = [task for task in subject.settings.tasks if task in VALIDATION_ROWS]
    claimed = [one for one in subject.predictions if one.form == "share_of_gain"]
    for one in claimed:
        gain = max((size for _, size in gains(subject)), default=None)
        of_gain = f" ({100 * (1 - one.low) * gain:.2f} points of a gain of {100 * gain:g})" if gain else ""
        noise = ", ".join(
            f"{task_words(task)} {100 * math.sqrt(2) * standard_error(USUAL_ACCURACY, VALIDATION_ROWS[task]):.2f}"
            for task in tasks
        )
        text = (
            f"{one.low:.0%} to {one.high:.0%} of {one.reference or 'another'}'s gain is a ratio of two differences: "
            "what is left to "
            f"see is {1 - one.low:.0%} of it{of_gain}, and one difference has a standard error in points of "
            f"{noise or 'about 1'}. "
            "State an equivalence with a margin"
        )
        yield defect(text, 16, where="expected_result")
    if re.search(r"\bGLUE (?:score|average|points?)", subject.expected, re.I):
        here = [task for task in subject.settings.tasks if task.startswith("glue/")]
        if here and len(here) < len(OFFICIAL_TRAIN_ROWS):
            text = (
                f"a GLUE score is expected from {len(here)} of its {len(OFFICIAL_TRAIN_ROWS)} tasks "
                f"({listed([task_words(t) for t in here])})"
            )
            yield defect(text, 16, where="expected_result", level="warning")


@rule("equivalence_margin", "hypothesis", 17)
def margins(subject: Subject) -> Iterator[Defect]:
    """`A ≈ B` says how far apart they may be."""
    claims = subject.hypothesis.claims if subject.hypothesis else ()
    for claim in claims:
        if claim.kind == "equivalence" and claim.margin == 0 and claim.quantity != "parameters":
            text = f"equal within 0 is never shown of {claim.quantity}: give a margin"
            yield defect(text, 17, where=f"claims.{claim.id}")
    with_margin = {one.quantity for one in claims if one.kind == "equivalence" and one.margin > 0}
    for one in subject.predictions:
        bounded = any(two.form == "within" and two.text == one.text for two in subject.predictions)
        measured = one.quantity in ("accuracy", "train_seconds") and one.quantity not in with_margin
        if one.form == "equal" and measured and not bounded and not one.claim:
            about = f"{one.subject or 'it'} ≈ {one.reference} in {one.quantity}"
            text = f"{about} without a margin: no result could contradict it"
            yield defect(text, 17, where="expected_result", level="warning")


@rule("expectation_consistency", "hypothesis", 66)
def earlier_rounds(subject: Subject) -> Iterator[Defect]:
    """A refinement predicts no less than what it refines, and the same of methods that are not changed."""
    if subject.hypothesis is None or not subject.history:
        return
    own = _values(subject.hypothesis, subject.predictions)
    mine = subject.name
    before = subject.history[-1]
    said = _values(before, predictions(before.expected_result, proposed_name(before.title, before.method)))
    for name, value in own.items():
        if name in said and abs(value - said[name]) > 1e-9 and name != stem(mine):
            text = f"{name} is said to reach {value:.1%} here and {said[name]:.1%} in the round before"
            yield defect(text, 66, where="expected_result")
    refined = stem(proposed_name(before.title, before.method))
    here, there = own.get(stem(mine)), said.get(refined)
    if here is not None and there is not None and here < there - 1e-9:
        text = f"{mine} is to reach {here:.1%}, less than the {there:.1%} of {refined}, which it refines"
        yield defect(text, 66, where="expected_result")


def _values(hypothesis: Hypothesis, found: tuple[Prediction, ...]) -> dict[str, float]:
    """Accuracies by method; those without a name are the proposal's."""
    mine = proposed_name(hypothesis.title, hypothesis.method)
    values: dict[str, float] = {}
    for one in found:
        if one.quantity == "accuracy" and one.form == "value" and (one.subject or not one.variant):
            values.setdefault(stem(one.subject or mine), one.low)
    return values


@rule("generality", "hypothesis", 82)
def general_claims(subject: Subject) -> Iterator[Defect]:
    """What is concluded in general is tried on more than one model or task."""
    said = subject.settings
    general = states(
        subject.conclusion + "\n" + subject.method,
        r"\blarge (?:LLM|language models?)|\bLLMs?\b|\bany (?:model|LoRA|task)|\bPEFT (?:techniques|methods)|"
        r"parameter-efficient fine-tuning into|\blarge scale deployment",
    )
    narrow = len(said.models) == 1 and len(said.tasks) == 1
    if narrow and general:
        text = (
            f"only {said.models[0].rpartition('/')[2]} on {task_words(said.tasks[0])} is tried, and the conclusion is "
            "about language models in general"
        )
        yield defect(text, 82, where="experimental_setup", level="warning")
