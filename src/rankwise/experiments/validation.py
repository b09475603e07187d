"""From plain data to a `RunConfig`: every error at once, each in the words of the file that was read."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from rankwise.errors import Finding
from rankwise.experiments.schema import DEFAULT_METHOD, DEFAULT_TASK, Plain, RunConfig, method_registry, task_section
from rankwise.registry import did_you_mean
from rankwise.tasks import TASKS


def schema_words(path: str) -> str:
    """Paths as they are in our own schema."""
    return path


def no_other_words(path: str) -> tuple[str, ...]:
    """Our own schema has no second set of keys."""
    return ()


@dataclass(frozen=True)
class Words:
    """How the file's author calls things: `path` maps a dotted schema path to his, `keys` lists what else is allowed
    in the section that he calls by a dotted path."""

    path: Callable[[str], str] = schema_words
    keys: Callable[[str], Iterable[str]] = no_other_words


def validate(data: Mapping[str, Any], words: Words) -> RunConfig | tuple[Finding, ...]:
    """The config that `data` (schema-shaped) describes, or everything that is wrong with it."""
    fitted = fit_types(data, RunConfig)
    try:
        return RunConfig.model_validate(fitted)
    except ValidationError as error:
        found = [_finding(dict(item), data, words) for item in error.errors(include_url=False)]
        return tuple(_merge([*found, *_searched(data, words)]))


def _searched(data: Mapping[str, Any], words: Words) -> Iterable[Finding]:
    """Searched paths that are no fields; a valid config checks this by itself, a faulty one never gets that far."""
    sweep = data.get("sweep")
    space = sweep.get("search_space") if isinstance(sweep, Mapping) else None
    for path in space if isinstance(space, Mapping) else ():
        section, _, key = str(path).partition(".")
        owner = section_class(section, data.get(section, {}))
        if owner is not None and key and key not in owner.model_fields:
            close = did_you_mean(str(path), [f"{section}.{name}" for name in owner.model_fields])
            yield Finding(words.path(f"sweep.search_space.{path}"), f"no field '{path}'{close}")


def section_class(name: str, value: object) -> type[BaseModel] | None:
    """The class of a top-level section, for `task` and `method` the one that its `name` chooses (None if unknown)."""
    if name in ("task", "method"):
        default = DEFAULT_TASK if name == "task" else DEFAULT_METHOD
        section = task_section(value) if name == "task" else value
        chosen = section.get("name", default) if isinstance(section, Mapping) else section
        registry: Any = TASKS if name == "task" else method_registry()
        known: type[BaseModel] | None = registry[str(chosen)] if str(chosen) in registry else None  # noqa: SIM401
        return known
    field = RunConfig.model_fields.get(name)
    return next((t for t in members_of(field.annotation) if _is_model(t)), None) if field else None


def fit_types(data: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """`data` with numbers that were written as text read as numbers, and the other way round where text is expected."""
    fitted: dict[str, Any] = {}
    for name, value in data.items():
        chosen = section_class(name, value) if model is RunConfig else None
        if chosen is not None and isinstance(value, Mapping):
            fitted[name] = fit_types(value, chosen)
        elif name in model.model_fields:
            fitted[name] = _fit(value, model.model_fields[name].annotation)
        else:
            fitted[name] = value
    return fitted


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def members_of(annotation: object) -> tuple[Any, ...]:
    """The types that a union is made of, annotations taken off."""
    if get_origin(annotation) is Annotated:
        return members_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(member for part in get_args(annotation) for member in members_of(part))
    return (annotation,)


def _fit(value: Plain, annotation: object) -> Plain:
    members = members_of(annotation)
    if isinstance(value, Mapping):
        for member in members:
            if _is_model(member):
                return fit_types(value, member)
            if get_origin(member) is dict:
                return {key: _fit(inner, get_args(member)[1]) for key, inner in value.items()}
        return value
    if isinstance(value, list):
        element = next((get_args(member)[0] for member in members if get_origin(member) is tuple), Any)
        return [_fit(inner, element) for inner in value]
    numeric, text = int in members or float in members, str in members
    if isinstance(value, bool):
        # Pydantic would take true for 1.
        return str(value).lower() if numeric and bool not in members else value
    if isinstance(value, str) and numeric and not text:
        return _number(value)
    if isinstance(value, int | float) and text and not numeric:
        return str(value)
    return value


def _number(text: str) -> int | float | str:
    """The number that `text` spells (`2e-4`, `1_000`), or `text`."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_KINDS = (
    (r"int_.*", "must be a whole number"),
    (r"float_.*", "must be a number"),
    (r"finite_number", "must be a finite number"),
    (r"bool_.*", "must be true or false"),
    (r"string_type", "must be text"),
    (r"string_too_short", "must not be empty"),
    (r"too_short", "must not be an empty list"),
    (r"(tuple|list)_type", "must be a list"),
    (r"(dict|model|mapping|model_attributes)_type", "must be a mapping (`key: value` lines)"),
)


