"""Rules on a list of prior papers."""

import difflib
import re
from collections.abc import Iterator

from rankwise.research.artefacts import Defect, Paper
from rankwise.research.checks.registry import Subject, defect, rule
from rankwise.research.wording import plain, short

ALIKE = 0.95
"""Similarity of two titles that are taken for one."""
LONG = 10_000
"""Characters of code in a summary that are a listing, not a summary."""
_SUBJECT = (
    r"fine-?tun|parameter-efficient|\bPEFT\b|low-rank|\bLoRA\b|adapters?\b|prefix|prompt|language model|transformer|"
    r"pre-?train"
)
_ABSENT = (
    r"not (?:present|found|included|implemented|explicitly implement\w*)|does not (?:contain|implement|include)|no "
    r"(?:explicit )?(?:implementation|code)|"
    r"are not present|not found within"
)


def key(title: str) -> str:
    """A title without case, punctuation and spaces."""
    return re.sub(r"[\W_]+", "", plain(title).casefold())


@rule("dedupe_studies", "papers", 83)
def duplicates(subject: Subject) -> Iterator[Defect]:
    """Every paper is there once."""
    seen: dict[str, Paper] = {}
    for paper in subject.papers:
        title = key(paper.title)
        close = title if title in seen else next(iter(_close(title, seen)), None)
        if close is not None and title:
            same = "the same title" if close == title else f"nearly the title of {seen[close].id}"
            yield defect(
                f'"{short(paper.title)}" is there twice ({same})', 83, where=f"papers.{paper.id}", level="warning"
            )
        seen.setdefault(title, paper)


def _close(title: str, seen: dict[str, Paper]) -> list[str]:
    """Titles that differ in a few characters; those of quite another length are not compared."""
    near = [other for other in seen if abs(len(other) - len(title)) <= 3 and other[:3] == title[:3]]
    return difflib.get_close_matches(title, near, n=1, cutoff=ALIKE) if len(title) > 20 else []


@rule("papers_useful", "papers", 23, 83)
def off_topic(subject: Subject) -> Iterator[Defect]:
    """Papers are about the subject that most of them have."""
    related = [bool(_about(paper)) for paper in subject.papers]
    if sum(related) * 2 <= len(related) or len(related) < 2:
        return
    for paper, fits in zip(subject.papers, related, strict=True):
        if not fits:
            text = f'"{short(paper.title)}" is about neither fine-tuning nor language models, as most of the list is'
            item = 83 if re.search(r"curricul|reinforcement|\bRL\b|\bhyper-?parameter", _head(paper), re.I) else 23
            yield defect(text, item, where=f"papers.{paper.id}", level="note")


def _head(paper: Paper) -> str:
    parts = [paper.title, *(one.text[:1500] for one in paper.contributions)]
    return plain(" ".join(parts))


def _about(paper: Paper) -> bool:
    title = re.search(_SUBJECT, plain(paper.title), re.I) is not None
    return title or len(re.findall(_SUBJECT, _head(paper), re.I)) >= 2


@rule("papers_useful", "papers", 23, 83)
def code_of_another(subject: Subject) -> Iterator[Defect]:
    """Code in a summary is the paper's own, and a summary."""
    for paper in subject.papers:
        said = plain(f"{(paper.code or '')[:4000]}\n{(paper.result or '')[:4000]}")
        if re.search(_ABSENT, said, re.I):
            text = (
                f'"{short(paper.title)}": the summary says itself that the code it quotes does not hold the paper\'s '
                "method"
            )
            yield defect(text, 23, where=f"papers.{paper.id}", level="note")
        if paper.code and len(paper.code) > LONG:
            text = (
                f'"{short(paper.title)}": {len(paper.code):,} characters of code are quoted; they crowd out what it '
                "says"
            )
            yield defect(text, 83, where=f"papers.{paper.id}", level="note")
