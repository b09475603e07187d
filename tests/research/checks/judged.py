"""Records of our own for tests of the judge: repaired ones from files, broken ones from repaired ones."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from rankwise.research.artefacts import Hypothesis
from rankwise.research.imported import Imported

FOLDER = Path(__file__).parents[2] / "data" / "research"
REPAIRED = ("hypothesis", "configs", "refinement", "review")


@cache
def repaired(name: str) -> Imported:
    """A repaired record by its kind."""
    text = (FOLDER / f"repaired_{name}.json").read_text(encoding="utf-8")
    return TypeAdapter(Imported).validate_python(json.loads(text))


def changed(hypothesis: Hypothesis, **fields: str | tuple[str, str]) -> Hypothesis:
    """A hypothesis with other fields: a whole text, or (what is replaced, by what; `` appends)."""
    values = {}
    for name, value in fields.items():
        before = getattr(hypothesis, name)
        if isinstance(value, tuple):
            old, new = value
            assert old in before, f"{old!r} is not in {name}"
            value = before.replace(old, new) if old else f"{before}\n{new}"
        values[name] = value
    return hypothesis.model_copy(update=values)


def with_hypothesis(record: Imported, hypothesis: Hypothesis, number: int = -1) -> Imported:
    """A record with another hypothesis in one of its rounds."""
    rounds = list(record.rounds)
    rounds[number] = replace(rounds[number], hypothesis=hypothesis)
    return replace(record, rounds=tuple(rounds))


def numbers(defects) -> set[int]:
    """Numbers of known defects."""
    return {item for one in defects for item in one.items}
