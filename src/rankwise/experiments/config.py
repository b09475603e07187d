"""Run configs: read, composed, overridden, validated and checked.

Hydra's compose API puts a file, its `defaults` list and `key=value` overrides together; pydantic validates the result
(`schema.RunConfig`). A file in the dialect of the example records is translated first (`dialect`), and everything that
is wrong is said at once, in the file's own words. Overrides use the file's words too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, Finding
from rankwise.experiments import checks, settle
from rankwise.experiments.dialect import Translation, is_dialect, translate
from rankwise.experiments.dialect_checks import check_dialect
from rankwise.experiments.schema import Plain, RunConfig
from rankwise.experiments.validation import Words, validate
from rankwise.experiments.yaml_text import YamlFile, dump_yaml, read_yaml

_NODE = "rankwise_run"


@dataclass(frozen=True)
class CheckedConfig:
    """A config that was looked at: `config` is None if there are errors among the `findings`.

    `source` is the file (or a word for a dict), `label` the `run_id` of a file in the records' dialect.
    """

    source: str
    config: RunConfig | None
    findings: tuple[Finding, ...]
    label: str | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What keeps it from running."""
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def canonical(self) -> str | None:
        """Canonical YAML, if it can run."""
        return None if self.config is None else to_yaml(self.config)


@dataclass(frozen=True)
class LoadedConfig:
    """A config that can run, with its warnings and notes, and its canonical YAML."""

    config: RunConfig
    findings: tuple[Finding, ...]
    yaml: str
    source: str
    label: str | None = None


