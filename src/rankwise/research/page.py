"""report.html: a research project as one page that can be sent alone. It asks for nothing over the network."""

from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from rankwise.experiments.html.cards import SYMBOLS
from rankwise.experiments.redact import without_passwords
from rankwise.research.calls import CallLog
from rankwise.research.differences import between
from rankwise.research.page_parts import (
    block,
    document,
    folded,
    leaf,
    leaves,
    paragraph,
    reply,
    section,
    several,
    statement,
    table,
    tag,
)
from rankwise.research.project import Project
from rankwise.research.review_comments import said
from rankwise.research.review_files import PAGE, PREMISE, REVIEW, SETTLE
from rankwise.research.review_types import Comment, Judged, Review
from rankwise.research.rounds import Round, read_papers, read_rounds, read_settings, scores

SECTIONS = (
    ("verdicts", "Verdicts"),
    ("claim", "Core claim"),
    ("corrections", "Corrections"),
    ("referee", "Referee report"),
    ("circularity", "Circularity"),
    ("ledger", "Ledger"),
    ("rounds", "Rounds"),
    ("design", "Design"),
    ("near", "Closest work"),
    ("made", "How it was made"),
)


def write_page(project: Project) -> Path:
    """Write report.html of a project that has a review.

    Raises:
        ConfigError: a file of the project is wrong, or it has no review.
        OutputError: it cannot be written.
    """
    found = project.read(REVIEW, Review)
    return project.write_text(PAGE, page(project, found), again=True)


def page(project: Project, found: Review) -> str:
    """The page as text."""
    settings = read_settings(project)
    rounds = read_rounds(project)
    parts = {
        "verdicts": _verdicts(project, found),
        "claim": _claim(found),
        "corrections": _corrections(found),
        "referee": _referee(found),
        "circularity": _circularity(found),
        "ledger": _ledger(found),
        "rounds": _rounds(rounds),
        "design": _design(project, found),
        "near": _near(found),
        "made": _made(project),
    }
    titles = [(name, title) for name, title in SECTIONS if parts[name]]
    links = several(tag("li", tag("a", title, href=f"#{name}")) for name, title in titles)
    header = several(
        [
            paragraph("Rankwise research", "brand"),
            tag("h1", found.subject),
            paragraph(settings.topic, "question") if settings.topic != found.subject else "",
            statement(found.summary),
            *(statement(one) for one in found.prose[:1]),
            tag("nav", tag("ul", links), aria_label="Sections"),
        ]
    )
    main = tag("main", several(section(name, title, parts[name]) for name, title in titles), id="main", tabindex="-1")
    footer = tag(
        "footer", paragraph("This page asks for nothing over the network. review.json holds the same as data.")
    )
    body = several([tag("a", "Skip to the review", class_="skip", href="#main"), tag("header", header), main, footer])
    return without_passwords(document(found.subject, body))


def _verdicts(project: Project, found: Review) -> Markup:
    pictures = _pictures(project)
    if not found.claims:
        return paragraph("Nothing was run yet: `rankwise research run` does it.", "missing")
    cards = several(_card(claim, pictures.get(claim.id)) for claim in found.claims)
    return several(
        [
            paragraph("Bar: the interval; diamond: the estimate; shaded: where the claim holds."),
            tag("div", cards, class_="cards"),
        ]
    )


def _card(claim: Judged, picture: Markup | None) -> Markup:
    word = tag("span", f"{SYMBOLS[claim.verdict]} {claim.verdict}", class_="word")
    late = tag("span", "post hoc", class_="late") if claim.post_hoc else ""
    head = tag("h3", Markup("{} {} {}").format(word, tag("span", claim.id, class_="id"), late))
    parts = [head, paragraph(claim.text, "claim"), picture or "", paragraph(said(claim))]
    if claim.expected is not None:
        parts.append(paragraph(f"Predicted: {claim.expected:g}.", "asks"))
    if claim.reason:
        parts.append(paragraph(claim.reason, "source"))
    if claim.runs:
        parts.append(
            folded(f"{len(claim.runs)} runs", paragraph(Markup(" ").join(tag("code", r) for r in claim.runs), "ids"))
        )
    return tag("article", several(parts), class_=f"card {claim.verdict.replace(' ', '-')}")


