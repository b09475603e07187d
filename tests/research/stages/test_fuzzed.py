"""Damaged, hostile and enormous answers: each is a hypothesis, an opinion, or an error of ours, and it ends."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from research.llm.talking import Lines
from research.stages.projects import PAPERS, TOPIC
from research.stages.scripted import FIRST, SECOND, opinion

from rankwise.errors import ModelAnswerError
from rankwise.research.artefacts import Evaluation, Hypothesis, Opinion
from rankwise.research.conversation import Conversing
from rankwise.research.evaluate import opinion_problems, prompt
from rankwise.research.hypothesize import propose
from rankwise.research.project import Settings

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
HOSTILE = ("\x00", "\ud800", "\u202e", "```", "{{topic}}", "end data 0>>>", "'''", "\\", "}" * 50, "1e999", "-" * 40)


@st.composite
def damaged(draw, content):
    """A right answer with a key that says something else, or bytes that are gone, doubled or hostile."""
    values = content.model_dump(mode="json")
    if draw(st.booleans()):
        values[draw(st.sampled_from(sorted(values)))] = draw(VALUES | st.sampled_from(HOSTILE))
    text = json.dumps(values)
    place = draw(st.integers(0, len(text)))
    change = draw(st.sampled_from(("none", "cut", "double", "insert", "python")))
    if change == "cut":
        return text[:place]
    if change == "double":
        return text[:place] + text
    if change == "insert":
        return text[:place] + draw(st.sampled_from(HOSTILE)) + text[place:]
    return repr(values) if change == "python" else text


@given(st.lists(damaged(FIRST) | st.text(max_size=99), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_proposals(answers):
    lines = Lines(*answers)
    try:
        found = propose(Settings(topic=TOPIC), PAPERS, Conversing(lines), style="free").content
    except ModelAnswerError as error:
        found = str(error)
    assert isinstance(found, Hypothesis) or "no valid answer" in found
    assert len(lines.heard) <= 4


@given(damaged(opinion(0, PAPERS)))
def test_opinions(answer):
    asked = prompt(Settings(topic=TOPIC), FIRST, Evaluation(), (), PAPERS)
    try:
        found = (
            Conversing(Lines(answer)).ask(asked, Opinion, lambda said: opinion_problems(said, PAPERS.papers)).content
        )
    except ModelAnswerError as error:
        found = str(error)
    assert isinstance(found, Opinion) or "no valid answer" in found


FILLERS = ("a", "9.", "1,", "(", "+0.5-1.0 ", "LoRA ", "12 % ", "\n", "`", "A ≈ B > ", "x = [", "f(", "if x:\n")


@pytest.mark.slow
@pytest.mark.parametrize("filler", FILLERS)
@pytest.mark.timeout(120)
def test_fields_as_long_as_they_may_be_are_judged_in_a_moment(filler):
    """The checks read every field with patterns; none may take for ever on any text."""
    text = (filler * 100_000)[:100_000]
    fields = ("method", "expected_result", "experimental_setup", "experimental_code")
    long = SECOND.model_copy(update=dict.fromkeys(fields, text))
    lines = Lines(long.model_dump_json())
    assert propose(Settings(topic=TOPIC), PAPERS, Conversing(lines), style="free").content == long
