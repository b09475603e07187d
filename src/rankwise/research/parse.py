"""What others call the parts of a paper and of a hypothesis, and how to read them out of text.

The text is a language model's answer, a record's prompt or a file. It is data; nothing in it is executed.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rankwise.experiments.text_objects import LIMIT_BYTES, Form, Parsed, literal, objects, scan, unclosed
from rankwise.research.artefacts import MAX_TEXT

__all__ = [
    "HYPOTHESIS",
    "LIMIT_BYTES",
    "PAPER",
    "Form",
    "Parsed",
    "fields",
    "key",
    "objects",
    "renamed",
    "text_of",
    "unclosed",
]

PAPER: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in ("id", "title", "authors", "year", "doi", "arxiv", "source", "code", "result")},
        "paper_title": "title",
        "name": "title",
        "author": "authors",
        "publication_year": "year",
        "published": "year",
        "arxiv_id": "arxiv",
        "url": "source",
        "main_contributions": "contributions",
        "main_contribution": "contributions",
        "key_contributions": "contributions",
        "contributions": "contributions",
        "contribution": "contributions",
        "abstract": "contributions",
        "summary": "contributions",
        "methodology": "methodology",
        "methodologies": "methodology",
        "methods": "methodology",
        "method": "methodology",
        "approach": "methodology",
        "experimental_setup": "setup",
        "experiment_setup": "setup",
        "experimental_setups": "setup",
        "experiments": "setup",
        "setup": "setup",
        "limitations": "limitations",
        "limitation": "limitations",
        "future_research_directions": "future",
        "future_research_direction": "future",
        "future_directions": "future",
        "future_work": "future",
        "future": "future",
        "experiment_code": "code",
        "experimental_code": "code",
        "experiment_result": "result",
        "experiment_results": "result",
        "experimental_result": "result",
        "experimental_results": "result",
        "results": "result",
    }
)
"""How others name the parts of a paper -> the field of `artefacts.Paper`."""

HYPOTHESIS: Mapping[str, str] = MappingProxyType(
    {
        "title": "title",
        "name": "title",
        "method_name": "title",
        "open_problems": "open_problems",
        "open_problem": "open_problems",
        "problem": "open_problems",
        "methods": "method",
        "method": "method",
        "methodology": "method",
        "proposed_method": "method",
        "research_method": "method",
        "experimental_setup": "experimental_setup",
        "experiment_setup": "experimental_setup",
        "setup": "experimental_setup",
        "primary_metric": "primary_metric",
        "experimental_code": "experimental_code",
        "experiment_code": "experimental_code",
        "code": "experimental_code",
        "expected_result": "expected_result",
        "expected_results": "expected_result",
        "expected_outcome": "expected_result",
        "expected_conclusion": "expected_conclusion",
        "expected_conclusions": "expected_conclusion",
        "conclusion": "expected_conclusion",
        "changes": "changes",
        "claims": "claims",
    }
)
"""How others name the parts of a hypothesis -> the field of `artefacts.Hypothesis`."""

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_FIELD = re.compile(r"[\s,]*+([A-Za-z_]\w{0,60})=")
_WORD = re.compile(r"[^\s,()\[\]{}]+")
_STRING = re.compile(r"""'(?:[^'\\\n]++|\\.)*+'|"(?:[^"\\\n]++|\\.)*+\"""", re.DOTALL)


def key(name: str) -> str:
    """A name in one form: `Main Contributions` and `mainContributions` are `main_contributions`."""
    return re.sub(r"[\W_]+", "_", _CAMEL.sub("_", name).casefold()).strip("_")


def renamed(value: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    """The parts of an object that `table` knows, by our names; of two for one name the first that says something."""
    found: dict[str, Any] = {}
    for name, content in value.items():
        field = table.get(key(str(name)))
        if field and found.get(field) in (None, "", [], {}):
            found[field] = content
    return found


def text_of(value: object, limit: int = MAX_TEXT) -> str:
    """What somebody wrote as text, whatever they wrote it as: text, a list of points, an object of parts, a number.

    Longer than `limit` characters: cut at its end, and the end says so.
    """
    text = _text(value).strip()
    if len(text) <= limit:
        return text
    mark = f" [cut: {len(text):,} characters in all]"
    return text[: limit - len(mark)].rstrip() + mark


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return "\n".join(f"- {_text(inner)}" for inner in value)
    return str(value)


def fields(text: str) -> dict[str, Any]:
    """The `name=value` pairs that Python prints for an object of a class, from the first one on. Values that are no
    literals (objects in objects) stay text."""
    found: dict[str, Any] = {}
    position = 0
    while match := _FIELD.match(text, position):
        end = _value_end(text, match.end())
        if end is None or end == match.end():
            break
        source = text[match.end() : end]
        value = literal(source) if source[:1] in "'\"[{(-0123456789TFN" else None
        found.setdefault(match[1], source if value is None and source != "None" else value)
        position = end
    return found


def _value_end(text: str, start: int) -> int | None:
    """Where the value that begins at `start` ends."""
    if string := _STRING.match(text, start):
        return string.end()
    word = _WORD.match(text, start)
    end = word.end() if word else start
    if text[end : end + 1] in tuple("([{"):
        return scan(text, end).end
    return end