def load(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """The run config in a YAML file, with `key=value` overrides in the file's own words.

    Raises:
        ConfigError: with every error found.
    """
    return _accepted(check(path, overrides))


def check(path: str | Path, overrides: Sequence[str] = ()) -> CheckedConfig:
    """As `load`, but every finding is returned and nothing is raised."""
    try:
        file = read_yaml(Path(path))
    except ConfigError as error:
        return CheckedConfig(str(path), None, error.findings)
    return _check(file, overrides, Path(path).resolve().parent)


def from_dict(data: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "run config") -> LoadedConfig:
    """The run config in a dict, in our schema or in the records' dialect.

    Raises:
        ConfigError: with every error found.
    """
    return _accepted(_check(YamlFile(source, dict(data), {}), overrides, None))


def check_together(configs: Sequence[CheckedConfig | LoadedConfig]) -> tuple[Finding, ...]:
    """Contradictions between configs that are meant to be compared with each other; faulty ones are passed over."""
    named = [checks.Named(one.label or Path(one.source).stem, one.config) for one in configs if one.config is not None]
    return checks.check_together(named)


def to_yaml(config: RunConfig) -> str:
    """The canonical form: every value, in the order of the schema. Loading it gives an equal config."""
    return dump_yaml(config.model_dump(mode="json"))


def _accepted(checked: CheckedConfig) -> LoadedConfig:
    if checked.config is None:
        raise ConfigError(checked.source, checked.errors)
    return LoadedConfig(checked.config, checked.findings, to_yaml(checked.config), checked.source, checked.label)


def _check(file: YamlFile, overrides: Sequence[str], folder: Path | None) -> CheckedConfig:
    before, findings = _compose(file.data, [], folder)
    parsed, problems = _parse_overrides(overrides, folder if "defaults" in file.data else None)
    data, conflicts = _compose(file.data, parsed, folder) if parsed else (before, [])
    findings = list(dict.fromkeys([*findings, *problems, *conflicts]))
    if data is None or before is None:
        return CheckedConfig(file.source, None, tuple(findings))
    keys = [override.key for override in parsed]
    if is_dialect(data):
        checked, label = _check_dialect(data, before, keys, file.text_numbers)
    else:
        checked, label = _check_schema(data, before, keys), None
    config, more = checked
    findings += more
    bad = any(finding.level == "error" for finding in findings)
    order = {"error": 0, "warning": 1, "note": 2}
    ordered = tuple(sorted(dict.fromkeys(findings), key=lambda finding: order[finding.level]))
    return CheckedConfig(file.source, None if bad else config, ordered, label)


Checked = tuple[RunConfig | None, list[Finding]]


def _check_schema(data: dict[str, Any], before: dict[str, Any], keys: Sequence[str]) -> Checked:
    replaced = [_lost(key, data, before) for key in keys]
    config, findings = _settled(data, before, keys, Words(), dialect=False)
    return config, [*filter(None, replaced), *findings]


def _lost(key: str, data: Mapping[str, Any], before: Mapping[str, Any]) -> Finding | None:
    """`method=lora` replaces the whole section; say what is gone with it."""
    old, new = settle.pick(before, key), settle.pick(data, key)
    if not isinstance(old, Mapping) or isinstance(new, Mapping):
        return None
    gone = ", ".join(f"{key}.{name}={value}" for name, value in old.items() if name != "name")
    hint = f"; to change the name alone, write {key}.name={new}"
    return Finding(key, f"{key}={new} replaces the section, without {gone}{hint}", "warning") if gone else None


def _check_dialect(
    data: dict[str, Any], before: dict[str, Any], keys: Sequence[str], text_numbers: Mapping[str, str]
) -> tuple[Checked, str | None]:
    def overridden(path: str) -> bool:
        return _covers(keys, path)

    translation = translate(data, before, overridden)
    original: Translation = translate(before)
    config, findings = _settled(translation.data, original.data, keys, translation.words(), dialect=True)
    written = {path: text for path, text in text_numbers.items() if not overridden(path)}
    findings = [*translation.findings, *findings, *check_dialect(data, translation, original, written)]
    return (config, findings), translation.label


def _settled(
    data: dict[str, Any], before: dict[str, Any], keys: Sequence[str], words: Words, *, dialect: bool
) -> Checked:
    """Settle what overrides left contradictory, validate, check."""

    def given(path: str) -> bool:
        return _covers(keys, words.path(path))

    data, notes = settle.settle_length(data, given, words.path)
    data, more = settle.keep_in_proportion(data, before, given, words.path)
    borrowed = dialect or settle.task_name(data) != settle.task_name(before)
    data, dropped = settle.settle_metrics(data, given=given("evaluation.metrics"), borrowed=borrowed, words=words.path)
    findings = [*notes, *more, *dropped]
    result = validate(data, words)
    if not isinstance(result, RunConfig):
        return None, [*findings, *result]
    return result, [*findings, *checks.check_config(result, words.path)]


def _covers(keys: Sequence[str], path: str) -> bool:
    """Whether one of the overridden keys is `path`, lies in it or holds it."""
    return any(key == path or key.startswith(f"{path}.") or path.startswith(f"{key}.") for key in keys)


# --- Hydra ---


@dataclass(frozen=True)
class _Override:
    """One override: as typed, the key it sets, and what Hydra is given."""

    typed: str
    key: str
    hydra: str


def _parse_overrides(overrides: Sequence[str], folder: Path | None) -> tuple[list[_Override], list[Finding]]:
    """Plain `key=value` may also set fields that the file leaves out; what is no field, validation refuses."""
    parsed: list[_Override] = []
    findings: list[Finding] = []
    for text in overrides:
        outcome = _parse_override(text, folder)
        if isinstance(outcome, Finding):
            findings.append(outcome)
        else:
            parsed.append(outcome)
    return parsed, findings


def _parse_override(text: str, folder: Path | None) -> _Override | Finding:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    hydra_text = text
    try:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            # `method.budget=r=4` is no Hydra grammar, but nothing else can be meant.
            hydra_text = _quoted(text)
            override = OverridesParser.create().parse_override(hydra_text)
    except HydraException:
        return Finding("", f"cannot read the override `{text}`; write key=value, +key=value or ~key (quote odd values)")
    key = override.key_or_group
    if not key or key.split(".")[0] == "hydra":
        return Finding("", f"the override `{text}` names no field of a run config")
    if override.is_sweep_override():
        return Finding(
            key, f"`{text}` gives several values to one run; write [a,b] for a list, or quote text with commas"
        )
    group = folder is not None and ("/" in key or override.package is not None or (folder / key).is_dir())
    if override.type == OverrideType.CHANGE and not group:
        hydra_text = f"++{hydra_text}"
    return _Override(text, key.replace("/", "."), hydra_text)


def _quoted(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals or re.search(r"""['"\[\]{},$\\]""", value):
        return text
    return f"{key}='{value}'"


def _compose(
    data: Mapping[str, Any], overrides: Sequence[_Override], folder: Path | None
) -> tuple[dict[str, Any] | None, list[Finding]]:
    """The file with its defaults list and overrides, as plain data. Overrides that fail are named, the rest applied."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    failures = (HydraException, OmegaConfBaseException, ValueError, OSError)
    try:
        return _hydra(data, [override.hydra for override in overrides], folder)
    except failures as error:
        if not overrides:
            return None, [Finding("defaults" if "defaults" in data else "", _first_line(error))]
    good, findings = [], []
    for override in overrides:
        try:
            _hydra(data, [override.hydra], folder)
            good.append(override)
        except failures as error:
            findings.append(Finding(override.key, _explain_override(override, error)))
    if not findings:
        return None, [Finding("", "these overrides contradict each other: " + " ".join(o.typed for o in overrides))]
    composed, more = _compose(data, good, folder)
    return composed, [*findings, *more]


def _explain_override(override: _Override, error: Exception) -> str:
    if "already at" in str(error):
        return f"`{override.typed}` adds a key that the file has; write {override.typed.lstrip('+')} to change it"
    if "does not exist" in str(error):
        return f"`{override.typed}` deletes a key that the file does not have"
    if "Error merging override" in str(error):
        return f"`{override.typed}` mixes a list with a mapping: it must be of the kind that the file has there"
    return f"`{override.typed}`: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().split("\n\n")[0].split())


def _hydra(data: Mapping[str, Any], overrides: list[str], folder: Path | None) -> tuple[dict[str, Any], list[Finding]]:
    """Compose once. Only a file with a defaults list sees its folder, so that folders beside it are not taken for
    config groups."""
    from hydra import compose, initialize, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    node = dict(data)
    if isinstance(defaults := node.get("defaults"), list) and "_self_" not in defaults:
        node["defaults"] = [*defaults, "_self_"]
    store = ConfigStore.instance()
    store.store(name=_NODE, node=OmegaConf.create(node))
    look_in_folder = folder is not None and "defaults" in data
    try:
        with (
            initialize_config_dir(str(folder), version_base="1.3")
            if look_in_folder
            else initialize(None, version_base="1.3")
        ):
            composed = compose(_NODE, overrides=overrides)
    finally:
        store.repo.pop(f"{_NODE}.yaml", None)
    findings: list[Finding] = []
    plain = _plain(composed, "", findings)
    return plain, findings


def _plain(node: object, path: str, findings: list[Finding]) -> Plain:
    """OmegaConf's tree as dicts and lists; missing values and interpolations that lead nowhere become findings."""
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(node, DictConfig | ListConfig):
        return node
    result: dict[str, Any] = {}
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        where = f"{path}.{key}" if path else str(key)
        if OmegaConf.is_missing(node, key):
            findings.append(Finding(where, "is left open (`???`); give it a value"))
            continue
        try:
            result[str(key)] = _plain(node[key], where, findings)
        except (OmegaConfBaseException, RecursionError) as error:
            raw = OmegaConf.to_container(node, resolve=False)
            text = raw[key] if isinstance(raw, list | dict) else ""
            findings.append(Finding(where, f"`{text}` cannot be resolved: {_first_line(error).split(' full_key')[0]}"))
    return list(result.values()) if isinstance(node, ListConfig) else result
