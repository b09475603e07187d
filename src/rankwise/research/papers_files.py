"""Papers out of PDF, Markdown and text: split by headings into the fields of a paper, word for word.

Nobody summarises here: every statement is a paragraph of the paper, and its passage is that paragraph. `summaries`
asks a language model for a shorter one.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rankwise.errors import ConfigError, Finding, MissingPackageError
from rankwise.research.artefacts import Paper, Statement
from rankwise.research.papers_entries import arxiv_in, doi_in, named
from rankwise.research.records_text import read_text

SUFFIXES = (".pdf", ".txt", ".md", ".markdown", ".text")
MAX_PDF_BYTES = 100_000_000
MAX_PAGES = 300
MAX_CHARACTERS = 2_000_000
"""Characters of a paper; the rest is not read."""
FIELD_CHARACTERS = 12_000
"""Characters of one field: whole paragraphs from its beginning."""
LEAST_PARAGRAPH = 40
LONGEST_PARAGRAPH = 1_500

_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "contributions": ("abstract", "introduction", "contribution", "summary", "overview"),
        "limitations": ("limitation", "broader impact", "threats to validity", "failure case"),
        "future": ("future", "conclusion", "conclusions", "concluding", "discussion", "outlook"),
        "result": ("result", "results", "ablation", "analysis", "findings", "comparison"),
        "setup": ("experiment", "setup", "setting", "implementation", "dataset", "evaluation", "benchmark", "baseline"),
        "methodology": (
            "method",
            "approach",
            "model",
            "algorithm",
            "preliminar",
            "formulation",
            "framework",
            "our ",
            "adaptation",
        ),
        "": (
            "reference",
            "bibliography",
            "acknowledg",
            "appendix",
            "supplement",
            "related work",
            "background",
            "checklist",
        ),
    }
)
"""Field -> beginnings of words in a heading that belong to it; the first that fits. Empty: left out."""

_HEADING = re.compile(
    r"^(?:#{1,6}[ \t]+(?P<marked>[^\n]{1,120}?)[ \t#]*"
    r"|(?P<number>\d{1,2}(?:\.\d{1,2}){0,3}\.?|[A-Z](?:\.\d{1,2})+\.?|[A-Z]\.)[ \t]+"
    r"(?P<numbered>[A-Z][^\n]{2,80}?)(?<![.,;:])"
    r"|(?P<plain>(?:abstract|introduction|background|methods?|methodology|approach|experiments?|results?|discussion"
    r"|conclusions?|limitations?|references|bibliography|acknowledge?ments?|appendix|related work"
    r"|future work|contributions?|evaluation))"
    r"[ \t]*[.:]?)[ \t]*$",
    re.M | re.I,
)
_RULE = re.compile(r"^([^\n]{2,100})\n(?:=+|-{3,})[ \t]*$", re.M)
_RUN_IN = re.compile(r"^[ \t]*(?:\*\*)?(Abstract)(?:\*\*)?[ \t]*[.:—–-]+[ \t]*(?=\S)", re.M | re.I)
_STAMP = re.compile(r"arXiv:\S{9,18}\s+\[[\w.-]+\]\s+\d{1,2} \w{3} (\d{4})")


@dataclass(frozen=True)
class Source:
    """A paper's own words."""

    name: str
    text: str
    title: str = ""
    authors: tuple[str, ...] = ()
    year: int | None = None
    unread: str = ""
    """What stands behind the words that were read, if the file is too long to read all of it."""


def read_source(path: str | Path) -> Source:
    """The words of a PDF, a text or a Markdown file.

    Raises:
        ConfigError: the file cannot be read, is too large, is encrypted, or holds no text (a scan).
        MissingPackageError: a PDF, and no reader of PDF is installed.
    """
    path = Path(path)
    if path.suffix.lower() == ".pdf":
        return _pdf(path)
    text = read_text(path)
    return Source(path.name, text[:MAX_CHARACTERS], unread=_unread(len(text), MAX_CHARACTERS, "characters"))


def paper_of(source: Source) -> Paper:
    """The paper, split by its headings. Without headings all of it counts as contributions.

    Raises:
        ConfigError: there is no text, no line that could be the title, or no paragraph.
    """
    text = _readable(source)
    title = source.title or _title(text)
    if not title:
        raise ConfigError(source.name, [Finding("", "no text in it; a paper has at least a title")])
    parts = _shared(list(_parts(text.replace(title, "", 1))))
    if not any(parts.values()):
        raise ConfigError(source.name, [Finding("", f"holds no paragraph of {LEAST_PARAGRAPH} characters or more")])
    result = "\n\n".join(one.text for one in parts.pop("result", []))
    head = text[:4_000]
    said: dict[str, Any] = {field: tuple(found) for field, found in parts.items() if found}
    return Paper(
        id=named(title, source.authors, source.year),
        title=title,
        authors=source.authors,
        year=source.year,
        doi=doi_in(head),
        arxiv=arxiv_in(head) if "arxiv" in head.lower() else None,
        source=source.name,
        result=result or None,
        **said,
    )


def _shared(parts: Sequence[tuple[str, str, str]]) -> dict[str, list[Statement]]:
    """The paragraphs of every field, its characters shared among its sections: each has its first paragraph as long as
    there is room, and what one does not need is left to the next."""
    counts = Counter(field for _, field, _ in parts)
    kept: dict[str, list[Statement]] = {}
    left: dict[str, int] = {}
    for _, field, body in parts:
        if not field:
            continue
        found, room = kept.setdefault(field, []), left.get(field, 0) + FIELD_CHARACTERS // counts[field]
        taken = 0
        for paragraph in _paragraphs(body):
            full = sum(len(one.text) for one in found) + len(paragraph) > FIELD_CHARACTERS
            if full or (taken and taken + len(paragraph) > room):
                break
            found.append(Statement(text=paragraph, passage=paragraph))
            taken += len(paragraph)
        left[field] = room - taken
    return kept


