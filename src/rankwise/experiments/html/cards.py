"""A verdict as a card: what is claimed, what came out, how sure that is, and what it rests on."""

import math
from dataclasses import dataclass

from rankwise.experiments.claim_tests import ClaimResult
from rankwise.experiments.html.draw_claims import draw_claim
from rankwise.experiments.html.pictures import Picture
from rankwise.experiments.html.words import interval, number, p_value, some
from rankwise.experiments.plan import MAIN, ClaimConfig
from rankwise.experiments.verdicts import ClaimVerdict, Word

SYMBOLS: dict[Word, str] = {
    "supported": "✓",
    "refuted": "✗",
    "inconclusive": "?",
    "not tested": "○",
    "not testable": "⊘",
}
"""Beside the word and its colour, so that neither is needed to tell verdicts apart."""


@dataclass(frozen=True)
class Card:
    """A verdict as the page shows it; `facts` are terms with what they are."""

    verdict: ClaimVerdict
    symbol: str
    kind: str
    asks: str
    facts: tuple[tuple[str, str], ...]
    more: tuple[tuple[str, str], ...]
    picture: Picture | None


def card_of(verdict: ClaimVerdict) -> Card:
    """The card of one verdict."""
    return Card(
        verdict,
        SYMBOLS[verdict.word],
        verdict.word.replace(" ", "-"),
        asks(verdict.claim),
        facts(verdict),
        more(verdict),
        draw_claim(verdict),
    )


def asks(claim: ClaimConfig) -> str:
    """What a claim compares, in one line."""
    if claim.arm is None or claim.reference is None:
        return ""
    where = [f"on {', '.join(claim.tasks)}" if claim.tasks else "", f"at {', '.join(claim.budgets or ())}"]
    place = " ".join(part for part in where if part not in ("", "at "))
    margin = f", margin {claim.margin:g}" if claim.margin else ""
    margin += f", at most {claim.at_most:g}" if claim.at_most is not None else ""
    margin += f", at least {claim.at_least:g}" if claim.at_least is not None else ""
    return f"{claim.arm} against {claim.reference}, {claim.kind} in {_measure(claim)}{margin} {place}".strip()


def facts(verdict: ClaimVerdict) -> tuple[tuple[str, str], ...]:
    """Every number behind the word."""
    result = verdict.result
    if result is None:
        return ()
    ratio = result.scale == "ratio"
    unit = f"{_measure(verdict.claim)}, {'arm / reference' if ratio else 'arm minus reference'}"
    counted = math.isnan(result.p)
    kind = "range of the values" if counted else f"{1 - 2 * result.alpha:.0%} interval"
    found = [
        ("estimate", f"{number(result.estimate, sign=not ratio)}{_error(result)} ({unit})"),
        (kind, interval(result.low, result.high, sign=not ratio)),
        ("claimed", _claimed(result)),
        ("p", f"{p_value(result.p)}; adjusted for all claims: {p_value(verdict.adjusted)}; level {result.alpha:g}"),
        ("n", _size(result)),
    ]
    if counted:
        found[3] = ("p", p_value(result.p))
    if (floor := verdict.floor) is not None:
        text = f"{number(floor.run)} {interval(floor.low, floor.high)} by seed alone{_scale(result)}"
        found.append(("noise floor", text))
    return (*found, ("note", result.note)) if result.note else tuple(found)


def more(verdict: ClaimVerdict) -> tuple[tuple[str, str], ...]:
    """How it was tested: for those who want to check."""
    result = verdict.result
    if result is None:
        return ()
    found = [("test", result.method)]
    if verdict.detectable is not None:
        text = f"{number(verdict.detectable)} beyond the margin is what so many runs could be expected to find"
        found.append(("could see", text + _scale(result)))
    if verdict.floor is not None:
        what = "standard deviation of one run by seed, from runs of the reference arm; with its 95% interval"
        found.append(("noise floor", what))
    return tuple(found)


def _scale(result: ClaimResult) -> str:
    return " (logarithm of the ratio)" if result.scale == "ratio" else ""


def _error(result: ClaimResult) -> str:
    """The standard error beside a difference; a ratio's is on another scale, and its interval stands below."""
    if result.evidence is None or not math.isfinite(result.evidence.se) or result.scale == "ratio":
        return ""
    return f" ± {number(result.evidence.se)} SE"


def _measure(claim: ClaimConfig) -> str:
    words = {MAIN: "the main metric", "premise": "the premise's rank correlation"}
    return words.get(claim.metric, claim.metric.replace("_", " "))


def _claimed(result: ClaimResult) -> str:
    what = "the true ratio" if result.scale == "ratio" else "the true difference"
    if math.isinf(result.above):
        return f"{what} is below {number(result.below)}"
    if math.isinf(result.below):
        return f"{what} is above {number(result.above)}"
    return f"{what} is between {number(result.above)} and {number(result.below)}"


def _size(result: ClaimResult) -> str:
    seeds = sorted(set(result.seeds))
    each = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"{each} paired {'seed' if seeds == [1] else 'seeds'} × {some(result.tasks, 'task and budget')}".replace(
        "task and budgets", "tasks and budgets"
    )


def word_counts(verdicts: tuple[ClaimVerdict, ...]) -> list[tuple[str, str, str, int]]:
    """Symbol, word, style class and how often, for every word there is."""
    words = [verdict.word for verdict in verdicts]
    return [(SYMBOLS[w], w, w.replace(" ", "-"), words.count(w)) for w in SYMBOLS if w in words]
