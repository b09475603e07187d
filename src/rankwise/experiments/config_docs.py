"""The tables of `docs/config.md`, generated from the models so that they cannot go stale."""

from collections.abc import Iterator
from types import NoneType
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rankwise.experiments.dialect_table import ROWS
from rankwise.experiments.schema import Distribution, RunConfig, SweepConfig, method_registry
from rankwise.experiments.validation import members_of
from rankwise.tasks import TASKS

HEAD = "| field | type | default | meaning |\n|---|---|---|---|"


def schema_table() -> str:
    """Markdown: one table per section of a run config, the tasks' and methods' own fields included."""
    parts = [_section("Top level", RunConfig, "", only=("seed",))]
    for name in ("model", "training", "evaluation"):
        parts.append(_section(f"`{name}`", members_of(RunConfig.model_fields[name].annotation)[0], f"{name}."))
    parts += _registered("task", {name: TASKS[name] for name in TASKS})
    methods = method_registry()
    parts += _registered("method", {name: methods[name] for name in methods})
    parts.append(_section("`sweep`", SweepConfig, "sweep."))
    parts.append(_section("`sweep.search_space.<path>`", Distribution, "….", only=tuple(Distribution.model_fields)))
    return "\n\n".join(parts)


def dialect_table() -> str:
    """Markdown: every key of the records' dialect and what it is here."""
    rows = [f"| `{row.source}` | {f'`{row.target}`' if row.target else '–'} | {row.meaning} |" for row in ROWS]
    return "\n".join(["| in the record | here | how it is read |", "|---|---|---|", *rows])


def fill(markdown: str) -> str:
    """`markdown` with each block between `<!-- generated: NAME -->` and `<!-- end -->` made anew."""
    for name, table in (("schema", schema_table()), ("dialect", dialect_table())):
        start, end = f"<!-- generated: {name} -->", "<!-- end -->"
        head, mark, rest = markdown.partition(start)
        if mark:
            markdown = f"{head}{start}\n{table}\n{end}{rest.partition(end)[2]}"
    return markdown


def _registered(section: str, classes: dict[str, type[BaseModel]]) -> Iterator[str]:
    """One table per class, under all the names that choose it."""
    names: dict[type[BaseModel], list[str]] = {}
    for name, owner in classes.items():
        names.setdefault(owner, []).append(name)
    for owner, known in names.items():
        yield _section(f"`{section}`: {', '.join(f'`{name}`' for name in known)}", owner, f"{section}.")


def _section(title: str, owner: type[BaseModel], prefix: str, only: tuple[str, ...] | None = None) -> str:
    rows = [_row(prefix, name, info) for name, info in owner.model_fields.items() if only is None or name in only]
    return "\n".join([f"### {title}", "", HEAD, *rows])


def _row(prefix: str, name: str, info: FieldInfo) -> str:
    meaning = (info.description or "chooses this method").replace("|", "\\|")
    return f"| `{prefix}{name}` | {_type(info)} | {_default(info)} | {meaning} |"


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "required" if info.default_factory is None else "empty"
    shown = (
        {None: "none", True: "true", False: "false"}.get(info.default)
        if isinstance(info.default, bool | None)
        else None
    )
    return shown or f"`{', '.join(map(str, info.default)) if isinstance(info.default, tuple) else info.default}`"


_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "mapping", tuple: "list"}


def _type(info: FieldInfo) -> str:
    """Kinds of value and bounds, in words."""
    words: list[str] = []
    for member in members_of(info.annotation):
        if member is NoneType:
            continue
        words.append(_word(member))
    bounds = [text for rule in info.metadata if (text := _bound(rule))]
    return " or ".join(dict.fromkeys(words)) + (f", {', '.join(bounds)}" if bounds else "")


def _word(member: object) -> str:
    if get_origin(member) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(member))
    kind = get_origin(member) or member
    return _WORDS.get(kind, "mapping") if isinstance(kind, type) else "mapping"


def _bound(rule: object) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return next((f"{sign} {getattr(rule, name)}" for name, sign in signs.items() if hasattr(rule, name)), "")
