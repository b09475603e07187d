"""Text as authors write it, made plain enough to be read by code: characters, clauses, words nearby."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

LONGEST = 2_000
"""Characters of a clause that are looked at; longer ones are cut."""
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—−﹣－"), "-")
_QUOTES = {ord("’"): "'", ord("‘"): "'", ord("“"): '"', ord("”"): '"', ord("ʼ"): "'"}
_CLAUSE = re.compile(
    r"\n+|;|•|(?<=[A-Za-z0-9)%])(?<!\bvs)(?<!e\.g)(?<!i\.e)(?<!\bcf)(?<!\bet al)(?<!Corr)\.(?=\s+\W{0,2}[A-Z0-9(])|"
    r"(?=\((?:i{1,3}|iv|v|[1-9a-h])\)\s)"
)
_NOT = re.compile(r"\b(?:not|never|no|without|nor|cannot|neither|isn't|aren't|doesn't|don't|instead of)\b", re.I)


@lru_cache(maxsize=512)
def plain(text: str) -> str:
    """One kind of dash, quote and space; compatibility characters as what they stand for."""
    text = unicodedata.normalize("NFKC", text).translate(_DASHES).translate(_QUOTES)
    return re.sub(r"[^\S\n]+", " ", text)


def clauses(text: str) -> Iterator[str]:
    """Parts of a text that say one thing each: lines, sentences, items of a list."""
    for part in _CLAUSE.split(plain(text)):
        if part and (clause := part.strip()):
            yield clause[:LONGEST]


def clause_with(text: str, *patterns: str) -> str | None:
    """The first clause in which every pattern occurs (case ignored), or None."""
    found = [re.compile(pattern, re.I) for pattern in patterns]
    return next((clause for clause in clauses(text) if all(one.search(clause) for one in found)), None)


def denied(clause: str, position: int) -> bool:
    """Is what stands at `position` denied by a word shortly before it?"""
    return _NOT.search(clause[max(0, position - 40) : position]) is not None


def states(text: str, pattern: str) -> str | None:
    """The first clause in which the pattern occurs without being denied, or None."""
    found = re.compile(pattern, re.I)
    for clause in clauses(text):
        match = found.search(clause)
        if match and not denied(clause, match.start()):
            return clause
    return None


def short(text: str, characters: int = 90) -> str:
    """The beginning of a text as a quotation."""
    text = " ".join(text.split())
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"