def _finding(item: Mapping[str, Any], data: Mapping[str, Any], words: Words) -> Finding:
    path = _data_path(item["loc"], data)
    parent, _, key = path.rpartition(".")
    if item["type"] == "extra_forbidden":
        user = words.path(path)
        return Finding(user, _unknown_key(parent, user, data, words))
    if item["type"] == "missing":
        return Finding(f"{words.path(path)}.{item['loc'][-1]}", "is missing")
    return Finding(words.path(path), message(item, key))


def _data_path(loc: tuple[str | int, ...], data: object) -> str:
    """Dotted path of an error, without the marks that pydantic adds for members of a union."""
    parts: list[str] = []
    for part in loc:
        if isinstance(data, Mapping) and part in data:
            data = data[str(part)]
            parts.append(str(part))
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
            parts.append(str(part))
        else:
            break
    return ".".join(parts)


def _unknown_key(parent: str, user: str, data: Mapping[str, Any], words: Words) -> str:
    user_parent, _, key = user.rpartition(".")
    other = list(words.keys(user_parent))
    owner = _class_at(parent, data)
    own = [] if owner is None else [f for f in owner.model_fields if words.path(f"{parent}.{f}".strip(".")).endswith(f)]
    known = list(dict.fromkeys([*other, *own]))
    where = f"in {user_parent}" if user_parent else "at the top"
    return f"unknown key{did_you_mean(key, known) or '.'} Allowed {where}: {', '.join(known)}"


def _class_at(parent: str, data: Mapping[str, Any]) -> type[BaseModel] | None:
    if not parent:
        return RunConfig
    first, *rest = parent.split(".")
    found = section_class(first, data.get(first))
    for part in rest:
        if found is None:
            return None
        field = found.model_fields.get(part)
        members = members_of(field.annotation) if field else ()
        nested = [m for m in members if _is_model(m)] + [get_args(m)[1] for m in members if get_origin(m) is dict]
        if field is None and rest[0] == "search_space":
            continue  # the part is a searched path; its distribution's class was found one part before
        found = nested[0] if nested else None
    return found


def message(item: Mapping[str, Any], key: str) -> str:
    """One of pydantic's errors in our words; `key` is the last word of its path."""
    value, context, kind = item.get("input"), item.get("ctx", {}), str(item["type"])
    shown = f"{value!r}"[:80]
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"{shown} must be {words} {context[name]:g}"
    if kind == "literal_error":
        allowed = [word.strip("'") for word in re.findall(r"'[^']*'", str(context["expected"]))]
        return f"{shown} must be one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}"
    if kind == "value_error":
        text = str(context["error"])
        return text if isinstance(value, Mapping | BaseModel) or str(value) in text else f"{shown} {text}"
    for pattern, text in _KINDS:
        if re.fullmatch(pattern, kind):
            return f"{shown} {text}"
    return f"{shown}: {item['msg']}"


def _merge(findings: Iterable[Finding]) -> Iterable[Finding]:
    """One finding per path: the members of a union each complain about the same value."""
    by_path: dict[str, list[str]] = {}
    for finding in findings:
        by_path.setdefault(finding.path, []).append(finding.message)
    for path, messages in by_path.items():
        first = messages[0]
        subject = first.split(" must be ")[0]
        rest = [m.removeprefix(f"{subject} must be ") for m in messages[1:] if m.startswith(f"{subject} must be ")]
        others = [m for m in messages[1:] if not m.startswith(f"{subject} must be ")]
        merged = " or ".join(dict.fromkeys([first, *rest]))
        yield from (Finding(path, message) for message in dict.fromkeys([merged, *others]))
