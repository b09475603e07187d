"""YAML in and out, strictly: what other loaders pass over in silence is an error here, with its line.

Numbers are read as Hydra reads them (`2e-4` is a number, which plain YAML 1.1 takes for text), keys must be words and
may not repeat, and nothing but plain data can be built.
"""

import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from rankwise.errors import ConfigError, Finding

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000
MAX_DEPTH = 50
"""A config is a page of text; more than this is another kind of file, or aliases that multiply."""

_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
    re.X,
)


@dataclass(frozen=True)
class YamlFile:
    """What a file says: `data`, and which numbers plain YAML would have read as text (path -> as written)."""

    source: str
    data: dict[str, Any]
    text_numbers: Mapping[str, str]


def _problem(source: str, path: str, message: str) -> ConfigError:
    return ConfigError(source, [Finding(path, message)])


class _Loader(yaml.SafeLoader):
    """Refuses repeated keys and keys that are not words."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                shown = getattr(key, "value", "…")
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key `{shown}` is read as a {key.tag.rpartition(':')[2]}, keys must be words",
                    key.start_mark,
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` is there twice", key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Quotes every text that the loader would read as a number."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text_node(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """Texts with a line break that is not \\n are double-quoted: PyYAML would fold them otherwise."""
    odd = any(character in value for character in "\r\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if odd else None)


_Dumper.add_representer(str, _text_node)


def _without(resolvers: Mapping[str, Any], *tags: str) -> dict[str, list[Any]]:
    return {first: [pair for pair in pairs if pair[0] not in tags] for first, pairs in resolvers.items()}


# Dates stay text, and floats follow the wider pattern, when reading and (so that texts are quoted) when writing.
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = _without(
        yaml.SafeLoader.yaml_implicit_resolvers, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"
    )
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_yaml(path: Path) -> YamlFile:
    """Read one YAML file whose top level is a mapping.

    Raises:
        ConfigError: missing, a folder, not UTF-8, empty, not YAML (with line and column), or not a mapping.
    """
    source = str(path)
    if path.is_dir():
        raise _problem(source, "", "is a folder; name a YAML file in it")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise _problem(source, "", "no such file") from None
    except (OSError, ValueError) as error:
        raise _problem(source, "", f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(raw) > MAX_BYTES:
        raise _problem(source, "", f"is {len(raw):,} bytes; a run config has at most {MAX_BYTES:,}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _problem(source, "", f"line {line}: byte 0x{raw[error.start]:02x} is not UTF-8 text") from None
    return parse_yaml(text, source)


def parse_yaml(text: str, source: str) -> YamlFile:
    """As `read_yaml`, from text; `source` names it in errors.

    Raises:
        ConfigError: empty, not YAML, or not a mapping.
    """
    try:
        node = yaml.compose(text, _Loader)
        data = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        raise _problem(source, "", _explain(error)) from None
    except yaml.YAMLError as error:
        raise _problem(source, "", f"not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise _problem(source, "", "is nested too deeply, or refers to itself") from None
    except (ValueError, OverflowError) as error:  # for example an int of a million digits, a date that is none
        raise _problem(source, "", f"holds a value that cannot be read: {error}") from None
    if data is None:
        raise _problem(source, "", "is empty; a run config is a mapping such as `method: {name: lora}`")
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else f"one value ({data!r:.40})"
        raise _problem(source, "", f"must be a mapping (`key: value` lines) at the top, this is {kind}")
    if sum(1 for _ in _values(data, source)) > MAX_VALUES:
        raise _problem(source, "", f"holds more than {MAX_VALUES:,} values")
    assert node is not None  # data is not None
    return YamlFile(source, data, dict(_text_numbers(node, "")))


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Text that `parse_yaml` reads back as the same data, keys in the given order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def _explain(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = error.problem or error.context or "not YAML"
    if tag := re.search(r"could not determine a constructor for the tag '([^']+)'", problem):
        short = tag[1].replace("tag:yaml.org,2002:", "!!")
        return f"{where}the tag {short} builds an object; a run config holds plain values only"
    if isinstance(error, yaml.constructor.ConstructorError):
        return f"{where}{problem}"
    hint = "; indent with spaces" if "'\\t'" in problem else ""
    return f"{where}not YAML: {problem}{hint}"


def _values(value: object, source: str, depth: int = 0, count: list[int] | None = None) -> Iterator[object]:
    """Every value, containers too, aliases written out; stops soon after `MAX_VALUES`."""
    count = [0] if count is None else count
    if depth > MAX_DEPTH:
        raise _problem(source, "", "is nested too deeply, or refers to itself")
    count[0] += 1
    yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            if count[0] > MAX_VALUES:
                return
            yield from _values(inner, source, depth + 1, count)


def _text_numbers(node: yaml.Node, path: str) -> Iterator[tuple[str, str]]:
    """Plain scalars that this loader reads as float and PyYAML's own as text."""
    if isinstance(node, yaml.MappingNode):
        for key, inner in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield from _text_numbers(inner, f"{path}.{key.value}" if path else str(key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, inner in enumerate(node.value):
            yield from _text_numbers(inner, f"{path}[{index}]")
    elif isinstance(node, yaml.ScalarNode) and node.style in (None, "'", '"'):
        if node.tag == "tag:yaml.org,2002:float" and node.style is None:
            plain = yaml.SafeLoader("").resolve(yaml.ScalarNode, node.value, (True, False))
            if plain != node.tag:
                yield path, str(node.value)
        elif node.tag == "tag:yaml.org,2002:str" and _FLOAT.match(node.value):
            yield path, f'"{node.value}"'
