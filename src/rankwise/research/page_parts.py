"""Pieces of the project's page: every text that comes from a file is escaped, whatever it holds."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

from markupsafe import Markup, escape

from rankwise.research.review_types import Leaf, Response

EXTRA_STYLE = """
.source-of { border: 1px solid var(--quiet); border-radius: 1rem; padding: 0 .5rem; font-size: .75rem;
  color: var(--quiet); white-space: nowrap; }
.source-of.measured { border-color: var(--yes); color: var(--yes); }
.source-of.model { border-color: var(--never); color: var(--never); }
.statement { margin: .4rem 0; max-width: 46rem; }
.leaf { white-space: pre-line; } .leaves { padding-left: 1.2rem; } .leaves li { margin: .4rem 0; }
.comment { border-left: .25rem solid var(--open); padding: .1rem .9rem; margin: .9rem 0; background: var(--box); }
.comment.answered { border-color: var(--yes); } .comment.not-testable { border-color: var(--never); }
.reply { margin-left: 1rem; border-left: .15rem solid var(--line); padding-left: .8rem; }
.state { font-weight: 700; font-size: .85rem; } ins { text-decoration: none; background: var(--claimed); }
del { color: var(--no); } .error { color: var(--no); } .warning { color: var(--open); } .note { color: var(--quiet); }
.scroll table { width: 100%; }
"""


@cache
def style() -> str:
    """The style of the reports of runs, and what this page adds."""
    own = files("rankwise.experiments.html").joinpath("templates", "style.css").read_text(encoding="utf-8")
    return own.strip() + EXTRA_STYLE


def tag(name: str, content: object, **attributes: str) -> Markup:
    """An element; text is escaped, `Markup` is taken as it is. `class_` is the attribute `class`."""
    given = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), given, content)


def several(parts: Iterable[str]) -> Markup:
    """Parts one after the other; texts among them are escaped."""
    return Markup("\n").join(parts)


def words(text: str) -> Markup:
    """A text with names in backticks as code; escaped before anything else."""
    return Markup(re.sub(r"`([^`\n]{1,80})`", r"<code>\1</code>", str(escape(text))))


def statement(one: Leaf) -> Markup:
    """A statement as a paragraph of its own."""
    return tag("div", leaf(one), class_="statement")


def leaf(one: Leaf) -> Markup:
    """A statement with the mark of its source, and what it rests on."""
    mark = tag("span", one.source, class_=f"source-of {one.source}")
    shown = ids(one.evidence) if one.evidence else Markup("")
    return Markup("{} {} {}").format(tag("span", words(one.text), class_="leaf"), mark, shown)


def leaves(found: Sequence[Leaf], nothing: str) -> Markup:
    """A list of statements, or what is said when there are none."""
    if not found:
        return tag("p", nothing, class_="missing")
    return tag("ul", several(tag("li", leaf(one)) for one in found), class_="leaves")


def ids(names: Sequence[str]) -> Markup:
    """Evidence, folded when there is much of it."""
    codes = Markup(" ").join(tag("code", name) for name in names)
    if len(names) <= 2:
        return tag("span", codes, class_="ids")
    return tag(
        "details",
        Markup("{}{}").format(tag("summary", f"{len(names)} pieces of evidence"), tag("p", codes, class_="ids")),
    )


def section(name: str, title: str, *content: str) -> Markup:
    """A section with its heading."""
    head = tag("h2", title, id=f"{name}-title")
    return tag("section", several([head, *content]), id=name, aria_labelledby=f"{name}-title")


def paragraph(text: object, class_: str = "") -> Markup:
    """A paragraph."""
    shown = words(text) if isinstance(text, str) and not isinstance(text, Markup) else text
    return tag("p", shown, class_=class_) if class_ else tag("p", shown)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table that scrolls sideways by itself."""
    head = tag("tr", Markup("").join(tag("th", name, scope="col") for name in columns))
    body = several(tag("tr", Markup("").join(tag("td", cell) for cell in row)) for row in rows)
    inner = tag("table", several([tag("thead", head), tag("tbody", body)]))
    return tag("div", inner, class_="scroll", role="region", tabindex="0", aria_label=f"{title}, table")


def folded(title: str, content: object) -> Markup:
    """Content that the reader opens."""
    return tag("details", Markup("{}{}").format(tag("summary", title), content))


def block(text: str) -> Markup:
    """Text as it is, line by line."""
    return tag("pre", text, tabindex="0")


def reply(one: Response) -> Markup:
    """A response to a comment; without runs it says that it answers nothing."""
    rest = Markup("") if one.runs else tag("p", "It cites no run, so it answers nothing.", class_="missing")
    return tag("div", several([statement(one.reply), rest]), class_="reply")


def document(title: str, body: Markup) -> str:
    """The whole page: no script, nothing loaded, light and dark."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return str(
        Markup(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n<meta name="generator" content="Rankwise">\n'
            '<title>{title} · Rankwise</title>\n<link rel="icon" href="data:,">\n<style>{style}</style>\n</head>\n'
            "<body>\n{body}\n</body>\n</html>\n"
        ).format(policy=policy, title=title, style=Markup(style()), body=body)
    )
