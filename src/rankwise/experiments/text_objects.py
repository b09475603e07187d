"""Objects in a text that somebody else wrote: JSON, what Python prints for a dict, fenced or not, with words around.

A text is read once from front to back; what is read again is limited, so a text made to be slow to read is not.
Nothing is executed: what Python prints is read as a syntax tree and only literals are taken from it.
"""

import ast
import json
import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Form: TypeAlias = Literal["json", "python", "fenced"]

LIMIT_BYTES = 10_000_000
"""Characters of a text that are looked at if the caller says nothing."""
MAX_DEPTH = 100
MAX_OBJECTS = 100_000
"""Objects of a text, and beginnings of objects that are none; more of either is no answer and no record."""
MAX_BARE = 300_000
"""Characters outside of strings in what Python prints: its syntax tree takes a hundred times as much memory."""

# A whole string, or a bracket, or a quote that opens a string without end. A quote behind a backslash opens none: such
# quotes are all that can follow an open one, so looking for the end of a string is never done twice. Apostrophes stand
# behind letters.
_TOKEN = re.compile(
    r"""(?<!\\)"(?:[^"\\]++|\\.)*+"|(?<![\w)\\])'(?:[^'\\\n]++|\\.)*+'|(?<!\\)"|[{}\[\]()]""", re.DOTALL
)
_START = re.compile(r"""\{(?=\s*+["'}])""")
_SINGLE = re.compile(r"\{\s*+'")
_BACKSLASH = re.compile(r"""(?<!\\)\\(?!["\\/bfnrtu])""")
_FENCE = re.compile(r"(?:```|~~~)[\w+-]*[ \t]*\n?\s*\Z")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Parsed:
    """An object and where it stood: `text[start:end]`. `fenced` is JSON or Python right behind a code fence."""

    value: dict[str, Any]
    form: Form
    start: int = 0
    end: int = 0


@dataclass
class _Span:
    """What a scan from an opening brace found. `end` is None if the brace is never closed; `reached` is how far the
    scan went, `inner` the closed braces directly inside of what is open."""

    end: int | None
    reached: int
    bare: int = 0
    deep: bool = False
    inner: tuple[tuple[int, int], ...] = ()


def objects(text: str, *, limit_bytes: int = LIMIT_BYTES) -> list[Parsed]:
    """Every object in a text, in order, outermost ones only; of one that is never closed, the closed ones in it.

    Of a text of more than `limit_bytes` characters the rest is not looked at. Never raises on the text's account.
    """
    return _Reader(text[:limit_bytes]).read()


def unclosed(text: str) -> int | None:
    """Where an object begins that the text never closes (None: there is none), for saying where a file was cut."""
    position = 0
    while match := _START.search(text, position):
        span = scan(text, match.start())
        if span.end is None and not span.deep and span.reached >= len(text):
            return match.start()
        position = max(span.end or span.reached, match.end())
    return None


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.found: list[Parsed] = []
        self.again = len(text) + 1_000_000  # characters that may be read in vain and be read again
        self.vain = MAX_OBJECTS
        self.bare = 4 * MAX_BARE  # the same of Python's syntax trees

    def read(self) -> list[Parsed]:
        position = 0
        while len(self.found) < MAX_OBJECTS and self.vain and (match := _START.search(self.text, position)):
            position = self._read_from(match.start())
        return self.found

    def _read_from(self, start: int) -> int:
        """Read the object that may start here; where to go on."""
        span = scan(self.text, start)
        if span.end is not None and self._take(start, span.end, span.bare):
            return span.end
        self.again -= (span.end or span.reached) - start
        self.vain -= 1
        if span.deep:
            return span.reached
        if self.again > 0:
            return start + 1
        if span.end is not None:
            return span.end
        for first, last in span.inner[:MAX_OBJECTS]:
            self._take(first, last, last - first)
        return max(span.reached, start + 1)

    def _take(self, start: int, end: int, bare: int) -> bool:
        source = self.text[start:end]
        value, form = _json(source), "json"
        if value is None and bare <= MAX_BARE and self.bare > 0:
            value, form = _python(source), "python"
            self.bare -= bare if value is None else 0
        if value is None:
            return False
        if _FENCE.search(self.text, max(0, start - 40), start):
            form = "fenced"
        self.found.append(Parsed(value, form, start, end))  # type: ignore[arg-type]
        return True


def scan(text: str, start: int) -> _Span:
    """Follow brackets and strings from the bracket at `start` to the one that closes it."""
    stack: list[tuple[str, int]] = []
    closed: list[tuple[int, int]] = []
    quoted = 0
    for match in _TOKEN.finditer(text, start):
        at, token = match.start(), match[0]
        if len(token) > 1:
            quoted += len(token)
        elif token == '"':  # a string without end
            return _Span(None, len(text), inner=tuple(closed))
        elif token in "{[(":
            if len(stack) >= MAX_DEPTH:
                return _Span(None, at, deep=True)
            stack.append((token, at))
        elif not stack or stack[-1][0] != _PAIRS[token]:
            return _Span(None, at + 1, inner=tuple(closed))
        else:
            _, opened = stack.pop()
            if not stack:
                return _Span(at + 1, at + 1, bare=at + 1 - start - quoted)
            if token == "}":
                while closed and closed[-1][0] > opened:
                    closed.pop()
                closed.append((opened, at + 1))
    return _Span(None, len(text), inner=tuple(closed))


def _json(source: str) -> dict[str, Any] | None:
    if _SINGLE.match(source):
        return None
    for text in (source, _BACKSLASH.sub(r"\\\\", source)):  # formulas with backslashes of their own come second
        try:
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError):
            continue
        return _sound(value) if isinstance(value, dict) else None
    return None


def _python(source: str) -> dict[str, Any] | None:
    value = literal(source)
    return value if isinstance(value, dict) else None


def literal(source: str) -> object:
    """What Python would print as `source`, or None. Calls and names that are no constants stay text.

    JSON's `true`, `false`, `null`, a comma too many and comments are understood too.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes in strings
            tree = ast.parse(source.strip(), mode="eval")
        return _sound(_value(tree.body))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


_WORDS = {"true": True, "false": False, "null": None}


def _value(node: ast.expr) -> Any:  # noqa: ANN401 - whatever a literal may be
    match node:
        case ast.Constant(value=str() | int() | float() | None):
            return node.value
        case ast.Dict():
            if None in node.keys:
                raise ValueError("** is no literal")
            keys = [str(_value(key)) for key in node.keys if key is not None]
            return dict(zip(keys, map(_value, node.values), strict=True))
        case ast.List() | ast.Tuple() | ast.Set():
            return [_value(item) for item in node.elts]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Name() if node.id in _WORDS:
            return _WORDS[node.id]
        case ast.Call() | ast.Name() | ast.Attribute():
            return ast.unparse(node)
    raise ValueError(f"{type(node).__name__} is no literal")


def _sound(value: Any) -> Any:  # noqa: ANN401 - whatever JSON may be
    """Strings that can be written: half a surrogate pair becomes the sign for an unknown character."""
    if isinstance(value, str):
        if _SURROGATE.search(value):
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return value
    if isinstance(value, dict):
        return {_sound(key): _sound(inner) for key, inner in value.items()}
    return [_sound(inner) for inner in value] if isinstance(value, list) else value
