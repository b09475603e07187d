"""Rules on run configs: what `rankwise config check` finds in each and in all, under the names of the rules."""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from rankwise.errors import Finding
from rankwise.research.artefacts import Defect
from rankwise.research.checks.registry import Subject, defect, rule

_ITEM = re.compile(r"\s*\[(\d{1,3})\]\s*$")
_MANY = 200
"""Configs that are looked at; more are passed over with one word."""
_NAMES: dict[str, tuple[str, tuple[int, ...]]] = {
    "claim_coverage": ("Runs exist for what is claimed: plain LoRA, the tasks that are spoken of.", (32, 33)),
    "step_arith": ("Warm-ups and schedules fit into the run, also when the search changes its length.", (37, 38)),
    "in_space": ("A fixed value lies in its own search range, and warm-ups agree.", (34,)),
    "budget_arith": ("One budget, whole ranks, at least one per matrix, met at the start too.", (35,)),
    "frozen_factors": ("What a comparison holds equal is not searched.", (36,)),
    "tuning_parity": ("Baselines get their own settings, and every arm the same search.", (39,)),
    "path_resolve": ("A key of the search space names one field.", (40,)),
    "numeric_yaml": ("Numbers are numbers in every YAML reader.", (41,)),
    "param_bound": ("What is said of the base model is true.", (42,)),
    "metric_exists": ("Metrics exist for the task and are measured.", (43,)),
    "names_of_methods": ("A method is named by its name, a run by one id, a model by what loads it.", (44,)),
    "split_policy": ("Seeds are given; trials are chosen on other examples than the result is reported on.", (45,)),
    "compute_estimate": ("What a search costs is known and bounded.", (46,)),
    "timing_same_device": ("Times come from one device, and something enforces it.", (48,)),
    "search_words": ("Distributions have the search library's names.", (50,)),
    "schema": ("What selects the method and sizes the adapter is given, in one schema.", (51,)),
}  # fmt: skip


@lru_cache(maxsize=8)
def _found(configs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, Finding], ...]:
    """Every finding with the config that it is about (empty: all together)."""
    from rankwise.experiments import config as loading

    found: list[tuple[str, Finding]] = []
    checked = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, text) in enumerate(configs[:_MANY]):
            path = Path(folder) / f"{number}.yaml"
            path.write_text(text.encode("utf-8", "replace").decode("utf-8"), encoding="utf-8")
            one = loading.check(path)
            checked.append(one)
            found += [(name, finding) for finding in one.findings]
        found += [("", finding) for finding in loading.check_together(checked)]
    return tuple(found)


def _defects(subject: Subject, items: tuple[int, ...], *, numbered: bool = True) -> Iterator[Defect]:
    for name, finding in _found(tuple(subject.configs.items())):
        match = _ITEM.search(finding.message)
        if numbered != (match is not None):
            continue
        if match is None and finding.level == "note":
            continue  # how a value was read
        if match is not None and int(match[1]) not in items:
            continue
        where = ".".join(part for part in ("configs", name, finding.path) if part)
        text = _ITEM.sub("", finding.message)
        yield defect(text, *((int(match[1]),) if match else ()), where=where, level=finding.level)


def _rule_for(items: tuple[int, ...], doc: str) -> Callable[[Subject], Iterable[Defect]]:
    def check(subject: Subject) -> Iterator[Defect]:
        return _defects(subject, items)

    check.__doc__ = doc
    return check


for _name, (_doc, _items) in _NAMES.items():
    rule(_name, "configs", *_items)(_rule_for(_items, _doc))


@rule("config_check", "configs")
def anything_else(subject: Subject) -> Iterator[Defect]:
    """A config loads: known keys, allowed values."""
    return _defects(subject, (), numbered=False)
