"""Is a passage in a text? Line breaks, hyphens at line ends and typesetting do not count, words and numbers do."""

import json
import re
import unicodedata
from functools import lru_cache

_LINE_END = re.compile(r"(?<=[^\W\d_])-\s*(?=[^\W\d_])")
_SIGNS = {
    **dict.fromkeys(map(ord, "‐‑‒–—―−﹣－"), "-"),
    **dict.fromkeys(map(ord, "‘’‚‛′ʼ"), "'"),
    **dict.fromkeys(map(ord, "“”„‟″«»"), '"'),
}
# What nobody sees or what turns the writing around: control, format, private and half characters; not tab, line feed.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\ud800-\uf8ff\ufeff\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e007f\U000f0000-\U0010ffff]"
)


def visible(text: str) -> str:
    """Text without characters that are not seen or turn the writing around: they can only mislead a reader."""
    return _UNSEEN.sub("", text)


def escaped(text: str) -> str:
    """JSON text with those characters as `\\u001b` and its like: the same data, and nothing that a terminal obeys."""
    return _UNSEEN.sub(lambda sign: json.dumps(sign[0])[1:-1], text)


def found(passage: str, source: str) -> bool:
    """Does the passage stand in the source, word by word and number by number?

    What does not count: line breaks and other white space, hyphens between letters (a word broken at a line's end),
    ligatures, kinds of dashes and quotation marks. What does: case, every word, every digit and sign; a passage may not
    begin or end within a word or a number (`2.5` does not stand in `12.5`, `-2.5` or `2.53`).
    """
    wanted, text = _plain(passage), _plain(source)
    if not any(sign.isalnum() for sign in wanted):
        return False
    at = text.find(wanted)
    while at >= 0:
        if _whole(text, at, at + len(wanted)):
            return True
        at = text.find(wanted, at + 1)
    return False


@lru_cache(maxsize=256)
def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", visible(text)).translate(_SIGNS)
    return " ".join(_LINE_END.sub("", text).split())


def _whole(text: str, start: int, end: int) -> bool:
    """Do neither end cut a word, a number or its sign?"""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    first, last = text[start], text[end - 1]
    if first.isalnum() and before[-1:].isalnum():
        return False
    if first.isdigit() and (before[-1:] == "-" or re.fullmatch(r"\d[.,]", before)):
        return False
    if last.isalnum() and after[:1].isalnum():
        return False
    return not (last.isdigit() and re.fullmatch(r"[.,]\d", after))
