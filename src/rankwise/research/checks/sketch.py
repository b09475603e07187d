"""A sketch of code as a syntax tree. It is parsed, never executed, and nothing that it imports is imported."""

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

LONGEST = 60_000
"""Characters of a sketch that are parsed."""
DEEPEST = 40
"""Nesting of an expression that is followed."""
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Sketch:
    """The tree, or why there is none. `repaired` says what had to be done to read it."""

    tree: ast.Module | None
    problem: str = ""
    repaired: str = ""
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict, compare=False, repr=False)

    def walk(self) -> Iterator[ast.AST]:
        """Every node."""
        return ast.walk(self.tree) if self.tree else iter(())

    def calls(self, name: str) -> Iterator[ast.Call]:
        """Calls of a function or method of that name."""
        for node in self.walk():
            if isinstance(node, ast.Call) and called(node) == name:
                yield node

    def classes(self) -> Iterator[ast.ClassDef]:
        """Class definitions."""
        return (node for node in self.walk() if isinstance(node, ast.ClassDef))

    def functions(self) -> Iterator[Function]:
        """Functions and methods."""
        return (node for node in self.walk() if isinstance(node, FUNCTIONS))

    def inside(self, node: ast.AST, kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> ast.AST | None:
        """The innermost node of a kind around this one."""
        while (above := self.parents.get(node)) is not None:
            if isinstance(above, kind):
                return above
            node = above
        return None


@lru_cache(maxsize=64)
def parse(code: str) -> Sketch:
    """The tree of a sketch; indentation, fences and tabs are repaired where that makes it Python."""
    if not code.strip():
        return Sketch(None)
    if len(code) > LONGEST:
        return Sketch(None, f"is longer than {LONGEST:,} characters and is not looked at")
    problem = ""
    for repaired, text in _readings(code):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            problem = problem or _explained(error)
            continue
        if not tree.body and problem:
            break
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        return Sketch(tree, repaired=repaired, parents=parents)
    return Sketch(None, problem)


def _readings(code: str) -> Iterator[tuple[str, str]]:
    """The text as it stands, and repaired in ways that change no meaning."""
    yield "", code
    fenced = re.search(r"```(?:python|py)?\s*\n(.*?)```", code, re.S)
    if fenced:
        yield "the fence around it was taken off", fenced[1]
    tidy = textwrap.dedent((fenced[1] if fenced else code).expandtabs(4))
    yield "indentation was repaired", tidy
    yield "indentation was repaired", textwrap.dedent(tidy.partition("\n")[2])


def _explained(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"is not Python: line {error.lineno or '?'}: {error.msg}"
    return f"cannot be parsed ({type(error).__name__})"


def called(node: ast.Call) -> str:
    """`f` of `f(…)` and of `x.y.f(…)`."""
    return (
        node.func.attr
        if isinstance(node.func, ast.Attribute)
        else node.func.id
        if isinstance(node.func, ast.Name)
        else ""
    )


def source(node: ast.AST) -> str:
    """A node as code, on one line, shortened."""
    try:
        text = " ".join(ast.unparse(node).split())
    except (RecursionError, ValueError):
        return "…"
    return text if len(text) <= 100 else f"{text[:99]}…"


def names(node: ast.AST) -> set[str]:
    """Names and attributes that occur in it."""
    found = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    return found | {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}


def ends_with(node: ast.AST, *attributes: str) -> bool:
    """Is it `….attribute` for one of them (or the bare name)?"""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in attributes


def constants(sketch: Sketch) -> dict[str, float]:
    """Numbers by name: defaults of arguments, keyword arguments and plain assignments; the first one counts."""
    found: dict[str, float] = {}

    def put(name: str, value: ast.expr | None) -> None:
        if (
            isinstance(value, ast.Constant)
            and isinstance(value.value, int | float)
            and not isinstance(value.value, bool)
        ):
            found.setdefault(name, value.value)

    for node in sketch.walk():
        if isinstance(node, FUNCTIONS):
            plain = [*node.args.posonlyargs, *node.args.args]
            for argument, value in zip(plain[len(plain) - len(node.args.defaults) :], node.args.defaults, strict=True):
                put(argument.arg, value)
            for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                put(argument.arg, default)
        elif isinstance(node, ast.keyword) and node.arg:
            put(node.arg, node.value)
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            put(node.targets[0].id, node.value)
    return found


def evaluate(node: ast.AST, values: dict[str, float], depth: int = 0) -> float | None:
    """A product or sum of numbers and known names; None for anything else. Attributes count by their last name."""
    if depth > DEEPEST:
        return None
    if isinstance(node, ast.Constant):
        plain = isinstance(node.value, int | float) and not isinstance(node.value, bool) and abs(node.value) < 1e12
        return float(node.value) if plain else None  # type: ignore[arg-type]
    if isinstance(node, ast.Name | ast.Attribute):
        return values.get(node.id if isinstance(node, ast.Name) else node.attr)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
        left, right = evaluate(node.left, values, depth + 1), evaluate(node.right, values, depth + 1)
        if left is None or right is None:
            return None
        return (
            left + right
            if isinstance(node.op, ast.Add)
            else left - right
            if isinstance(node.op, ast.Sub)
            else left * right
        )
    return None
