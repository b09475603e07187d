"""The records' dialect, read as it stands and turned into the shape of our schema.

Nothing is validated here: the result is plain data, with the way back from each of our paths to the file's own words,
so that errors speak the file's language.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rankwise.errors import Finding
from rankwise.experiments.dialect_table import (
    BY_SOURCE,
    HOMES,
    METHOD_NAMES,
    METHOD_SECTIONS,
    ONLY_HERE,
    ROWS,
    keys_of,
    method_section,
)
from rankwise.experiments.model_facts import model_facts
from rankwise.experiments.schema import Plain, RunConfig
from rankwise.experiments.validation import Words, section_class
from rankwise.registry import did_you_mean

Level = Literal["error", "warning", "note"]


def nothing_overridden(path: str) -> bool:
    """For a file read without overrides."""
    return False


def is_dialect(data: Mapping[str, Any]) -> bool:
    """Whether a file is written in the records' dialect rather than in our schema."""
    if "task" in data:
        return False
    model = data.get("model")
    foreign_model = isinstance(model, Mapping) and ("backbone" in model or "peft" in model)
    return foreign_model or not ONLY_HERE.isdisjoint(data)


@dataclass
class Translation:
    """`data` in the shape of our schema; `origin` maps our dotted paths to the file's; `label` is its `run_id`."""

    method: str
    overridden: Callable[[str], bool]
    data: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    label: str | None = None
    unused: set[str] = field(default_factory=set)
    """The file's paths in sections of other methods."""

    def words(self) -> Words:
        """How errors call things."""
        return Words(self.user_path, self.user_keys)

    def user_path(self, path: str) -> str:
        """The file's word for one of our dotted paths, also for a field that the file does not mention."""
        exact = {"method": "method_name", "method.name": "method_name", "task": "dataset.name"}
        if path in exact:
            return exact[path]
        prefixes = {home: section for section, home in HOMES.items()} | {"method": method_section(self.method)}
        known = prefixes | self.origin
        parts = path.split(".")
        for length in range(len(parts), 0, -1):
            if found := known.get(".".join(parts[:length])):
                return ".".join([found, *parts[length:]])
        return path

    def user_keys(self, section: str) -> tuple[str, ...]:
        """Keys of the dialect in a section that the file calls by this dotted path."""
        return keys_of(section)

    def put(self, source: str, target: str, value: object) -> None:
        """File `value`, which the author called `source`, under our path `target`."""
        if (earlier := self.origin.get(target)) is not None and earlier != source:
            if self.overridden(source) == self.overridden(earlier):
                self.note(source, f"{source} and {earlier} say the same thing ({target}); keep one of them", "error")
                return
            if self.overridden(earlier):
                return
        section, _, key = target.partition(".")
        self.origin[target] = source
        if key and not isinstance(self.data.get(section, {}), Mapping):
            return  # the section itself is wrong, which validation says
        if key:
            self.data[section] = {**self.data.get(section, {}), key: value}
        else:
            self.data[section] = value

    def note(self, path: str, message: str, level: Level = "note") -> None:
        """Add a finding."""
        self.findings.append(Finding(path, message, level))


def translate(
    data: Mapping[str, Any],
    original: Mapping[str, Any] | None = None,
    overridden: Callable[[str], bool] = nothing_overridden,
) -> Translation:
    """`data` (a file in the dialect, overrides applied) in the shape of our schema.

    `original` is the file without overrides; `overridden` tells which of the file's paths an override set.
    """
    out = Translation(_method_name(data), overridden)
    data = _keep_adapter_settings(data, original or data, out)
    entries = dict(_entries(data))
    _read_method(data, out)
    for source, value in entries.items():
        if source != "optuna.search_space":
            _read(source, value, out)
    if section_class("method", {"name": out.method}) is None:
        out.data.pop("method", None)
    else:
        _read_adapter(entries, out)
    if isinstance(space := entries.get("optuna.search_space"), Mapping):
        _read_search_space(space, out)
    elif space is not None:
        out.put("optuna.search_space", "sweep.search_space", space)
    return out


def _method_name(data: Mapping[str, Any]) -> str:
    """Our name of the method, or the author's word if it is none that we know."""
    name = str(data.get("method_name") or data.get("method") or "")
    return METHOD_NAMES.get(name.lower(), name)


