"""What changed between two hypotheses: field by field, word by word, claim by claim."""

import difflib
import re
from collections.abc import Iterable
from typing import Literal, TypeAlias

from pydantic import Field

from rankwise.research.artefacts import Artefact, Claim, Hypothesis

FIELDS = (
    "title",
    "open_problems",
    "method",
    "experimental_setup",
    "primary_metric",
    "expected_result",
    "expected_conclusion",
    "experimental_code",
)
AROUND = 6
"""Unchanged words shown on each side of a change."""
Kind: TypeAlias = Literal["same", "removed", "added"]


class Piece(Artefact):
    """A stretch of text that both have, or one of them."""

    kind: Kind
    text: str


class FieldDifference(Artefact):
    """What changed in one field; its pieces in order make up both texts."""

    field: str
    removed: int = Field(ge=0, description="words that are gone")
    added: int = Field(ge=0, description="words that are new")
    pieces: tuple[Piece, ...]


class ClaimDifference(Artefact):
    """What became of one claim. `changed` maps a key to its values before and after."""

    id: str
    kind: Literal["removed", "added", "changed"]
    text: str
    changed: dict[str, tuple[object, object]] = Field(default_factory=dict)


class Difference(Artefact):
    """Everything that changed between two hypotheses."""

    fields: tuple[FieldDifference, ...] = ()
    claims: tuple[ClaimDifference, ...] = ()
    why: str = Field(default="", description="what the later one says about its changes")

    @property
    def same(self) -> bool:
        """Did nothing change?"""
        return not self.fields and not self.claims


def between(before: Hypothesis, after: Hypothesis) -> Difference:
    """What changed from one hypothesis to another."""
    pairs = ((name, getattr(before, name), getattr(after, name)) for name in FIELDS)
    fields = tuple(_field(name, old, new) for name, old, new in pairs if old != new)
    return Difference(fields=fields, claims=_claims(before.claims, after.claims), why=after.changes)


def text(difference: Difference) -> str:
    """The difference for people: `[-gone-]` and `{+new+}`, unchanged words left out but for a few."""
    if difference.same:
        return "no difference"
    lines = []
    for field in difference.fields:
        lines += [f"{field.field}  (-{field.removed} +{field.added} words)", *_indented(_shown(field.pieces)), ""]
    if difference.claims:
        lines += ["claims", *(line for claim in difference.claims for line in _claim_lines(claim)), ""]
    if difference.why:
        lines += ["why", *_indented(difference.why)]
    return "\n".join(lines).rstrip()


def _field(name: str, old: str, new: str) -> FieldDifference:
    first, second = _tokens(old), _tokens(new)
    pieces: list[Piece] = []
    # With autojunk, words that are everywhere in a long text are no anchors: else it takes time with their square.
    for kind, a, b, c, d in difflib.SequenceMatcher(None, first, second, autojunk=True).get_opcodes():
        if kind == "equal":
            pieces.append(Piece(kind="same", text="".join(first[a:b])))
            continue
        pieces += [Piece(kind="removed", text="".join(first[a:b]))] * (b > a)
        pieces += [Piece(kind="added", text="".join(second[c:d]))] * (d > c)
    words = {
        kind: sum(len(piece.text.split()) for piece in pieces if piece.kind == kind) for kind in ("removed", "added")
    }
    return FieldDifference(field=name, pieces=tuple(pieces), **words)


def _tokens(text: str) -> list[str]:
    """Words with the space behind them, so that they join to the text again."""
    return re.findall(r"\s+|\S+\s?", text)


def _shown(pieces: Iterable[Piece]) -> str:
    marks = {"removed": "[-{}-]", "added": "{{+{}+}}"}
    parts = []
    for piece in pieces:
        if piece.kind == "same":
            parts.append(_middle_out(piece.text))
            continue
        bare = piece.text.rstrip()
        parts.append(marks[piece.kind].format(bare) + (piece.text[len(bare) :] or " "))
    return "".join(parts)


def _middle_out(text: str) -> str:
    words = _tokens(text)
    if len(words) <= 2 * AROUND + 2:
        return text
    return f"{''.join(words[:AROUND])}… {''.join(words[-AROUND:])}"


def _claims(before: tuple[Claim, ...], after: tuple[Claim, ...]) -> tuple[ClaimDifference, ...]:
    old, new = {claim.id: claim for claim in before}, {claim.id: claim for claim in after}
    found = []
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new:
            found.append(ClaimDifference(id=name, kind="removed", text=old[name].text))
        elif name not in old:
            found.append(ClaimDifference(id=name, kind="added", text=new[name].text))
        elif old[name] != new[name]:
            first, second = old[name].model_dump(mode="json"), new[name].model_dump(mode="json")
            changed = {key: (first[key], second[key]) for key in first if first[key] != second[key]}
            found.append(ClaimDifference(id=name, kind="changed", text=new[name].text, changed=changed))
    return tuple(found)


def _claim_lines(claim: ClaimDifference) -> list[str]:
    mark = {"removed": "-", "added": "+", "changed": "~"}[claim.kind]
    changes = [f"      {key}: {before!r} -> {after!r}" for key, (before, after) in claim.changed.items()]
    return [f"  {mark} {claim.id}  {claim.text}", *changes]


def _indented(text: str) -> list[str]:
    return [f"  {line}".rstrip() for line in text.splitlines()]
