"""What changed between two hypotheses."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from research.stages.scripted import FIRST, SECOND, THIRD

from rankwise.research.differences import between, text

WORDS = st.text(alphabet="ab \n", max_size=60)


def with_method(words):
    return FIRST.model_copy(update={"method": words or "x"})


@given(WORDS, WORDS)
def test_the_pieces_make_up_both_texts(old, new):
    before, after = with_method(old), with_method(new)
    difference = between(before, after)
    if before == after:
        assert difference.same
        return
    (field,) = difference.fields
    assert "".join(piece.text for piece in field.pieces if piece.kind != "added") == before.method
    assert "".join(piece.text for piece in field.pieces if piece.kind != "removed") == after.method


def test_a_changed_word_is_seen_with_a_few_around_it():
    words = [f"w{n}" for n in range(40)]
    after = [*words[:20], "new", *words[21:]]
    shown = text(between(with_method(" ".join(words)), with_method(" ".join(after))))
    assert "method  (-1 +1 words)" in shown
    assert "w19 [-w20-] {+new+} w21" in shown
    assert "w5 … w14" in shown
    assert "w10" not in shown


def test_claims_are_compared_by_id():
    shown = text(between(FIRST, SECOND))
    assert "  + C3  GLoRA is more accurate than random allocation." in shown
    assert text(between(SECOND, FIRST)).count("  - C3  ") == 1
    changed = FIRST.claims[0].model_copy(update={"margin": 0.02})
    difference = between(FIRST, FIRST.model_copy(update={"claims": (changed, FIRST.claims[1])}))
    (claim,) = difference.claims
    assert (claim.kind, claim.changed) == ("changed", {"margin": (0.01, 0.02)})
    assert "      margin: 0.01 -> 0.02" in text(difference)


def test_the_reason_is_shown():
    assert "why\n  States the budget in parameters" in text(between(SECOND, THIRD))


def test_nothing_changed():
    assert between(FIRST, FIRST).same
    assert text(between(FIRST, FIRST)) == "no difference"


def test_as_data_it_is_json():
    difference = between(FIRST, THIRD)
    assert type(difference).model_validate_json(difference.model_dump_json()) == difference


@pytest.mark.timeout(120)
@pytest.mark.parametrize("vocabulary", [2, 110, 5000])
def test_long_texts_take_no_time(vocabulary):
    """As long as a field may be, of few words or of many."""
    draw = random.Random(0)
    before, after = (" ".join(f"w{draw.randrange(vocabulary)}" for _ in range(16_000)) for _ in range(2))
    (field,) = between(with_method(before), with_method(after)).fields
    assert "".join(piece.text for piece in field.pieces if piece.kind != "added") == before
