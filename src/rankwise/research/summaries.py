"""A paper's summary by a language model, each statement with the words of the paper that say so.

Passages are compared with the paper, whatever the model says; one that is not in it goes back to the model.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from rankwise.research.artefacts import Artefact, Paper, Statement, Words
from rankwise.research.asking import Asker
from rankwise.research.papers_entries import STATEMENTS, arxiv_in, doi_in, named, surname
from rankwise.research.papers_files import Source, sections
from rankwise.research.project import Made
from rankwise.research.prompts import quote, render
from rankwise.research.verbatim import found, visible

CHARACTERS = 60_000
"""Characters of a paper that a model reads; of a longer one every section is cut at its end alike."""
LEAST_WORDS = 5
LISTS = ("contributions", "methodology", "setup", "limitations", "future", "results")


class Said(Artefact):
    """One thing that a paper says, and its words for it."""

    text: Words = Field(description="one sentence of yours")
    passage: Words = Field(description="words of the paper that say so, copied character by character")


class Summary(Artefact):
    """What a language model is asked for."""

    title: Words
    authors: tuple[str, ...] = Field(default=(), max_length=500)
    year: int | None = Field(default=None, ge=1800, le=2200)
    contributions: tuple[Said, ...] = Field(min_length=1, max_length=12)
    methodology: tuple[Said, ...] = Field(default=(), max_length=12)
    setup: tuple[Said, ...] = Field(default=(), max_length=12)
    limitations: tuple[Said, ...] = Field(default=(), max_length=12)
    future: tuple[Said, ...] = Field(default=(), max_length=12)
    results: tuple[Said, ...] = Field(default=(), max_length=12)


def summarise(source: Source, asker: Asker) -> tuple[Paper, Made]:
    """The paper with a model's summary, and how it was made.

    Raises:
        ModelAnswerError: no summary whose passages are in the paper.
        LimitError: a limit is reached.
    """
    prompt = render("summarise", words=str(LEAST_WORDS), paper=quote("paper", excerpt(source)))
    answer = asker.ask(prompt, Summary, lambda summary: problems(summary, source))
    summary = answer.content
    head = source.text[:4_000]
    authors, year = summary.authors or source.authors, summary.year or source.year
    fields: dict[str, Any] = {
        name: tuple(Statement(**one.model_dump()) for one in getattr(summary, name)) for name in LISTS[:5]
    }
    paper = Paper(
        id=named(summary.title, authors, year),
        title=summary.title,
        authors=authors,
        year=year,
        doi=doi_in(head),
        arxiv=arxiv_in(head) if "arxiv" in head.lower() else None,
        source=source.name,
        result="\n".join(f"{one.text} ({one.passage})" for one in summary.results) or None,
        **fields,
    )
    return paper, answer.made


def is_summary_of(paper: Paper, source: Source) -> bool:
    """Was the paper summarised from this source? Its passages are the source's words, its texts are not."""
    said = [one for field in STATEMENTS for one in getattr(paper, field)]
    short = [one for one in said if one.passage and one.passage != one.text]
    from_it = source.name in paper.source.split("; ")
    return bool(from_it and short) and all(found(one.passage or "", source.text) for one in short)


def problems(summary: Summary, source: Source) -> Sequence[str]:
    """What is wrong with a summary: a title, an author, a year or a passage that is not in the paper."""
    text = f"{source.title}\n{' '.join(source.authors)}\n{source.text}"
    lower = text.casefold()
    wrong = []
    if not found(summary.title.casefold(), lower):
        wrong.append(f"title: {summary.title[:120]!r} is not in the paper")
    for author in summary.authors:
        if not found(surname(author).casefold(), lower):
            wrong.append(f"authors: {author[:80]!r} is not in the paper")
    if summary.year is not None and str(summary.year) not in text and summary.year != source.year:
        wrong.append(f"year: {summary.year} is not in the paper; leave it out")
    for name in LISTS:
        for number, one in enumerate(getattr(summary, name)):
            where = f"{name}[{number}].passage"
            if len(one.passage.split()) < LEAST_WORDS:
                wrong.append(f"{where}: {one.passage[:80]!r} is shorter than {LEAST_WORDS} words")
            elif not found(one.passage, text):
                wrong.append(f"{where}: {one.passage[:120]!r} is not in the paper word for word")
    return wrong


def excerpt(source: Source, characters: int = CHARACTERS) -> str:
    """What a model reads of a paper: all of it, or every section from its beginning, each as far as there is room."""
    text = visible(source.text).strip()
    if len(text) <= characters:
        return text
    parts = [visible(f"{heading}\n{body.strip()}".strip()) for heading, body in sections(source)]
    low, high = 0, characters
    while high - low > 1:
        middle = (low + high) // 2
        size = sum(min(len(part), middle) + 60 for part in parts)
        low, high = (middle, high) if size <= characters else (low, middle)
    cut = "\n[cut: {:,} characters of this section]"
    kept = [part if len(part) <= low else part[:low] + cut.format(len(part) - low) for part in parts]
    return "\n\n".join(kept)[:characters]
