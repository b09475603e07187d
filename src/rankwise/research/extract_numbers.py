"""Numbers in what a hypothesis expects, with what they are about. Deterministic; what is not understood is left out.

A text is read clause by clause. A number's unit, the words after it, the words before it and the clause's label say
what it measures; names of methods nearby say which side it is about and what it is compared with.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from rankwise.research.artefacts import Claim, Quantity
from rankwise.research.extract_names import Mention, methods
from rankwise.research.wording import clauses, plain

Form: TypeAlias = Literal["value", "change", "share_of_gain", "within", "order", "equal"]
"""`value`: 92.5 %; `change`: +0.5 points or -60 %; `share_of_gain`: 90 % of another's gain; `within`: ± 2 %, the margin
of an equality; `order`: A > B; `equal`: A ≈ B."""


@dataclass(frozen=True)
class Prediction:
    """One expected number or comparison.

    `low` and `high` are shares (92.5 % is 0.925; +0.5 points of accuracy is 0.005; FLOPs cut by 60 % is -0.6), counts
    for ranks and modules, and 0 for comparisons without a number. `subject` and `reference` are methods as the text
    calls them, empty where it names none. `variant` is what the subject is changed in (`without the gate`).
    """

    text: str
    quantity: Quantity
    form: Form
    low: float = 0.0
    high: float = 0.0
    subject: str = ""
    reference: str = ""
    variant: str = ""
    approximate: bool = False
    claim: str = ""
    """The claim that it comes from; empty: read from text."""

    @property
    def where(self) -> str:
        """Its place in a hypothesis."""
        return f"claims.{self.claim}" if self.claim else "expected_result"


_QUANTITIES: tuple[tuple[Quantity, str], ...] = (
    ("train_seconds", r"training[- ](?:wall-?)?time|wall-?(?:clock|time)|training cost|training (?:is|runs)|"
                      r"trains? (?:\w+ ){0,2}(?:faster|slower)|train(?:ing)? (?:faster|slower)"),
    ("inference_flops", r"(?<!training )flops?\b|inference comput\w+|inference cost"),
    ("latency_ms", r"latency"),
    ("adapter_memory", r"(?:gpu |adapter )?(?:memory|ram)\b|adapter storage"),
    ("parameters", r"param(?:eter)?s?\b(?:[- ]count)?"),
    ("total_rank", r"\branks?\b(?! (?:branch|head|adaptation|allocation))"),
    ("active_modules", r"active (?:layers?|adapters?|modules?|blocks?)|(?:layers?|adapters?|modules?|blocks?) "
                       r"(?:are |stay |is )?(?:active|used|kept|executed|open)|(?:lora )?(?:layers?|adapters?|modules?)"
                       r"(?: (?:active|kept|used))|of (?:the )?(?:lora )?(?:layers|adapters|modules)"),
    ("accuracy", r"accuracy|score points?|points?\b|\bpts?\b|\bscores?\b|\bacc\b|\bmatthews\b|\bf1\b"),
)  # fmt: skip
_COMPILED = tuple((name, re.compile(pattern, re.I)) for name, pattern in _QUANTITIES)
_SIGNS = {"↓": "-", "↑": "+"}
_TOKEN = re.compile(
    r"(?<![\w.])(?P<within>±\s?|\+/-\s?)?(?P<sign>[+\-↓↑]\s?)?(?P<low>\d{1,9}(?:\.\d{1,6})?)"
    r"(?:\s?(?:-|to)\s?(?P<high>\d{1,9}(?:\.\d{1,6})?))?(?:\s?(?P<unit>%|percent\b|per cent\b|points?\b|pts?\b|pp\b))?"
)
_DOWN = (
    r"\b(?:drops?|reduc\w+|sav(?:e|es|ed|ing|ings)|fewer|less|lower|cuts?|decreas\w+|falls?|faster|shrinks?|smaller)\b"
)
_UP = r"\b(?:slower|more|increas\w+|overhead|extra|longer|higher|gains?|improve\w*)\b"
_ARRIVES = re.compile(
    r"\b(?:drops?|falls?|rises?|reverts?|down|up|reach(?:es)?)(?:[ \w]{0,30})\b(?:to|reach(?:es)?)\b", re.I
)
_GAIN = re.compile(r"^\s*of\s+(?:the\s+)?[\w' -]{0,40}\b(?:gain|improvement|benefit)\b", re.I)
_VARIANT = re.compile(
    r"\b(?:without|removing|remove|ablating)\s+(?:the\s+)?((?:[\w-]+ ){0,2}?(?:branch|gates?|gating|head|router|"
    r"penalty|"
    r"ranks?|regulari[sz]er)(?: branch| head)?)\b|((?:too (?:large|high|small|low|strong)\s)?λ\w*\s(?:too (?:large|"
    r"high|low|small)\s)?"
    r"\([^)]{1,20}\))",
    re.I,
)
_COMPARED = re.compile(r"\b(?:over|vs\.?|versus|than|against|relative to|compared (?:to|with))\s+(?:the\s+)?$", re.I)


@dataclass(frozen=True)
class _Token:
    match: re.Match[str]
    before: str
    after: str

    @property
    def percent(self) -> bool:
        return (self.match["unit"] or "") in ("%", "percent", "per cent")

    @property
    def points(self) -> bool:
        return bool(self.match["unit"]) and not self.percent

    @property
    def sign(self) -> str:
        sign = (self.match["sign"] or "").strip()
        return _SIGNS.get(sign, sign)


@lru_cache(maxsize=256)
def predictions(text: str, *also: str) -> tuple[Prediction, ...]:
    """Every number and comparison of an expected result, in its order; `also` are further names of methods."""
    found: list[Prediction] = []
    for line in plain(text).splitlines():
        subject = ""
        for clause in clauses(line):
            own = list(_of_clause(clause, also))
            found += [one if one.subject or one.form == "equal" else replace(one, subject=subject) for one in own]
            first = methods(clause, *also)[:1]
            subject = subject or next(
                (one.name for one in first if one.start < 30 and not _is_reference(clause, one)), ""
            )
    return tuple(found)


def _of_clause(clause: str, also: tuple[str, ...]) -> Iterator[Prediction]:
    named = methods(clause, *also)
    yield from _comparisons(clause, named)
    last: Quantity | None = None
    for token in _tokens(clause, named):
        quantities = _about(token, clause, last)
        for quantity in quantities:
            if (made := _prediction(token, quantity, clause, named)) is not None:
                yield made
        last = quantities[0] if quantities else last


def _tokens(clause: str, named: tuple[Mention, ...]) -> Iterator[_Token]:
    """Numbers that are not part of a name, a label or an assignment, with the words up to their neighbours."""
    matches = [m for m in _TOKEN.finditer(clause) if not _no_measure(clause, m, named)]
    for index, match in enumerate(matches):
        start = matches[index - 1].end() if index else 0
        end = matches[index + 1].start() if index + 1 < len(matches) else len(clause)
        yield _Token(
            match,
            clause[max(start, match.start() - 80) : match.start()],
            clause[match.end() :][: end - match.end()][:80],
        )


def _no_measure(clause: str, match: re.Match[str], named: tuple[Mention, ...]) -> bool:
    before, after = clause[: match.start()].rstrip("≈~ "), clause[match.end() :]
    if any(one.start <= match.start() < one.end for one in named):
        return True
    if re.search(r"[=∈/]\s*$|λ\s*$|\b(?:seed|seeds|r|rank|λ\w*|top|step|epoch|round)\s*=\s*$|\($", before):
        bracket = before.endswith("(") and (match["sign"] or match["unit"])
        return not bracket
    label = match.start() == 0 and re.match(r"\s*[.):]", after) is not None
    return (
        label
        or re.match(r"e[-+]?\d|\.\d|\w", after) is not None
        or bool(re.match(r"\s?(?:epochs?|steps?|seeds?)\b", after))
    )


def _about(token: _Token, clause: str, last: Quantity | None) -> tuple[Quantity, ...]:
    """What a number measures: what follows it, what precedes it, its neighbour's, the clause's label."""
    after = re.split(r"[,;(]| and | with ", token.after, maxsplit=1)[0]
    follows = _keywords(after)
    if follows and not _GAIN.match(token.after):
        return (follows[0],)
    if _GAIN.match(token.after):
        return ("accuracy",)
    if token.match["unit"] is None and token.before.rstrip().endswith(("(", "≈(")) and last is not None and token.sign:
        return (last,)
    near = re.split(r"[;)]|, (?!and)", token.before)[-1]
    if token.percent and re.search(r"\b(?:reach\w*|attain\w*|scor\w+|achiev\w+)\s*\W{0,3}$", token.before, re.I):
        return ("accuracy",)
    precedes = _keywords(near)
    if len(precedes) > 1 and re.search(r"\band\b", near) and re.search(f"{_DOWN}|{_UP}", near, re.I):
        return tuple(dict.fromkeys(precedes))
    if precedes:
        return (precedes[-1],)
    if token.match["within"] or token.sign:
        label = _keywords(clause.partition(":")[0])
        return (label[0],) if label else ((last,) if last else ())
    if token.points or (token.percent and 40 <= float(token.match["low"]) <= 100):
        return ("accuracy",)
    return ()


def _keywords(text: str) -> list[Quantity]:
    """Quantities named in a text, in its order."""
    found = [(match.start(), name) for name, pattern in _COMPILED if (match := pattern.search(text))]
    return [name for _, name in sorted(found, key=lambda item: item[0])]


def _prediction(token: _Token, quantity: Quantity, clause: str, named: tuple[Mention, ...]) -> Prediction | None:
    low, high = float(token.match["low"]), float(token.match["high"] or token.match["low"])
    share = token.percent or token.points or (quantity == "accuracy")
    if not share and quantity not in ("total_rank", "active_modules"):
        return None
    if quantity in ("active_modules", "total_rank") and token.percent:
        quantity = "active_share" if quantity == "active_modules" else quantity
    scale = 0.01 if share else 1.0
    form, factor = _form(token, quantity)
    ends = sorted((low * scale * factor, high * scale * factor))
    subject, reference = _sides(token, clause, named)
    variant = _VARIANT.search(clause[: token.match.start()])
    words = _variant(variant) if variant else ""
    approximate = (
        re.search(r"[≈~]\s?$|\b(?:about|around|roughly|only ~?)\s?$", clause[: token.match.start()]) is not None
    )
    return Prediction(clause, quantity, form, ends[0], ends[1], subject, reference, words, approximate)


def _variant(match: re.Match[str]) -> str:
    """`without the gate`, `with λ too high (0.4)`."""
    words = " ".join((match[1] or match[2]).split())
    return f"without {words}" if match[1] else f"with {words[0].lower()}{words[1:]}"


def _form(token: _Token, quantity: Quantity) -> tuple[Form, float]:
    """What kind of number it is, and the sign that words give it."""
    if token.match["within"] or re.search(r"\b(?:within|margin)(?: an?| of| margin| the)*\s$", token.before, re.I):
        return "within", 1.0
    if _GAIN.match(token.after):
        return "share_of_gain", 1.0
    if token.sign:
        return "change", -1.0 if token.sign == "-" else 1.0
    near = f"{re.split(r'[;,]', token.before)[-1]} {re.split(r'[;,(]', token.after)[0]}"
    if quantity == "accuracy":
        if token.points:
            return "change", -1.0 if re.search(_DOWN, near, re.I) else 1.0
        return "value", 1.0
    if quantity in ("active_modules", "active_share", "total_rank") or _ARRIVES.search(token.before):
        return "value", 1.0
    if re.search(_DOWN, near, re.I):
        return "change", -1.0
    if re.search(_UP, near, re.I):
        return "change", 1.0
    return "value", 1.0


def _sides(token: _Token, clause: str, named: tuple[Mention, ...]) -> tuple[str, str]:
    """The method that a number is about and the one it is compared with."""
    start, end = token.match.start(), token.match.end()
    before = [one for one in named if one.end <= start]
    after = [one for one in named if one.start >= end and one.start < end + len(token.after)]
    if after and re.search(r"^[^,;]*\bfor\s+$", clause[end : after[0].start], re.I):
        return after[0].name, ""
    if before and re.search(r"\bwhich reports?\b[^,;)]*$", clause[:start]):
        return before[-1].name, ""
    references = [one for one in before if _is_reference(clause, one)]
    subjects = [one for one in before if one not in references]
    last = before[-1:] if before and before[-1] in subjects else subjects[:1]
    compared = [one for one in after if _is_reference(clause, one)] or (after if _GAIN.match(token.after) else [])
    reference = compared[:1] or references[-1:]
    return next((one.name for one in last), ""), next((one.name for one in reference), "")


def _is_reference(clause: str, one: Mention) -> bool:
    """Does it stand behind `over`, `vs`, `than` …?"""
    return _COMPARED.search(clause[: one.start]) is not None


_RELATION = re.compile(
    r"^\s*(≈|~=|~|=|>|<|≥|≤|≫|matches|equals|beats|outperforms|exceeds|(?:is|are) (?:identical|equal) to)\s*$", re.I
)
_EQUAL = ("≈", "~=", "~", "=", "matches", "equals")


def _comparisons(clause: str, named: tuple[Mention, ...]) -> Iterator[Prediction]:
    """`A ≈ B > C` pair by pair, `identical to B`, `faster than B`, `B or better`."""
    quantity = _compared_in(clause, clause, "")
    chain: list[tuple[Mention, str, Mention]] = []
    for left, right in pairwise(named):
        if relation := _RELATION.match(clause[left.end : right.start]):
            chain.append((left, relation[1].lower(), right))
    for index, (left, sign, right) in enumerate(chain):
        form: Form = "equal" if sign in _EQUAL or "identical" in sign or "equal to" in sign else "order"
        about = _compared_in(clause, clause[: left.start], clause[right.end :])
        if sign in ("<", "≤"):
            left, right = right, left
        yield Prediction(clause, about, form, subject=left.name, reference=right.name)
        before = chain[index - 1] if index else None
        if form == "order" and before is not None and before[1] in _EQUAL and before[2] is left:
            yield Prediction(clause, about, "order", subject=before[0].name, reference=right.name)
    for one in named:
        lead = clause[: one.start]
        if re.search(r"\b(?:identical|equal) to\s+$", lead, re.I) and not any(one is pair[2] for pair in chain):
            yield Prediction(clause, quantity, "equal", reference=one.name)
        if match := re.search(r"\b(faster|cheaper|better|slower) than\s+$", lead, re.I):
            about = "train_seconds" if match[1].lower() in ("faster", "slower") else quantity
            yield Prediction(clause, about, "order", reference=one.name)


def _compared_in(clause: str, head: str, tail: str) -> Quantity:
    """What a comparison is about: what follows it (`in accuracy`), the clause's label, the one quantity it names."""
    follows = re.match(r"\s*(?:in|on|for|of)\s+([^,;(]{1,60})", tail)
    label = head.partition(":")[0] if ":" in head else ""
    everything = _keywords(clause)
    for found in (_keywords(follows[1]) if follows else [], _keywords(label)):
        if found:
            return found[0]
    return everything[0] if len(set(everything)) == 1 else "accuracy"


def given(claims: Iterable[Claim]) -> Iterator[Prediction]:
    """Numbers of claims that are data already, in the form of numbers that are read from text."""
    for one in claims:
        if one.kind == "not-testable":
            continue
        sides: dict[str, Any] = {"subject": one.arm or "", "reference": one.reference or "", "claim": one.id}
        change = one.expected if one.expected is not None else None if one.at_most is None else one.at_most - 1
        counted = one.quantity in ("total_rank", "active_share", "active_modules", "other")
        if one.quantity == "accuracy" and one.expected:
            yield Prediction(one.text, "accuracy", "change", one.expected, one.expected, **sides)
        elif one.quantity != "accuracy" and not counted and change:
            yield Prediction(one.text, one.quantity, "change", change, change, **sides)
        else:
            yield Prediction(one.text, one.quantity, "equal" if one.kind == "equivalence" else "order", **sides)
