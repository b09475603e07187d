"""Testable claims out of what a hypothesis expects, so that one without claims continues without a language model.

Every claim is one comparison in our words. What a text leaves open is filled in and said in the claim's `reason`: a
margin of half a point of accuracy, a tenth of the stated value around what is said to be `about` so much, plain LoRA
where nothing is named to compare with. What cannot be tested as it is written is replaced by what can.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rankwise.research.artefacts import Claim, ClaimKind, Hypothesis, Quantity
from rankwise.research.extract_names import methods, proposed_name, stem
from rankwise.research.extract_numbers import Prediction, predictions

MARGIN = 0.005
"""Half a point of accuracy: what counts as equal where a text names no margin."""
ABOUT = 0.1
"""Share of a stated value that `about` leaves open."""
SAME = 0.01
"""Relative difference of a counted cost that is still `identical`."""
_COSTS: tuple[Quantity, ...] = ("train_seconds", "parameters", "inference_flops", "latency_ms", "adapter_memory")
_NAMES: dict[Quantity, str] = {
    "accuracy": "accuracy", "train_seconds": "training time", "inference_flops": "number of inference FLOPs",
    "latency_ms": "latency", "parameters": "parameter count", "adapter_memory": "memory for adapters",
    "total_rank": "total rank", "active_share": "share of active adapters",
    "active_modules": "number of active modules",
}  # fmt: skip


@dataclass(frozen=True)
class _Side:
    proposed: str
    plain: str

    def arm(self, one: Prediction) -> str:
        name = one.subject if one.subject and not one.variant else self.proposed
        return f"{name} {one.variant}" if one.variant else name

    def is_proposed(self, one: Prediction) -> bool:
        return bool(one.variant) or not one.subject or stem(one.subject) == stem(self.proposed)


def claims(hypothesis: Hypothesis) -> tuple[Claim, ...]:
    """The hypothesis' own claims if it brings any, else one per testable sentence of its expected result."""
    if hypothesis.claims:
        return hypothesis.claims
    own = proposed_name(hypothesis.title, hypothesis.method)
    found = predictions(hypothesis.expected_result, own)
    named = methods(f"{hypothesis.experimental_setup}\n{hypothesis.expected_result}")
    plain = next((one.name for one in named if stem(one.name) == "lora"), "LoRA")
    sides = _Side(own or "proposed", plain)
    made = [*_accuracies(found, sides), *_equalities(found, sides), *_orders(found, sides), *_bounds(found, sides)]
    return tuple(one.model_copy(update={"id": f"C{number}"}) for number, one in enumerate(_merged(made), start=1))


def _claim(kind: ClaimKind, quantity: Quantity, arm: str, reference: str | None, text: str, reason: str = "") -> Claim:
    metric = "main" if quantity == "accuracy" else quantity
    return Claim(
        id="C0", text=text, kind=kind, arm=arm, reference=reference, quantity=quantity, metric=metric, reason=reason
    )


def _with(claim: Claim, **values: float | None) -> Claim:
    rounded = {name: None if value is None else round(value, 6) for name, value in values.items()}
    return claim.model_copy(update=rounded)


def _accuracies(found: tuple[Prediction, ...], sides: _Side) -> Iterator[Claim]:
    """Differences that are stated, or follow from two stated values."""
    values = [one for one in found if one.quantity == "accuracy" and one.form == "value"]
    own = next((one for one in values if sides.is_proposed(one) and not one.variant), None)
    for one in found:
        if one.quantity == "accuracy" and one.form == "change" and sides.is_proposed(one) and not one.variant:
            yield _better(sides.proposed, one.reference or sides.plain, one.low)
        if one.form == "share_of_gain" and one.reference:
            yield _gain(sides.proposed, one)
    if own is None:
        return
    others = [one for one in values if one is not own]
    for one in others:
        name = sides.arm(one) if one.variant else one.subject
        if one.variant or not sides.is_proposed(one):
            yield _better(sides.proposed, name, own.low - one.low)
    if not any(not sides.is_proposed(one) for one in others):
        text = f"{sides.proposed}'s accuracy is not below {sides.plain}'s by more than {100 * MARGIN:g} points"
        reason = f"only an absolute value is given ({own.low:.1%}), which depends on model and data; read as no loss"
        yield _with(_claim("non-inferiority", "accuracy", sides.proposed, sides.plain, text, reason), margin=MARGIN)


def _better(arm: str, reference: str, expected: float) -> Claim:
    if expected > 0:
        text = f"{arm}'s accuracy is above {reference}'s"
        return _with(_claim("superiority", "accuracy", arm, reference, text), expected=expected)
    text = f"{arm}'s accuracy is not below {reference}'s by more than {100 * (MARGIN - expected):g} points"
    reason = "the stated values predict no gain"
    claim = _claim("non-inferiority", "accuracy", arm, reference, text, reason)
    return _with(claim, margin=MARGIN - expected, expected=expected)


