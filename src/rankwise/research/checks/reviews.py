"""Rules on a machine review: against the paper's entry, its own quotations, and what our methods need to be told."""

import re
from collections.abc import Iterator

from rankwise.research.artefacts import Defect, Paper
from rankwise.research.checks.registry import Subject, defect, listed, rule
from rankwise.research.checks.signals import paper_of
from rankwise.research.imported import ImportedReview
from rankwise.research.wording import clauses, plain, short

_QUOTED = ("abstract", "reference_graph", "references", "forward_citations")
_REPEATED = ("referee_report", "rebuttal", "summary", "significance", "pith", "argument")
"""Sections that hold others, or say the same again."""
_MAGNITUDE = re.compile(
    r"(?:magnitudes?|sizes?) of (?:the )?(?:its )?singular values?|singular[- ]value magnitudes?|singular values? "
    r"(?:whose magnitudes? )?(?:fall|are) below",
    re.I,
)
_DECIDES = re.compile(r"importan\w+|decid\w+|retain\w*|prun\w+|threshold|allocat\w+|\bread from\b|\bproxy\b", re.I)
_RUN_ID = re.compile(r"\b[a-z][a-z0-9_]*-[\w./+]+-s\d+-[0-9a-f]{6,}\b")
_DONE = re.compile(
    r"\b(?:we|authors) (?:have )?(?:added|run|ran|updated|computed|conducted|performed|included|repeated|expanded)\b|"
    r"\bnew results?\b|"
    r"\b(?:over|across) (?:\w+ )?(?:independent )?(?:runs|seeds)\b|\brevised manuscript\b|\brevision: yes\b|\bevery "
    r"\d+ steps\b",
    re.I,
)
_OVERHEAD = re.compile(
    r"(\d{1,3})(?:-(\d{1,3}))?\s?%[^.%\n]{0,40}(?:training time|on [\w .]{2,20} (?:and|compared))|training "
    r"time[^.%\n]{0,60}?(\d{1,3})\s?%",
    re.I,
)
_COMPARABLE = re.compile(
    r"(?:training )?(?:time|cost)\b[^.\n]{0,40}\b(?:comparable|same|similar|negligible|no overhead)|\bno (?:additional|"
    r"extra) (?:training )?(?:time|cost)",
    re.I,
)


def _said(review: ImportedReview) -> Iterator[tuple[str, str]]:
    """What the review itself says, by section; not what it quotes of the paper."""
    for name, text in review.sections.items():
        if name.lower() not in _QUOTED:
            yield name, plain(text)


def _subject_of(review: ImportedReview) -> str:
    """The method that is reviewed, by our name; empty if we have none."""
    title = plain(review.title).lower()
    return next((name for name in ("adalora", "lora", "glora") if re.search(rf"\b{name}\b", title)), "")


@rule("importance_score", "review", 84)
def importance(subject: Subject) -> Iterator[Defect]:
    """What decides in AdaLoRA is sensitivity times uncertainty over triplets, not a singular value's size."""
    review = subject.review
    if review is None or _subject_of(review) != "adalora":
        return
    paper = paper_of("adalora", subject.papers)
    quote = _quote(paper, r"sensitivity[^.]{0,80}uncertainty") if paper else ""
    source = f' ({paper.id}: "{quote}")' if paper and quote else " (arXiv 2303.10512)"
    own = [(name, text) for name, text in _said(review) if name not in _REPEATED]
    for name, text in (*own, *((f"major.{i}", plain(text)) for i, text in enumerate(review.major, start=1))):
        for clause in clauses(text):
            if _MAGNITUDE.search(clause) and _DECIDES.search(clause) and not re.search(r"sensitivit", clause, re.I):
                message = (
                    "singular-value magnitudes are said to decide; AdaLoRA scores a triplet by the smoothed "
                    "sensitivity "
                    "|weight x gradient| times its uncertainty, for the singular value and the mean of its "
                    f"vectors{source}"
                )
                yield defect(message, 84, where=f"review.{name}")
                break


def _quote(paper: Paper, pattern: str) -> str:
    for statement in (*paper.methodology, *paper.contributions, *paper.limitations):
        text = plain(statement.text)
        if match := re.search(pattern, text, re.I):
            return short(text[max(0, match.start() - 10) : match.end() + 10].strip(), 120)
    return ""