def _read_method(data: Mapping[str, Any], out: Translation) -> None:
    role = data.get("method")
    if section_class("method", {"name": out.method}) is not None:
        out.data["method"] = {"name": out.method}
        return
    allowed = ", ".join(["GLoRA", "AdaLoRA", "LoRA"])
    if "method_name" in data:
        close = did_you_mean(out.method, METHOD_NAMES)
        out.note(
            "method_name",
            f"{data['method_name']!r} is not a method{close or '.'} Allowed: {allowed}, or our own names",
            "error",
        )
    else:
        says = f"`method: {role}` is a role, not a method" if role else "no method is named"
        out.note("method_name", f"is missing and {says}; allowed: {allowed}, or our own names", "error")


def _keep_adapter_settings(data: Mapping[str, Any], original: Mapping[str, Any], out: Translation) -> Mapping[str, Any]:
    """`model=minilm` replaces the base model; what the file says about the adapter (`model.peft`) is not the model."""
    model, before = data.get("model"), original.get("model")
    if not isinstance(model, str):
        return data
    peft = before.get("peft") if isinstance(before, Mapping) else None
    if peft is None:
        return {**data, "model": {"backbone": model}}
    out.note("model", f"the base model is {model}; model.peft of the file still holds, its other model.* keys do not")
    return {**data, "model": {"backbone": model, "peft": peft}}


