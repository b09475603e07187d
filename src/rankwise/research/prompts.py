"""Prompts: Markdown files with named places, filled by code.

A file in `prompts/` is plain text; `{{topic}}` is a place. Nothing in it is executed, and what is put into a place is
not looked at again. Whatever others wrote (papers, records, earlier answers of a model) enters as quoted data only:
between two lines with a mark that does not occur in it, so that it cannot end its own quotation.
"""

import hashlib
import re
from importlib.resources import files

from rankwise.research.asking import Prompt
from rankwise.research.verbatim import visible

FOLDER = "prompts"
SYSTEM = "system"
_PLACE = re.compile(r"\{\{([a-z_]+)\}\}")
_COMMENT = re.compile(r"<!--.*?-->\s*", re.DOTALL)


def render(name: str, **places: str) -> Prompt:
    """The prompt of `prompts/<name>.md` with its places filled; the system text is that of `prompts/system.md`.

    Raises:
        ValueError: a place is not given, or one is given that the file does not have (a mistake in our own code).
    """
    text = source(name)
    there = set(_PLACE.findall(text))
    if there != places.keys():
        raise ValueError(
            f"prompt {name}: places without a value {sorted(there - places.keys())}, "
            f"values without a place {sorted(places.keys() - there)}"
        )
    return Prompt(name, source(SYSTEM), _PLACE.sub(lambda place: places[place[1]], text))


def source(name: str) -> str:
    """A prompt's file as it is, without the comments to its readers."""
    text = (files("rankwise.research") / FOLDER / f"{name}.md").read_text(encoding="utf-8")
    return _COMMENT.sub("", text).strip() + "\n"


def quote(label: str, text: str) -> str:
    """`text` as quoted data. The mark at both ends is a digest that does not occur in the text; the same text is quoted
    the same way every time, so that a recorded conversation can be replayed. Characters that nobody sees are left out.

    `label` says what it is, such as `paper zhang-2023`; it is ours, or an id.
    """
    text, count = visible(text), 0
    while (mark := hashlib.sha256(f"{count}:{label}:{text}".encode("utf-8", "replace")).hexdigest()[:16]) in text:
        count += 1
    name = re.sub(r"[^\w .,:/-]", "_", label)[:120]
    return f"<<<begin data {mark} ({name})\n{text}\nend data {mark}>>>"
