"""What a check looks at, and the table of all checks.

A rule is a function from a `Subject` to defects, filed under a name, the artefact that it is about and the numbers of
the known defects (`catalogue`) that it can raise. Rules only read; what they say is computed from what they read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from rankwise.research.artefacts import Defect, Design, Hypothesis, Level, Paper
from rankwise.research.extract import Prediction, Settings, given, predictions, proposed_name, settings
from rankwise.research.imported import Imported, ImportedReview
from rankwise.research.wording import plain

On: TypeAlias = Literal["hypothesis", "design", "configs", "papers", "review", "record"]
_ORDER: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Subject:
    """What is judged: the artefact and whatever it may be judged by. Parts that are not there are empty."""

    hypothesis: Hypothesis | None = None
    history: tuple[Hypothesis, ...] = ()
    papers: tuple[Paper, ...] = ()
    design: Design | None = None
    configs: Mapping[str, str] = field(default_factory=dict)
    imported: Imported | None = None
    review: ImportedReview | None = None

    @cached_property
    def method(self) -> str:
        """The hypothesis' method, in plain characters."""
        return plain(self.hypothesis.method) if self.hypothesis else ""

    @cached_property
    def setup(self) -> str:
        """Its experimental setup."""
        return plain(self.hypothesis.experimental_setup) if self.hypothesis else ""

    @cached_property
    def expected(self) -> str:
        """Its expected result."""
        return plain(self.hypothesis.expected_result) if self.hypothesis else ""

    @cached_property
    def conclusion(self) -> str:
        """Its expected conclusion."""
        return plain(self.hypothesis.expected_conclusion) if self.hypothesis else ""

    @cached_property
    def code(self) -> str:
        """Its sketch of code, as it stands."""
        return self.hypothesis.experimental_code if self.hypothesis else ""

    @cached_property
    def words(self) -> str:
        """Everything that it says, sketch excepted."""
        said = self.hypothesis
        parts = (said.title, said.open_problems, said.primary_metric) if said else ()
        return "\n".join([*map(plain, parts), self.method, self.setup, self.expected, self.conclusion])

    @cached_property
    def name(self) -> str:
        """What it calls its method."""
        return proposed_name(self.hypothesis.title, self.hypothesis.method) if self.hypothesis else ""

    @cached_property
    def settings(self) -> Settings:
        """Numbers and names of its setup, completed from its method."""
        return settings(f"{self.setup}\n{self.method}")

    @cached_property
    def predictions(self) -> tuple[Prediction, ...]:
        """What its expected result predicts, and what its claims do beyond that."""
        if self.hypothesis is None:
            return ()
        said = predictions(self.hypothesis.expected_result, self.name)
        return (*said, *(one for one in given(self.hypothesis.claims) if not any(_same(one, other) for other in said)))


def _same(one: Prediction, other: Prediction) -> bool:
    """Do a claim and a sentence predict the same number?"""
    inside = other.low - 1e-9 <= one.low <= other.high + 1e-9
    return one.quantity == other.quantity and one.form == other.form and inside


Check: TypeAlias = Callable[[Subject], Iterable[Defect]]


@dataclass(frozen=True)
class Rule:
    """A check with its name, what it is about and the known defects that it can raise."""

    name: str
    on: On
    items: tuple[int, ...]
    check: Check

    @property
    def summary(self) -> str:
        """What it looks for, in one line."""
        return (self.check.__doc__ or "").partition("\n")[0]


RULES: list[Rule] = []


def rule(name: str, on: On, *items: int) -> Callable[[Check], Check]:
    """Decorator that files a check and leaves the function as it is."""

    def add(check: Check) -> Check:
        RULES.append(Rule(name, on, items, check))
        return check

    return add


def run(on: On, subject: Subject) -> tuple[Defect, ...]:
    """Every defect that the rules for such an artefact find, errors first, none twice.

    Raises:
        AssertionError: a rule raised a number that it did not announce (a mistake in the rule).
    """
    found: list[Defect] = []
    for one in RULES:
        if one.on == on:
            for defect in one.check(subject):
                assert set(defect.items) <= set(one.items), f"{one.name} did not announce {defect.items}"
                found.append(defect.model_copy(update={"rule": one.name}))
    return in_order(found)


def in_order(found: Iterable[Defect]) -> tuple[Defect, ...]:
    """Errors first, then warnings and notes, otherwise as they came; the same thing once."""
    once = {(defect.rule, defect.where, defect.message): defect for defect in found}
    return tuple(sorted(once.values(), key=lambda defect: _ORDER.index(defect.level)))


def defect(message: str, *items: int, where: str = "", level: Level = "error") -> Defect:
    """A defect; `run` writes the rule's name into it."""
    return Defect(rule="unnamed", items=items, where=where, message=message, level=level)


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def announced() -> Iterator[tuple[int, Rule]]:
    """Every number of a known defect with a rule that can raise it."""
    for one in RULES:
        for item in one.items:
            yield item, one