def field_of(heading: str) -> str | None:
    """The field that a heading begins; empty: a part that is left out; None: the field before goes on."""
    words = f" {re.sub(r'[^a-z ]+', ' ', heading.lower())} "
    for field in ("", *(name for name in _WORDS if name)):
        if any(f" {word}" in words for word in _WORDS[field]):
            return field
    return None


def sections(source: Source) -> Iterator[tuple[str, str]]:
    """Headings with the text below them, in the order of the paper; first what stands above the first heading.
    References, acknowledgements and appendices are left out."""
    yield from ((heading, body) for heading, field, body in _parts(_readable(source)) if field)


def _readable(source: Source) -> str:
    """The text with one kind of heading, and with `Abstract.` in front of a sentence as a heading of its own."""
    return _RUN_IN.sub(r"\1\n\n", _RULE.sub(r"# \1", source.text))


def _parts(text: str) -> Iterator[tuple[str, str, str]]:
    """Heading, field and body of every part. The field is empty for parts that are left out."""
    marks = list(_HEADING.finditer(text))
    yield "", "contributions", text[: marks[0].start()] if marks else text
    field = "contributions"
    for number, mark in enumerate(marks):
        heading = (mark["marked"] or mark["numbered"] or mark["plain"]).strip()
        known = field_of(heading)
        if known is not None:
            field = known
        elif field in ("contributions", "") and "." not in (mark["number"] or "").rstrip("."):
            field = "methodology" if number else "contributions"  # methods are headed by their names
        end = marks[number + 1].start() if number + 1 < len(marks) else len(text)
        yield heading, field, text[mark.end() : end]


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs on one line each; what is shorter than a sentence (page numbers, captions) is left out. PDF knows no
    paragraphs: what is too long for one is cut between sentences."""
    for block in re.split(r"\n[ \t]*\n", text):
        said = " ".join(re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", block).split())
        while len(said) > LONGEST_PARAGRAPH:
            ends = [match.end() for match in re.finditer(r"[.!?](?= )", said[:LONGEST_PARAGRAPH])]
            at = ends[-1] if ends else LONGEST_PARAGRAPH
            yield said[:at]
            said = said[at:].lstrip()
        if len(said) >= LEAST_PARAGRAPH:
            yield said


def _title(text: str) -> str:
    """The first line that could be one: letters, not an address or a number."""
    for line in text.splitlines()[:60]:
        plain = " ".join(line.strip(" #*\t").split())
        said = re.sub(r"^title:\s*", "", plain, flags=re.I)
        if len(said) >= 5 and sum(sign.isalpha() for sign in said) > len(said) / 2 and "@" not in said:
            return said[:300]
    return ""


def _pdf(path: Path) -> Source:
    try:
        import pypdf
    except ImportError:
        raise MissingPackageError('reading PDF needs pypdf: pip install "rankwise[research]"') from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells about every oddity of a file
    try:
        if path.stat().st_size > MAX_PDF_BYTES:
            raise ConfigError(str(path), [Finding("", f"is larger than {MAX_PDF_BYTES:,} bytes")])
        with path.open("rb") as file:
            return _read_pdf(pypdf.PdfReader(file), path)
    except FileNotFoundError:
        raise ConfigError(str(path), [Finding("", "no such file")]) from None
    except OSError as error:
        raise ConfigError(str(path), [Finding("", f"cannot be read: {error.strerror or error}")]) from None
    except ConfigError:
        raise
    except Exception as error:  # a PDF can be broken in more ways than its reader has errors for
        raise ConfigError(str(path), [Finding("", f"is no PDF that can be read ({str(error)[:200]})")]) from None


def _read_pdf(reader: Any, path: Path) -> Source:  # noqa: ANN401 - a pypdf.PdfReader, imported lazily
    if reader.is_encrypted and not reader.decrypt(""):
        raise ConfigError(str(path), [Finding("", "is protected by a password")])
    parts, size = [], 0
    for page in reader.pages[:MAX_PAGES]:
        parts.append(page.extract_text())
        size += len(parts[-1])
        if size > MAX_CHARACTERS:
            break
    text = "\n\n".join(parts)[:MAX_CHARACTERS]
    if sum(sign.isalpha() for sign in text) < LEAST_PARAGRAPH:
        raise ConfigError(str(path), [Finding("", "holds no text (a scan?); text recognition is not part of this")])
    said = reader.metadata or {}
    names = re.split(r"\s*[;,]\s*", str(said.get("/Author") or ""))
    title = " ".join(str(said.get("/Title") or "").split())
    year = _STAMP.search(text[:20_000])  # the date of a PDF file is not that of the paper
    sound = len(title) >= 8 and " " in title and not re.search(r"\.(?:docx?|tex|pdf|dvi)\b|^untitled", title, re.I)
    return Source(
        path.name,
        text,
        title if sound else "",
        tuple(name for name in names if name),
        int(year[1]) if year else None,
        _unread(len(reader.pages), len(parts), "pages"),
    )


def _unread(there: int, read: int, what: str) -> str:
    return f"{there - read:,} of {there:,} {what}" if there > read else ""