@rule("response_evidence", "review", 85)
def evidence(subject: Subject) -> Iterator[Defect]:
    """A response to a comment cites runs; what it says was done, without a run, was not done."""
    review = subject.review
    for number, text in enumerate(review.responses if review else (), start=1):
        done = _DONE.search(plain(text))
        if done and not _RUN_ID.search(text):
            around = plain(text)[max(0, done.start() - 20) : done.end() + 60].strip()
            message = f'"…{short(around)}" reports work without a single run; comment {number} stays open'
            yield defect(message, 85, where=f"review.responses.{number}")


def settings_of(method: str) -> dict[str, str]:
    """The settings that our version of a method has beyond what every method has: name to default."""
    from rankwise.experiments.schema import method_registry

    registry = method_registry()
    shared = {"name", "scaling", "dropout", "target_modules"}
    fields = registry[method].model_fields if method in registry else {}
    return {name: str(field.default) for name, field in fields.items() if name not in shared}


@rule("free_parameters", "review", 86)
def free_parameters(subject: Subject) -> Iterator[Defect]:
    """Settings that a method needs are counted."""
    review = subject.review
    if review is None or not (method := _subject_of(review)):
        return
    for name, text in _said(review):
        match = re.search(r"\b(\d{1,3}|no|zero) (?:explicit )?free param\w*", text, re.I)
        if match is None:
            continue
        count = int(match[1]) if match[1].isdigit() else 0
        own = settings_of(method)
        if count < len(own):
            shown = ", ".join(f"{key} {value}" for key, value in own.items())
            yield defect(f"{match[0]}; {method} has {len(own)} of its own ({shown})", 86, where=f"review.{name}")
            return


@rule("read_whole_paper", "review", 87)
def abstract_only(subject: Subject) -> Iterator[Defect]:
    """Comments are about the paper, not about what its abstract leaves out."""
    review = subject.review
    body = plain("\n".join([*(review.references if review else ()), *(review.sections.values() if review else ())]))
    tables = list(dict.fromkeys(re.findall(r"\bTable \d{1,2}\b", body)))
    for number, text in enumerate(review.major if review else (), start=1):
        if re.search(
            r"\babstract\b[^\n]{0,160}\b(?:but|without|supplies no|no numerical|does not)\b", plain(text), re.I
        ):
            also = f"; its own quotations have {listed(tables[:4])}" if tables else ""
            message = (
                f"comment {number} asks of the abstract what stands in the paper's body{also}: the body was not read"
            )
            yield defect(message, 87, where=f"review.major.{number}", level="warning")


@rule("cost_figures", "review", 88)
def overheads(subject: Subject) -> Iterator[Defect]:
    """Costs that are called comparable are those that the paper reports."""
    review = subject.review
    if review is None:
        return
    figures = _figures(review, subject.papers)
    for name, text in _said(review):
        for clause in clauses(text):
            if _COMPARABLE.search(clause) and figures:
                message = f"training time is called comparable; the paper reports {listed(figures)} more"
                yield defect(message, 88, where=f"review.{name}")


def _figures(review: ImportedReview, papers: tuple[Paper, ...]) -> list[str]:
    paper = paper_of(_subject_of(review), papers) if _subject_of(review) else None
    texts = [*review.references, *(one.text for one in (paper.limitations if paper else ()))]
    found: list[str] = []
    for text in texts:
        for clause in clauses(text):
            if "training time" in clause.lower() and re.search(r"addition|increas|extra|incur|overhead", clause, re.I):
                found += [f"{number} %" for number in re.findall(r"\b(\d{1,3})(?=\s?%)", clause)]
    return list(dict.fromkeys(found))


@rule("falsifier", "review", 89)
def falsifiers(subject: Subject) -> Iterator[Defect]:
    """What would settle a claim can come out against it, and says how sure is sure."""
    review = subject.review
    for name, text in _said(review) if review else ():
        if not re.search(r"settle|falsif|refut", name, re.I):
            continue
        every = re.search(
            r"(?:match\w*|beat\w*|equal\w*|exceed\w*|fail\w*)[^.]{0,60}\b(?:at )?(every|all) (?:budget|task|level|"
            r"setting|dataset)",
            text,
            re.I,
        )
        if every:
            message = (
                f"the claim is to fail only if it is beaten at {every[1]} level: one lucky level saves it. Name the "
                "level, the margin, "
                "the seeds and the interval before the runs"
            )
            yield defect(message, 89, where=f"review.{name}")
        elif not re.search(r"\bseeds?\b|\binterval|\bmargin\b|\bstandard error|\bconfidence", text, re.I):
            yield defect(
                "names no margin, seeds or interval: chance decides it", 89, where=f"review.{name}", level="warning"
            )
