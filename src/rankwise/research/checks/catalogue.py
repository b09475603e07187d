"""The known defects by number, in our words: what is wrong, how code finds it, and what code cannot decide about it.

1 to 83 are those of the example records' hypotheses, designs, run configs and refinements; 84 to 89 those of the
machine review. `docs/defects.md` is made from this table and the registry of rules.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rankwise.research.checks.catalogue_configs import CONFIGS
from rankwise.research.checks.catalogue_methods import METHODS
from rankwise.research.checks.catalogue_refinements import REFINEMENTS
from rankwise.research.checks.registry import RULES, Rule, announced

How: TypeAlias = Literal["arithmetic", "syntax tree", "wording", "table"]
PARTS = {
    "hypothesis": (1, 31),
    "run configs": (32, 51),
    "refinement": (52, 83),
    "review": (84, 89),
}
"""Kinds of records and the numbers that were found in them."""


HEAD = """# Known defects and the rules that find them

Generated from the registry of rules; a test keeps it current. `rankwise research check RECORD` (or a project, one of
its JSON files, or a run config) lists every defect by level, with its rule, its number here, where it is and what is
true instead. An **error** cannot be run or contradicts itself, a **warning** weakens what can be concluded, a **note**
is worth knowing.

Numbers 1 to 83 were found by hand in three records of an automated-research pipeline, 84 to 89 in its machine review
of the AdaLoRA paper. *Found by*: `arithmetic` computes with the numbers that are stated; `syntax tree` reads a sketch
of code, which is never executed; `table` compares with known facts (sizes of models and datasets, metrics of tasks,
names); `wording` looks for what a text says, and can miss other words for it. The last column says what stays open.
"""


@dataclass(frozen=True)
class Item:
    """A known defect. `limit` is what code cannot decide about it; empty where it decides all of it."""

    number: int
    wrong: str
    how: How
    limit: str = ""


def items() -> tuple[Item, ...]:
    """Every known defect, in order."""
    rows = {**METHODS, **CONFIGS, **REFINEMENTS}
    return tuple(Item(number, *rows[number]) for number in sorted(rows))


def rules_for(number: int) -> tuple[Rule, ...]:
    """Rules that can raise it."""
    return tuple(one for item, one in announced() if item == number)


def markdown() -> str:
    """`docs/defects.md`."""
    return "\n".join([*_head(), *_tables(), *_rules()]) + "\n"


def _head() -> Iterator[str]:
    yield HEAD


def _tables() -> Iterator[str]:
    for part, (first, last) in PARTS.items():
        yield from (f"## {part.capitalize()}", "")
        yield from ("| no. | what is wrong | rules | found by | what code cannot decide |", "|---|---|---|---|---|")
        for item in items():
            if first <= item.number <= last:
                rules = ", ".join(dict.fromkeys(f"`{one.name}`" for one in rules_for(item.number)))
                yield f"| {item.number} | {item.wrong} | {rules} | {item.how} | {item.limit} |"
        yield ""


def _rules() -> Iterator[str]:
    yield from ("## Rules", "", "| rule | looks at | asks |", "|---|---|---|")
    for name in sorted({one.name for one in RULES}):
        own = [one for one in RULES if one.name == name]
        about = ", ".join(dict.fromkeys(one.on for one in own))
        asks = " ".join(dict.fromkeys(one.summary for one in own))
        yield f"| `{name}` | {about} | {asks} |"
