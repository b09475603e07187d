"""Papers as text for a prompt: quoted data that cannot end its own quotation, cut fairly to a number of characters.

What is cut first is code, then the ends of long fields, the same for every paper. No paper is left out as long as
there is room for its title, and whatever is cut says so.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from rankwise.research.artefacts import MAX_TEXT, Paper, Papers, Statement
from rankwise.research.prompts import quote
from rankwise.research.verbatim import visible

LEAST = 500
"""Characters that `quoted` needs at least."""
_FIELDS = (
    ("contributions", "Contributions", 2),
    ("methodology", "Methodology", 2),
    ("limitations", "Limitations", 1),
    ("future", "Future research", 1),
    ("setup", "Experimental setup", 1),
    ("result", "Experiment result", 1),
)
_ALL = 100 * MAX_TEXT
"""A limit per field that no field reaches; what is above it is for code."""
_WAYS = ((len(_FIELDS), _ALL, _ALL), (len(_FIELDS), 150, _ALL - 1), (2, 80, _ALL - 1), (1, 60, _ALL - 1))
"""Ways to write papers, best first: how many fields, and the smallest and largest limit of a field."""
_SENTENCE = re.compile(r".*[.!?][\"')\]]?(?=\s)", re.DOTALL)


def quoted(papers: Papers | Sequence[Paper], characters: int) -> str:
    """All papers as quoted data in at most `characters` characters; the same papers give the same text.

    Raises:
        ValueError: fewer than `LEAST` characters.
    """
    if characters < LEAST:
        raise ValueError(f"papers need at least {LEAST} characters in a prompt, got {characters}")
    listed = papers.papers if isinstance(papers, Papers) else tuple(papers)
    if not listed:
        return "(no papers)"
    code = max(len(one.code or "") for one in listed)
    for fields, least, longest in _WAYS:
        size = _largest(listed, fields, least, longest + (code if longest == _ALL else 0), characters)
        if size is not None:
            return _written(listed, fields, size)
    return _titles(listed, characters)


def entry(paper: Paper) -> str:
    """Everything that the project knows of a paper's content, for checking quotations against."""
    parts = [paper.title]
    for name, _, _ in _FIELDS:
        value = getattr(paper, name)
        parts += (
            [value or ""] if not isinstance(value, tuple) else [t for s in value for t in (s.text, s.passage or "")]
        )
    return "\n".join(filter(None, [*parts, paper.code]))


def _largest(papers: Sequence[Paper], fields: int, least: int, longest: int, characters: int) -> int | None:
    """The largest limit of a field that fits; None if not even `least` does."""

    frames = [len(quote(_label(one), "")) for one in papers]  # no digest of everything at every try

    def fits(limit: int) -> bool:
        size = len(_note(fields)) + 2 * (len(papers) - 1)
        for one, frame in zip(papers, frames, strict=True):
            size += frame + sum(len(line) + 1 for line in _lines(one, fields, limit)) - 1
            if size > characters:
                return False
        return True

    if not fits(least):
        return None
    low, high = least, longest + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _written(papers: Iterable[Paper], fields: int, limit: int) -> str:
    quotes = (quote(_label(one), "\n".join(_lines(one, fields, limit))) for one in papers)
    return _note(fields) + "\n\n".join(quotes)


def _label(paper: Paper) -> str:
    return f"paper {paper.id}"


def _note(fields: int) -> str:
    shown = " and ".join(label.lower() for _, label, _ in _FIELDS[:fields])
    return f"(Of each paper only title and {shown} fit in here.)\n\n" if fields < len(_FIELDS) else ""


def _lines(paper: Paper, fields: int, limit: int) -> Iterator[str]:
    """A paper with the first `fields` of its fields. A limit above `_ALL` leaves prose whole, the rest is for code."""
    yield f"Title: {visible(paper.title)}"
    who = ", ".join(paper.authors[:3]) + (" and others" if len(paper.authors) > 3 else "")
    told = [
        who,
        str(paper.year or ""),
        f"doi:{paper.doi}" if paper.doi else "",
        f"arXiv:{paper.arxiv}" if paper.arxiv else "",
    ]
    if any(told) and fields > 1:
        yield f"By: {visible('; '.join(filter(None, told)))[:300]}"
    for name, label, share in _FIELDS[:fields]:
        if text := _field(paper, name):
            yield f"{label}: {_cut(text, share * limit)}"
    if paper.code and limit > _ALL:
        yield f"Code: {_cut(_visible(paper.code), limit - _ALL)}"
    elif paper.code and fields == len(_FIELDS):
        yield "Code: [left out]"


def _field(paper: Paper, name: str) -> str:
    value: tuple[Statement, ...] | str | None = getattr(paper, name)
    return _visible("\n".join(one.text for one in value) if isinstance(value, tuple) else value or "")


@lru_cache(maxsize=16_384)
def _visible(text: str) -> str:
    return visible(text)


def _cut(text: str, limit: int) -> str:
    """The beginning of a text, to the end of a sentence if there is one near, and how much is missing."""
    if len(text) <= limit:
        return text
    kept = text[:limit]
    if end := _SENTENCE.match(kept):
        kept = kept[: end.end()] if end.end() > limit * 0.6 else kept
    return f"{kept.rstrip()} [cut: {len(text) - len(kept):,} of {len(text):,} characters]".lstrip()


def _titles(papers: Sequence[Paper], characters: int) -> str:
    """Ids and titles only, as many as fit, and how many do not."""
    said = f"(only ids and titles fit into {characters:,} characters)\n"
    lines = [f"{one.id}: {' '.join(visible(one.title).split())[:120]}" for one in papers]
    room = characters - len(said) - 220
    kept, used = [], 0
    for line in lines:
        used += len(line) + 1
        if used > room:
            break
        kept.append(line)
    left = len(papers) - len(kept)
    more = f"\n({left:,} more papers are left out for want of room)" if left else ""
    return said + quote("papers", "\n".join(kept)) + more