def _entries(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key with its dotted path, sections opened."""
    for key, value in data.items():
        if key == "dataset" and isinstance(value, str):
            yield "dataset.name", value
        elif isinstance(value, Mapping):
            for inner, content in value.items():
                if (key, inner) == ("model", "peft") and isinstance(content, Mapping):
                    yield from ((f"model.peft.{name}", setting) for name, setting in content.items())
                else:
                    yield f"{key}.{inner}", content
        else:
            yield key, value


def _read(source: str, value: object, out: Translation) -> None:
    """File one key of the dialect; the adapter's own settings come later."""
    section, _, key = source.partition(".")
    if source in ("method", "method_name") or source.startswith("model.peft") or section == method_section(out.method):
        return
    if section in METHOD_SECTIONS.values():
        out.unused.add(source)
        if not any(f.path == section for f in out.findings):
            out.note(section, f"this section is not used: the method is {out.method or 'not known'}", "warning")
    elif source == "run_id":
        out.label = str(value)
        out.note(source, f"'{value}' is kept as a label; the run's own id is computed from its values")
    elif source == "training.optimizer" and str(value).lower() != "adamw":
        out.note(source, f"{value!r} must be adamw: the one optimizer there is", "error")
    elif section == "hardware" or (source in BY_SOURCE and BY_SOURCE[source].target is None):
        meaning = BY_SOURCE[source].meaning if source in BY_SOURCE else "describes the machine"
        out.note(source, f"{value}: {meaning}")
    elif source in BY_SOURCE:
        out.put(source, str(BY_SOURCE[source].target), value)
    else:
        out.put(source, f"{HOMES.get(section, section)}.{key}" if key else HOMES.get(section, section), value)


def _read_adapter(entries: Mapping[str, Any], out: Translation) -> None:
    """The method's own section, and `model.peft`."""
    section = method_section(out.method)
    for source in (section, "model.peft"):
        if entries.get(source) is not None:
            out.note(source, f"{entries[source]!r} must be a mapping (`key: value` lines)", "error")
    for source, value in entries.items():
        if source.startswith(f"{section}."):
            row, key = BY_SOURCE.get(source), source.removeprefix(f"{section}.")
            if key == "init_rank":
                continue
            target = row.target if row and row.target else f"method.{key}"
            out.put(source, target, _ranks(value) if key == "total_rank_budget" else value)
    peft = {s.removeprefix("model.peft."): v for s, v in entries.items() if s.startswith("model.peft.")}
    if out.method == "full":
        if peft:
            out.note("model.peft", "not used: full fine-tuning has no adapter", "warning")
        return
    rank = entries.get(f"{section}.init_rank", peft.get("init_rank"))
    source = f"{section}.init_rank" if f"{section}.init_rank" in entries else "model.peft.init_rank"
    if rank is not None:
        _read_initial_rank(source, rank, out)
    for key, value in peft.items():
        if key == "alpha" and _is_number(value) and _is_number(rank) and float(rank) > 0:
            out.put("model.peft.alpha", "method.scaling", float(value) / float(rank))
        elif key == "alpha":
            out.note(
                "model.peft.alpha", f"{value!r} needs a number, and model.peft.init_rank to be divided by", "error"
            )
        elif key == "type":
            out.note("model.peft.type", f"{value}: {BY_SOURCE['model.peft.type'].meaning}")
        elif key != "init_rank":
            out.put(f"model.peft.{key}", f"method.{key}", value)


def _read_initial_rank(source: str, rank: Plain, out: Translation) -> None:
    """LoRA's rank is its budget; AdaLoRA's is where pruning starts from; GLoRA starts at its budget."""
    if out.method == "peft_adalora":
        _read_initial_ratio(source, rank, out)
    elif out.method == "lora" and "method.budget" not in out.origin:
        out.put(source, "method.budget", f"r={rank}")
    else:
        why = "its warm-up trains at the budget itself" if out.method == "glora" else "the budget is given otherwise"
        out.note(source, f"{rank} is not used by {out.method}: {why}")


def _read_initial_ratio(source: str, rank: Plain, out: Translation) -> None:
    facts = model_facts(out.data.get("model", {}).get("name") if isinstance(out.data.get("model"), Mapping) else None)
    budget = str(out.data.get("method", {}).get("budget", "")).removesuffix(" ranks")
    whole = facts is not None and "method.target_modules" not in out.origin
    if facts is None or not whole or not budget.isdigit() or not _is_number(rank) or int(budget) == 0:
        out.note(
            source,
            f"{rank} cannot be compared with the budget without the number of matrices; the default ratio is used",
        )
        return
    ratio = round(float(rank) * facts.matrices / int(budget), 4)
    if ratio <= 1:
        out.note(
            source, f"{rank} per matrix is below the budget of {budget} ranks; the default ratio is used", "warning"
        )
        return
    message = f"{rank} x {facts.matrices} matrices = {float(rank) * facts.matrices:.0f} ranks, {ratio:g} x the budget"
    out.note(source, message)
    out.put(source, "method.initial_ratio", ratio)


def _ranks(value: Plain) -> Plain:
    return f"{value} ranks" if _is_number(value) else value


def _is_number(value: Plain) -> bool:
    try:
        return not isinstance(value, bool) and float(value) == float(value)
    except (TypeError, ValueError):
        return False


_TYPES = {"loguniform": ("float", True), "uniform": ("float", False), "logint": ("int", True)}


def _read_search_space(space: Mapping[str, Any], out: Translation) -> None:
    found: dict[str, Any] = {}
    for leaf, spread in space.items():
        user = f"optuna.search_space.{leaf}"
        target = _resolve(str(leaf), user, out)
        if target is None:
            continue
        if isinstance(spread, Mapping):
            kind, log = _TYPES.get(str(spread.get("type")), (spread.get("type"), None))
            spread = {**spread, "type": kind, **({} if log is None else {"log": log})}
            if target == "method.budget" and isinstance(spread.get("choices"), list):
                spread["choices"] = [_ranks(choice) for choice in spread["choices"]]
            elif target == "method.budget":
                out.note(user, "budgets are searched as a list: type categorical with choices", "error")
                continue
        found[target] = spread
        out.origin[f"sweep.search_space.{target}"] = user
    out.put("optuna.search_space", "sweep.search_space", found)


def _resolve(leaf: str, user: str, out: Translation) -> str | None:
    """Our path for a key of the search space: a full path, or the last part of exactly one."""
    section = method_section(out.method)
    in_file = {source: target for target, source in out.origin.items() if not target.startswith("sweep.")}
    if leaf in in_file:
        return in_file[leaf]
    if any(leaf in (path, path.rpartition(".")[2]) for path in out.unused):
        out.note(user, f"is left out: the method is {out.method or 'not known'}, which has no such setting", "warning")
        return None
    table = {
        row.source: row.target
        for row in ROWS
        if row.target and row.source.split(".")[0] not in ({"optuna", *METHOD_SECTIONS.values()} - {section})
    }
    ours = {path: path for path in _our_paths(out.method)}
    own_words = {source: target for source, target in in_file.items() if source in table}
    for known in (own_words, in_file, table, ours):
        full = known.get(leaf)
        targets = {full} if full else {target for path, target in known.items() if path.rpartition(".")[2] == leaf}
        if len(targets) == 1:
            return targets.pop()
        if targets:
            out.note(user, f"could mean {' or '.join(sorted(map(str, targets)))}; write the full path [40]", "error")
            return None
    leaves = {path.rpartition(".")[2] for known in (in_file, table, ours) for path in known}
    out.note(user, f"no field is called '{leaf}'{did_you_mean(leaf, leaves)} [40]", "error")
    return None


def _our_paths(method: str) -> Iterator[str]:
    for name in RunConfig.model_fields:
        section = section_class(name, {"name": method} if name == "method" else {})
        yield from (f"{name}.{inner}" for inner in section.model_fields) if section and name != "sweep" else ()
