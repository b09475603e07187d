"""Which papers are the same one, and one entry out of several.

Two papers taken for one lose a paper for good, so what could be another paper stays one: identifiers that differ, other
authors, a digit or a name that differs in the title.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from rankwise.research.artefacts import Paper, Papers, Statement
from rankwise.research.papers_entries import STATEMENTS, arxiv_in, doi_in, surname, with_own_ids

YEARS_APART = 3
"""A preprint and its publication are rarely further apart."""
LONG_WORD = 7
"""Letters of a word in which one slip does not make another word."""
_SPELLINGS = (
    ("isation", "ization"),
    ("ise", "ize"),
    ("ising", "izing"),
    ("ised", "ized"),
    ("our", "or"),
    ("lling", "ling"),
)


def merge(papers: Papers | Iterable[Paper]) -> Papers:
    """One entry per paper. Of duplicates the first keeps its id and its place; of each field the one that says most is
    kept, and `merged` names what went into an entry. Entries that are already merged stay as they are."""
    before = papers if isinstance(papers, Papers) else Papers(papers=tuple(papers))
    after = _joined(before)
    while len(after.papers) < len(before.papers):  # what is joined knows more identifiers than its parts
        before, after = after, _joined(after)
    return after


def news(known: Papers, papers: Iterable[Paper]) -> tuple[Paper, ...]:
    """The papers that are new, or that say something of a known paper that its entry does not say."""
    by_name: dict[str, list[Paper]] = defaultdict(list)
    for entry in known.papers:
        for name in _names(entry):
            by_name[name].append(entry)

    def is_news(paper: Paper) -> bool:
        near = (entry for name in _names(paper) for entry in by_name[name])
        return not any(same(entry, paper) and _one((entry, paper)) == entry for entry in near)

    return tuple(paper for paper in papers if is_news(paper))


def _joined(before: Papers) -> Papers:
    groups: list[list[Paper]] = []
    entries: list[Paper] = []
    known: dict[str, list[int]] = defaultdict(list)
    for paper in before.papers:
        near = sorted({group for name in _names(paper) for group in known[name]})
        number = next((group for group in near if same(entries[group], paper)), len(groups))
        if number == len(groups):
            groups.append([paper])
            entries.append(paper)
        else:
            groups[number].append(paper)
            entries[number] = _one(groups[number])
        for name in _names(paper):
            if number not in known[name]:
                known[name].append(number)
    made = with_own_ids(entries)
    merged: dict[str, tuple[str, ...]] = {}
    for paper, members in zip(made, groups, strict=True):
        titles = [title for one in members for title in before.merged.get(one.id, ())]
        titles += [one.title for one in members[1:]]
        if titles:
            merged[paper.id] = tuple(titles)
    return Papers(papers=made, merged=merged)


def same(one: Paper, other: Paper) -> bool:
    """Are two entries the same paper? In doubt: no."""
    arxiv, doi = _ids(one, other)
    if arxiv is False or (doi is False and arxiv is not True):
        return False
    if arxiv or doi:
        return True
    if not same_title(one.title, other.title):
        return False
    if one.authors and other.authors:
        if not _families(one) & _families(other):
            return False
    elif len(title_words(one.title)) < 3:  # `Editorial`: a title that many papers have
        return one.contributions == other.contributions and one.year == other.year
    return not (one.year and other.year and abs(one.year - other.year) > YEARS_APART)


def same_title(one: str, other: str) -> bool:
    """The same title up to case, punctuation, hyphens, British spelling, and one slip in one long word."""
    first, second = title_words(one), title_words(other)
    if "".join(first) == "".join(second):
        return bool(first)
    if len(first) != len(second) or len(first) < 4:
        return False
    different = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    return len(different) == 1 and _slip(*different[0])


@lru_cache(maxsize=20_000)
def title_words(title: str) -> tuple[str, ...]:
    """The words of a title in one form. A plus and a sharp belong to names: LoRA+ is not LoRA."""
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", title).casefold())
    text = "".join(sign for sign in text if not unicodedata.combining(sign))
    text = re.sub(r"(?<=\w)['’](?=s\b)", "", text)
    words = re.findall(r"[^\W_]+[+#]*", text)
    return tuple(_spelling(word) for word in words)


def _spelling(word: str) -> str:
    for british, american in _SPELLINGS:
        if len(word) > len(british) + 2 and word.endswith(british):
            return word[: -len(british)] + american
    return word


def _slip(one: str, other: str) -> bool:
    """One letter missing, added, other or swapped within a long word, not at its beginning (un-, in-, a- say no) and no
    digit."""
    if min(len(one), len(other)) < LONG_WORD or one[:3] != other[:3] or not (one + other).isalpha():
        return False
    short, long = sorted((one, other), key=len)
    at = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(short) == len(long):
        return short[at + 1 :] == long[at + 1 :] or (
            short[at : at + 2] == long[at : at + 2][::-1] and short[at + 2 :] == long[at + 2 :]
        )
    return len(long) - len(short) == 1 and short[at:] == long[at + 1 :]


def _names(paper: Paper) -> tuple[str, ...]:
    """Names under which duplicates of a paper are looked for: identifiers, and both halves of its title, of which a
    slip changes one at most."""
    words = title_words(paper.title)
    half = len(words) // 2
    found = [f"title:{''.join(words)}", f"start:{len(words)}:{words[:half]}", f"end:{len(words)}:{words[half:]}"]
    found += [f"arxiv:{arxiv_in(paper.arxiv) or paper.arxiv}"] if paper.arxiv else []
    found += [f"doi:{doi_in(paper.doi) or paper.doi}"] if paper.doi else []
    return tuple(found)


def _ids(one: Paper, other: Paper) -> tuple[bool | None, bool | None]:
    """Do arXiv numbers and DOIs agree? None: one of them is not known."""

    def agree(first: str | None, second: str | None) -> bool | None:
        return first.lower() == second.lower() if first and second else None

    arxiv = agree(*(arxiv_in(p.arxiv or "") or p.arxiv for p in (one, other)))
    return arxiv, agree(*(doi_in(p.doi or "") or p.doi for p in (one, other)))


def _families(paper: Paper) -> set[str]:
    return {"".join(title_words(surname(author))) for author in paper.authors}


def _one(group: Sequence[Paper]) -> Paper:
    """One entry out of several: the first one's name, the richest of every field, all sources."""
    first = group[0]
    if len(group) == 1:
        return first
    kept: dict[str, Any] = {field: max((getattr(p, field) for p in group), key=_richness) for field in STATEMENTS}
    kept |= {
        field: max((getattr(p, field) for p in group), key=lambda text: len(text or "")) for field in ("code", "result")
    }
    kept["authors"] = max((p.authors for p in group), key=len)
    for field in ("year", "doi", "arxiv"):
        kept[field] = next((value for p in group if (value := getattr(p, field))), None)
    kept["source"] = "; ".join(dict.fromkeys(part for p in group for part in p.source.split("; ") if part))
    return first.model_copy(update=kept)


def _richness(statements: tuple[Statement, ...]) -> tuple[int, int]:
    """Statements that show where they come from count most, then how much they say."""
    return sum(one.passage is not None for one in statements), sum(len(one.text) for one in statements)
