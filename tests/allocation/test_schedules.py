"""Lengths of phases, and the cubic course of a budget against the formula in fractions and PEFT's scheduler."""

from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.adalora.layer import RankAllocator
from pydantic import TypeAdapter, ValidationError

from rankwise.allocation.schedules import Length, cubic, in_steps


@st.composite
def courses(draw):
    warmup = draw(st.integers(1, 300))
    target = draw(st.integers(0, 10**6))
    return {
        "initial": target + draw(st.integers(0, 10**6)),
        "target": target,
        "warmup": warmup,
        "last": warmup + draw(st.integers(1, 300)),
    }


def test_by_hand():
    """100 to 20 between steps 10 and 20: at the middle an eighth of the 80 is left."""
    course = {"initial": 100, "target": 20, "warmup": 10, "last": 20}
    budgets = [cubic(step, **course) for step in (1, 10, 11, 15, 19, 20, 500)]
    assert budgets == [100, 100, int(20 + 80 * 0.9**3), 30, 20, 20, 20]


@given(courses())
def test_falls_from_the_initial_budget_to_the_target_and_stays(course):
    budgets = [cubic(step, **course) for step in range(1, course["last"] + 20)]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[: course["warmup"]] == [course["initial"]] * course["warmup"]
    assert budgets[course["last"] - 1 :] == [course["target"]] * 20


@given(courses(), st.floats(0, 1))
def test_is_the_papers_formula(course, where):
    step = course["warmup"] + round(where * (course["last"] - course["warmup"]))
    left = 1 - Fraction(step - course["warmup"], course["last"] - course["warmup"])
    exact = course["target"] + (course["initial"] - course["target"]) * left**3
    assert abs(cubic(step, **course) - exact) <= 1
    assert cubic(step, **course) <= exact + Fraction(1, 10**6)


@given(courses(), st.integers(1, 50))
def test_is_pefts_schedule(course, final):
    """PEFT is asked without a model: only its numbers matter."""
    allocator = object.__new__(RankAllocator)
    total = course["last"] + final
    allocator.peft_config = SimpleNamespace(tinit=course["warmup"], tfinal=final, total_step=total, deltaT=1)
    allocator.init_bgt, allocator.target_bgt = course["initial"], course["target"]
    for step in range(1, total + 1, max(1, total // 40)):
        assert allocator.budget_schedule(step)[0] == cubic(step, **course)


@pytest.mark.parametrize(
    ("length", "total", "steps"),
    [(5, 100, 5), (500, 100, 500), (0.1, 100, 10), (0.1, 12, 1), (0.01, 12, 1), (0.25, 10, 2), (0.999, 10, 10)],
)
def test_lengths_in_steps(length, total, steps):
    assert in_steps(length, total) == steps


def test_lengths_are_read_as_steps_or_fractions():
    length = TypeAdapter(Length)
    assert [length.validate_python(v) for v in (1, 12000.0, 0.5)] == [1, 12000, 0.5]
    assert isinstance(length.validate_python(12000.0), int)


@pytest.mark.parametrize("value", [0, -3, 1.0, 1.5, -0.1, 0.0])
def test_ambiguous_lengths_are_refused(value):
    with pytest.raises(ValidationError, match=r"whole, 1 or more\) or a fraction of training"):
        TypeAdapter(Length).validate_python(value)