def _gain(arm: str, one: Prediction) -> Claim:
    text = f"{arm}'s accuracy is not below {one.reference}'s by more than {100 * MARGIN:g} points"
    reason = (
        f"{one.low:.0%} to {one.high:.0%} of another method's gain is a ratio of two small differences, which no "
        f"number of runs settles; replaced by no loss beyond {100 * MARGIN:g} points"
    )
    return _with(_claim("non-inferiority", "accuracy", arm, one.reference, text, reason), margin=MARGIN)


def _equalities(found: tuple[Prediction, ...], sides: _Side) -> Iterator[Claim]:
    for one in found:
        if one.form != "equal" or not sides.is_proposed(one) or not one.reference:
            continue
        name = _NAMES.get(one.quantity, one.quantity)
        margin = next(
            (w.high for w in found if w.form == "within" and w.text == one.text and w.quantity == one.quantity), None
        )
        if one.quantity == "parameters" and margin is None:
            text = f"{sides.proposed}'s parameter count is {one.reference}'s, within {SAME:.0%}"
            claim = _claim("bound", "parameters", sides.proposed, one.reference, text, f"`identical` within {SAME:.0%}")
            yield _with(claim, at_least=1 - SAME, at_most=1 + SAME)
            continue
        default = MARGIN if one.quantity == "accuracy" else 0.05
        unit = f"{100 * (margin or default):g} points" if one.quantity == "accuracy" else f"{margin or default:.0%}"
        reason = "" if margin else f"no margin is given; {unit} is taken"
        text = f"{sides.proposed}'s {name} equals {one.reference}'s within {unit}"
        claim = _claim("equivalence", one.quantity, sides.proposed, one.reference, text, reason)
        yield _with(claim, margin=margin or default)


def _orders(found: tuple[Prediction, ...], sides: _Side) -> Iterator[Claim]:
    for one in found:
        if one.form != "order" or not sides.is_proposed(one) or not one.reference:
            continue
        if one.quantity == "accuracy":
            text = f"{sides.proposed}'s accuracy is above {one.reference}'s"
            yield _claim("superiority", "accuracy", sides.proposed, one.reference, text)
        elif one.quantity in _COSTS:
            text = f"{sides.proposed}'s {_NAMES[one.quantity]} is below {one.reference}'s"
            claim = _claim("superiority", one.quantity, sides.proposed, one.reference, text)
            yield _with(claim, expected=_relative(found, one, sides))


def _relative(found: Iterable[Prediction], order: Prediction, sides: _Side) -> float | None:
    """How much less, if the reference is said to take so much more than what the proposal equals."""
    for one in found:
        theirs = stem(one.subject) == stem(order.reference) and one.form == "change" and one.quantity == order.quantity
        if theirs and one.low > 0:
            return 1 / (1 + one.low) - 1
    return None


def _bounds(found: tuple[Prediction, ...], sides: _Side) -> Iterator[Claim]:
    """Costs that change by so much, and counts that are at most so much."""
    for one in found:
        if not sides.is_proposed(one) or one.quantity == "accuracy":
            continue
        arm, name = sides.arm(one), _NAMES.get(one.quantity, one.quantity)
        reason = f"said to be about so much: {ABOUT:.0%} of it is left open" if one.approximate else ""
        if one.form == "change" and one.quantity in _COSTS:
            expected = one.low if abs(one.low) < abs(one.high) else one.high
            slack = ABOUT * abs(expected) if one.approximate else 0.0
            limit = 1 + expected + slack
            reference = one.reference or sides.plain
            text = f"{arm}'s {name} is at most {limit:.4g} times {reference}'s"
            yield _with(_claim("bound", one.quantity, arm, reference, text, reason), at_most=limit, expected=expected)
        elif one.form == "value" and one.quantity in ("active_share", "active_modules", "total_rank"):
            limit = one.high * (1 + ABOUT if one.approximate else 1)
            shown = f"{limit:.1%}" if one.quantity == "active_share" else f"{limit:.4g}"
            text = f"{arm}'s {name} is at most {shown}"
            yield _with(_claim("bound", one.quantity, arm, None, text, reason), at_most=limit)


def _merged(made: Iterable[Claim]) -> list[Claim]:
    """The same comparison once; the one with a number wins, and a test of gain or equality says more than no loss."""
    kept: dict[tuple[object, ...], Claim] = {}
    for one in made:
        key = (one.kind, one.quantity, stem(one.arm or ""), stem(one.reference or ""))
        if key not in kept or (kept[key].expected is None and one.expected is not None):
            kept[key] = one
    return list(kept.values())
