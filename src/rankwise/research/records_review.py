"""A machine review of a paper, read from the page it was published on."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from rankwise.errors import ConfigError, Finding
from rankwise.research.artefacts import Paper, Statement
from rankwise.research.imported import Imported, ImportedReview
from rankwise.research.papers_entries import arxiv_in, named
from rankwise.research.parse import text_of
from rankwise.research.records_text import Document

HEADINGS: Mapping[str, str] = MappingProxyType(
    {
        "core claim": "core_claim",
        "what carries the argument": "what_carries_the_argument",
        "if this is right": "if_this_is_right",
        "reading between the lines": "reading_between_lines",
        "load bearing premise": "load_bearing_premise",
        "what would settle it": "what_would_settle_it",
        "read the original abstract": "abstract",
        "original abstract": "abstract",
        "abstract": "abstract",
        "editorial analysis": "editorial",
        "referee report": "referee_report",
        "simulated authors rebuttal": "rebuttal",
        "simulated author s rebuttal": "rebuttal",
        "simulated rebuttal": "rebuttal",
        "authors rebuttal": "rebuttal",
        "rebuttal": "rebuttal",
        "circularity check": "circularity",
        "axiom free parameter ledger": "ledger",
        "free parameter ledger": "ledger",
        "ledger": "ledger",
        "discussion": "discussion",
        "discussion 0": "discussion",
        "forward citations": "forward_citations",
        "reference graph": "reference_graph",
        "references": "reference_graph",
    }
)
"""Headings of such a page -> key in `ImportedReview.sections`. `summary` and `significance` come out of the report,
`pith` and `argument` out of what stands above the core claim."""

_NUMBERED = re.compile(r"^[ \t]*(?:\d{1,4}[.)]|\[\d{1,4}\])(?:[ \t]*\[\d{1,4}\])?[ \t]*", re.M)
_COMMENTS = re.compile(r"^[ \t]*(major|minor)[ \t]+comments?\b[^\n]*$", re.M | re.I)
_COUNTS = re.compile(r"(?<!\d)(\d{1,4})[ \t]+major[ \t]*/[ \t]*(\d{1,4})[ \t]+minor", re.I)
_REPLY = re.compile(
    r"^[ \t]*Authors?[ \t]*:[ \t]*(.*?)(?=^[ \t]*(?:\d+[.)][ \t]*)?Referee[ \t]*:|\Z)", re.M | re.S | re.I
)
_MODEL = re.compile(r"\bmodel[ \t:]+([\w.:/-]+)", re.I)
_LABEL = re.compile(r"^(?P<field>[a-z-]+\.[A-Z]{2}|[a-z-]+)[ \t]+(?P<date>\d{4}-\d{2})[ \t]+(?P<label>.+?)$")


def is_review(document: Document) -> bool:
    """Is the text such a page? (Two of its headings, and no answer of a model behind it.)"""
    found = {name for _, _, name in _headings(document.text)}
    return {"core_claim", "referee_report"} <= found or len(found & set(HEADINGS.values())) >= 4


def read_review(document: Document) -> Imported:
    """The review, and the paper that it is about as the only prior paper.

    Raises:
        ConfigError: the page ends before its parts do, or has no core claim.
    """
    text = document.text
    head, sections = _sections(text)
    title, authors = _title(head)
    arxiv = arxiv_in(head)
    if not sections.get("core_claim"):
        raise ConfigError(document.source, [Finding("core_claim", "the review has no section `Core claim` with text")])
    if not title:
        raise ConfigError(document.source, [Finding("title", "no title of the reviewed paper above the core claim")])
    pith, argument = _pith(head)
    sections |= {name: said for name, said in (("pith", pith), ("argument", argument)) if said}
    report = sections.get("referee_report", "")
    sections |= {name: said for name in ("summary", "significance") if (said := _part(report, name))}
    comments = _comments(report)
    found = _MODEL.search(head)
    review = ImportedReview(
        title=title,
        arxiv=arxiv,
        model=found[1] if found else "",
        sections={name: said for name, said in sections.items() if name != "editorial"},
        major=comments["major"],
        minor=comments["minor"],
        responses=tuple(_line(match) for match in _REPLY.findall(sections.get("rebuttal", ""))),
        cited_by=tuple(_cited_by(sections.get("forward_citations", ""))),
        references=tuple(_items(sections.get("reference_graph", ""))),
        authors=authors,
    )
    _check_whole(document, review)
    paper = _subject(review, document.source, head)
    return Imported("review", document.source, review.model, title, papers=(paper,), review=review)


def _headings(text: str) -> Iterator[tuple[int, int, str]]:
    """Where a heading stands, where its line ends, and its key."""
    position = 0
    for row in text.split("\n"):
        if len(row) < 200:
            line = re.sub(r"[^a-z0-9]+", " ", row.lower().replace("'", "").replace("’", "")).strip()
            line = re.sub(r".*\breading between (?:the )?lines$", "reading between the lines", line)
            if line in HEADINGS:
                yield position, position + len(row), HEADINGS[line]
        position += len(row) + 1


def _sections(text: str) -> tuple[str, dict[str, str]]:
    found = list(_headings(text))
    ends = [start for start, _, _ in found[1:]] + [len(text)]
    sections: dict[str, str] = {}
    for (_, begin, name), end in zip(found, ends, strict=False):
        if said := text[begin:end].strip():
            sections.setdefault(name, said)
    return text[: found[0][0]] if found else text, sections


def _title(head: str) -> tuple[str, tuple[str, ...]]:
    """The title stands right above the authors, a line of names with commas; else it is the longest early line."""
    lines = [line.strip() for line in head.splitlines()[:40] if line.strip()]
    for number, line in enumerate(lines[1:], start=1):
        names = [name.strip() for name in re.split(r",|;| and ", line)]
        if len(names) > 1 and all(re.fullmatch(r"[^\W\d][\w.'’ -]{1,60}", name) and " " in name for name in names):
            return lines[number - 1], tuple(names)
    said = [line for line in lines if line.lower().startswith("title:")]
    return (said[0].partition(":")[2].strip(), ()) if said else ("", ())


def _pith(head: str) -> tuple[str, str]:
    """The one-sentence reading and the paragraph behind it, above the core claim."""
    parts = re.split(r"^[ \t#]*(?:the )?pith[ \t:]*$", head, maxsplit=1, flags=re.M | re.I)
    if len(parts) < 2:
        return "", ""
    paragraphs = [_line(one) for one in re.split(r"\n\s*\n", parts[1].strip()) if one.strip()]
    return paragraphs[0] if paragraphs else "", paragraphs[-1] if len(paragraphs) > 1 else ""


def _part(report: str, name: str) -> str:
    found = re.search(rf"^[ \t]*{name}[.:][ \t]*(.+?)(?=\n\s*\n|\Z)", report, re.M | re.S | re.I)
    return _line(found[1]) if found else ""


def _comments(report: str) -> dict[str, tuple[str, ...]]:
    marks = list(_COMMENTS.finditer(report))
    ends = [mark.start() for mark in marks[1:]] + [len(report)]
    found = {"major": (), "minor": ()} | {
        mark[1].lower(): tuple(_items(report[mark.end() : end])) for mark, end in zip(marks, ends, strict=False)
    }
    return found


def _items(text: str) -> Iterator[str]:
    """The entries of a numbered list, each on one line."""
    starts = list(_NUMBERED.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    for match, end in zip(starts, ends, strict=False):
        if said := _line(text[match.end() : end]):
            yield said


def _cited_by(text: str) -> Iterator[str]:
    """Citing papers: `Title (field date, label): what they do`."""
    starts = list(re.finditer(r"^[ \t]*\d{1,4}[.)][ \t]+", text, re.M))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    for match, end in zip(starts, ends, strict=False):
        lines = [line.strip() for line in text[match.end() : end].splitlines() if line.strip()]
        label = _LABEL.match(lines[1]) if len(lines) > 1 else None
        if not label:
            yield " ".join(lines)
        else:
            said = f": {' '.join(lines[2:])}" if lines[2:] else ""
            yield f"{lines[0]} ({label['field']} {label['date']}, {label['label']}){said}"


def _check_whole(document: Document, review: ImportedReview) -> None:
    """The page says how many of each there are; fewer mean that it was cut."""
    text = document.text
    counts = _COUNTS.search(text)
    said = {
        "major comments": (int(counts[1]) if counts else 0, len(review.major)),
        "minor comments": (int(counts[2]) if counts else 0, len(review.minor)),
        "responses": (_count(r"(?<!\d)(\d{1,4}) responses?\b", text), len(review.responses)),
        "citing papers": (_count(r"Cited by (\d{1,4})\b", text), len(review.cited_by)),
        "references": (_count(r"(?<!\d)(\d{1,4}) extracted references", text), len(review.references)),
    }
    for what, (wanted, there) in said.items():
        if there < wanted:
            raise document.cut(len(text), f"with {there} of {wanted} {what}")


def _count(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _subject(review: ImportedReview, source: str, head: str) -> Paper:
    abstract = text_of(review.sections.get("abstract"))
    found = re.search(r"\b(?:submitted|published)\W+(\d{4})-\d{2}", head)
    year = int(found[1]) if found else None
    told = (Statement(text=abstract, passage=abstract),) if abstract else ()
    name = named(review.title, review.authors, year)
    return Paper(
        id=name,
        title=review.title,
        authors=review.authors,
        year=year,
        arxiv=review.arxiv,
        source=source,
        contributions=told,
    )


def _line(text: str) -> str:
    return " ".join(text.split())