def _pictures(project: Project) -> dict[str, Markup]:
    """The drawing of every verdict that has one, from the store."""
    from rankwise.experiments.compare import STORE
    from rankwise.experiments.html.cards import card_of
    from rankwise.experiments.judgement import judgement
    from rankwise.experiments.plan_runs import load_plan
    from rankwise.experiments.store import Store
    from rankwise.research.design import PLAN
    from rankwise.research.review_types import Verdicts
    from rankwise.research.run import VERDICTS

    if not project.has(VERDICTS):
        return {}
    verdicts = project.read(VERDICTS, Verdicts)
    folder = project.path(verdicts.folder)
    if not verdicts.folder or not (folder / STORE).is_file() or not project.has(PLAN):
        return {}
    with Store(folder / STORE) as store:
        judged = judgement(folder, store, load_plan(project.path(PLAN), verdicts.profile))
    drawn = {each.claim.id: card_of(each).picture for each in judged.verdicts}
    return {
        name: tag("div", Markup(picture.inline()), class_="drawing")
        for name, picture in drawn.items()
        if picture is not None
    }


def _claim(found: Review) -> Markup:
    return several(
        [
            statement(found.core_claim),
            tag("h3", "What carries it"),
            statement(found.carries),
            *(statement(one) for one in found.prose[2:3]),
            tag("h3", "If this is right"),
            leaves(found.if_right, "No consequence is stated."),
            tag("h3", "Load-bearing premise"),
            statement(found.premise),
            tag("h3", "What would settle it"),
            statement(found.settle),
            tag("h3", "Why it would matter"),
            statement(found.significance),
            *(statement(one) for one in found.prose[1:2]),
            tag("h3", "Between the lines"),
            leaves(found.between_lines, "Nothing: no model was asked for extensions."),
        ]
    )


def _corrections(found: Review) -> Markup:
    if not found.corrections:
        return Markup("")
    lead = "What the reviewed text says and code found to be otherwise, by name of the check."
    return several([paragraph(lead), leaves(found.corrections, "")])


def _referee(found: Review) -> Markup:
    count = len(found.open_comments())
    head = f"{len(found.comments)} comments, {count} open. Only runs that speak about a comment's claim answer it."
    groups = [paragraph(head)]
    for severity in ("major", "minor"):
        own = [one for one in found.comments if one.severity == severity]
        if own:
            groups += [tag("h3", f"{len(own)} {severity}"), *(_comment(one, found) for one in own)]
    return several(groups)


def _comment(one: Comment, found: Review) -> Markup:
    state = tag("span", one.status, class_="state")
    about = f" about {one.about}" if one.about else ""
    head = Markup("{} {}{}: {}").format(tag("strong", one.id), state, about, leaf(one.objection))
    parts = [tag("div", head, class_="statement")]
    if one.wants:
        parts.append(paragraph(f"What would answer it: {one.wants}", "source"))
    parts += [reply(answer) for answer in found.responses if answer.comment == one.id]
    return tag("div", several(parts), class_=f"comment {one.status.replace(' ', '-')}")


def _circularity(found: Review) -> Markup:
    rows = [(one.name, one.found, leaf(one.why)) for one in found.circularity]
    return table("Circularity", ("looked for", "found", "why"), rows) if rows else Markup("")


