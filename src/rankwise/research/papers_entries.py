"""A paper out of an object that somebody else wrote: a record's summary, our own entry, a line of a list."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from pydantic import ValidationError

from rankwise.errors import Finding
from rankwise.research.artefacts import Paper, Statement
from rankwise.research.parse import HYPOTHESIS, PAPER, renamed, text_of
from rankwise.research.project import findings

STATEMENTS = ("contributions", "methodology", "setup", "limitations", "future")
"""Fields of a paper that are made of statements, in the order in which they matter."""
_SHOWS_A_PAPER = {"contributions", "methodology", "setup", "limitations", "future", "result", "code"}
_SHOWS_A_HYPOTHESIS = {"open_problems", "expected_result", "expected_conclusion"}
_SMALL = frozenset(
    {"a", "an", "and", "are", "as", "at", "by", "for", "from", "in", "into", "is", "of", "on", "or", "the", "to"}
    | {"towards", "via", "with", "without"}
)
_NOTHING = frozenset(
    {"not mentioned", "not mentioned.", "n/a", "none", "none.", "null", "not available", "unknown", "-"}
)
_ARXIV = re.compile(r"(?<![\d.])(\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?:v\d+)?(?![\d.]*\d)", re.I)
_DOI = re.compile(r"\b(10\.\d{4,9}/[^\s\"<>{}|\\^`]+)", re.I)
_YEAR = re.compile(r"\b(1[89]\d\d|20\d\d|21\d\d)\b")


def is_paper(value: Mapping[str, Any]) -> bool:
    """Does an object look like a paper (and not like a hypothesis, or something else)?"""
    if _SHOWS_A_HYPOTHESIS & renamed(value, HYPOTHESIS).keys():
        return False
    parts = renamed(value, PAPER)
    return bool(_SHOWS_A_PAPER & parts.keys()) or (
        "title" in parts and bool({"doi", "arxiv", "authors"} & parts.keys())
    )


def paper_from(value: Mapping[str, Any], source: str, where: str) -> tuple[Paper | None, tuple[Finding, ...]]:
    """The paper that an object describes, or what is wrong with it. `where` names the object in findings.

    The id is the object's own or made of authors, year and title (`named`); it may occur twice (`with_own_ids`).
    """
    parts = renamed(value, PAPER)
    title = re.sub(r"\s+", " ", text_of(parts.get("title"), 2_000))
    if not title:
        return None, (Finding(where, f"has no title; its parts are {', '.join(map(str, value))[:200] or 'none'}"),)
    read: dict[str, Any] = {field: statements(parts.get(field)) for field in STATEMENTS}
    read |= {field: _said(parts.get(field)) for field in ("code", "result")}
    read |= {"title": title, "authors": _authors(parts.get("authors")), "year": _year(parts.get("year"))}
    read |= {"doi": doi_in(text_of(parts.get("doi"))), "arxiv": arxiv_in(text_of(parts.get("arxiv")))}
    read |= {"source": source, "id": text_of(parts.get("id"), 200) if _good_id(parts.get("id")) else ""}
    read["doi"], read["arxiv"] = _one_name(read["doi"], read["arxiv"])
    read["id"] = read["id"] or named(title, read["authors"], read["year"])
    try:
        return Paper.model_validate(read), ()
    except ValidationError as error:
        return None, tuple(findings(error, where))


def statements(value: object) -> tuple[Statement, ...]:
    """Statements out of text, a list of texts, or a list of objects with `text` and `passage`."""
    items: Sequence[object] = value if isinstance(value, list | tuple) else [value]
    made = []
    for item in items:
        passage = None
        if isinstance(item, Mapping) and "text" in item:
            passage = text_of(item.get("passage")) or None
            item = item["text"]
        if text := _said(item):
            made.append(Statement(text=text, passage=passage))
    return tuple(made)


def named(title: str, authors: Sequence[str] = (), year: int | None = None) -> str:
    """A short name for a paper: `zhang-2023-adalora`, or words of its title if nobody says who wrote it and when."""
    words = _slug(title).split("-")
    main = [word for word in words if word not in _SMALL] or words
    if authors and year and (family := _slug(surname(authors[0]))):
        head = title.split(":")[0]
        first = _slug(head) if ":" in title and len(head.split()) <= 2 else main[0]
        return f"{family[:30]}-{year}-{first[:30]}".strip("-")
    while len("-".join(main[:7])) > 60 and len(main) > 1:
        main = main[: min(len(main), 7) - 1]
    name = "-".join(main[:7])[:60].strip("-")
    return name if len(name) > 2 else f"p-{sha256(title.encode()).hexdigest()[:8]}"


def with_own_ids(papers: Iterable[Paper], taken: Iterable[str] = ()) -> tuple[Paper, ...]:
    """The papers with ids that are unique and not among `taken`: the second of a name gets a digest of its title and
    identifiers, or a number if these are the same too."""
    used = set(taken)
    made = []
    for paper in papers:
        name, count = paper.id, 1
        if name in used:
            told = f"{paper.title}|{paper.doi}|{paper.arxiv}|{paper.year}"
            name = f"{paper.id[:100]}-{sha256(told.encode()).hexdigest()[:6]}"
        while name in used:
            count += 1
            name = f"{paper.id[:100]}-{count}"
        used.add(name)
        made.append(paper if name == paper.id else paper.model_copy(update={"id": name}))
    return tuple(made)


def surname(author: str) -> str:
    """The family name: what stands before the comma, or the last word."""
    before, comma, _ = author.partition(",")
    return before.strip() if comma else (author.split() or [""])[-1]


def arxiv_in(text: str) -> str | None:
    """An arXiv number in a text (`2303.10512`, also out of an address or a DOI of arXiv), without its version."""
    found = _ARXIV.search(text[:4_000])
    return found[1].lower() if found else None


def doi_in(text: str) -> str | None:
    """A DOI in a text, in lower case (DOIs do not tell cases apart), without the address around it."""
    found = _DOI.search(text[:20_000])
    return found[1].rstrip(".,;)]").lower() if found else None


def _one_name(doi: str | None, arxiv: str | None) -> tuple[str | None, str | None]:
    """arXiv gives each of its papers a DOI; that is the arXiv number again, not the DOI of a journal."""
    if doi and doi.startswith("10.48550/arxiv."):
        return None, arxiv or arxiv_in(doi.removeprefix("10.48550/arxiv."))
    return doi, arxiv


def _said(value: object) -> str | None:
    text = text_of(value)
    return None if text.casefold() in _NOTHING else text or None


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def _good_id(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,119}", value) is not None


def _authors(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = re.split(r" ?; ?| and |, (?=\S+ )", " ".join(value.split())[:20_000])
    names = []
    for item in value if isinstance(value, list | tuple) else ():
        if isinstance(item, Mapping):
            item = item.get("name") or " ".join(str(item[k]) for k in ("given", "family") if item.get(k))
        if isinstance(item, str) and item.strip():
            names.append(" ".join(item.split())[:300])
    return tuple(names[:2_000])


def _year(value: object) -> int | None:
    found = _YEAR.search(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    return int(found[1]) if found else None