def _ledger(found: Review) -> Markup:
    if not found.ledger.entries:
        return Markup("")
    entries = [(one.arm, one.name, one.value, one.state, one.note) for one in found.ledger.entries]
    entities = [(one.arm, one.name, f"{one.parameters:,}", one.note) for one in found.ledger.entities]
    parts = [statement(found.ledger.note)] if found.ledger.note else []
    parts.append(
        folded(
            f"{len(entries)} settings", table("Settings", ("arm", "setting", "value", "state", "what it is"), entries)
        )
    )
    if entities:
        parts += [
            tag("h3", "Parts beside low-rank factors"),
            table("Parts", ("arm", "part", "parameters", "counted"), entities),
        ]
    return several(parts)


def _rounds(rounds: tuple[Round, ...]) -> Markup:
    parts: list[Markup] = []
    for past, one in zip((None, *rounds), rounds, strict=False):
        parts.append(tag("h3", f"Round {one.number}: {one.hypothesis.title or '(no title)'}"))
        parts.append(_evaluated(one))
        if past is not None:
            parts.append(folded(f"what changed against round {past.number}", _difference(past, one)))
        shown = {
            name: value for name, value in one.hypothesis.model_dump(mode="json").items() if value and name != "claims"
        }
        text = "\n\n".join(f"{name}\n{value}" for name, value in shown.items())
        parts.append(folded("the hypothesis", block(text)))
    return several(parts) if parts else Markup("")


def _evaluated(one: Round) -> Markup:
    if one.evaluation is None:
        return paragraph("Not evaluated.", "missing")
    opinion = one.evaluation.opinion
    marks = (
        ", ".join(f"{name} {score.score}/10" for name, score in scores(opinion).items())
        if opinion
        else "no model was asked for scores"
    )
    defects = one.evaluation.defects
    listed = tag("ul", several(tag("li", f"{d.level}: {d.message} ({d.rule})", class_=d.level) for d in defects))
    count = f"{len(defects)} finding{'s' if len(defects) > 1 else ''} of code"
    return several([paragraph(marks), folded(count, listed) if defects else ""])


def _difference(before: Round, after: Round) -> Markup:
    found = between(before.hypothesis, after.hypothesis)
    parts = [paragraph(found.why)] if found.why else []
    kinds = {"same": "span", "removed": "del", "added": "ins"}
    for field in found.fields:
        pieces = Markup(" ").join(tag(kinds[piece.kind], piece.text) for piece in field.pieces)
        parts += [tag("h4", field.field), paragraph(pieces, "leaf")]
    parts += [paragraph(f"claim {claim.id} {claim.kind}: {claim.text}") for claim in found.claims]
    return several(parts)


def _design(project: Project, found: Review) -> Markup:
    parts = [tag("ul", several(tag("li", note) for note in found.notes))] if found.notes else []
    parts += [folded(name, block(text)) for name, text in _plans(project)]
    return several(parts) if parts else Markup("")


def _plans(project: Project) -> Iterator[tuple[str, str]]:
    for name in ("plan.yaml", SETTLE, PREMISE):
        if project.has(name):
            yield name, project.path(name).read_text(encoding="utf-8", errors="replace")


def _near(found: Review) -> Markup:
    parts = []
    for title, works in (("Prior work", found.cited), ("Later work", found.citing)):
        if works:
            rows = [
                tag("li", several([tag("strong", one.title), leaf(one.overlap)] if one.overlap else [one.title]))
                for one in works
            ]
            shown = tag("ul", several(rows), class_="leaves")
            parts += [tag("h3", title), shown if len(works) <= 5 else folded(f"{len(works)} works", shown)]
    return several(parts) if parts else Markup("")


def _made(project: Project) -> Markup:
    """Every file with who made it, and what the language model cost."""
    from rankwise.research.stages import standings

    rows = [
        (one.stage.file, one.by or "-", one.state, one.why) for one in standings(project) if one.state != "not needed"
    ]
    spent = CallLog(project).spent()
    cost = f"{spent.requests} requests to a language model, {spent.tokens:,} tokens, {spent.cost:.4f} US dollars"
    papers = len(read_papers(project).papers)
    return several(
        [paragraph(f"{papers} prior papers. {cost}."), table("Files", ("file", "made by", "state", ""), rows)]
    )
