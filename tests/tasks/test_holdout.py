"""A share of the training examples as the only evaluation split."""

from collections import Counter

import pytest

from rankwise.errors import DataError
from rankwise.tasks.data import Examples, assemble
from rankwise.tasks.files import FilesTask
from rankwise.tasks.holdout import SPLIT, held_out


def task(labels, *, kind="classification", pair=False, validation=10):
    texts = [f"text {i}" for i in range(len(labels))]
    others = [f"pair {i}" for i in range(len(labels))] if pair else None
    names = [str(k) for k in range(3)] if kind == "classification" else []
    held = Examples([f"held {i}" for i in range(validation)], labels[:validation], others and others[:validation])
    config = FilesTask(path="x.csv")
    return assemble(config, "mine", kind, Examples(texts, labels, others), {"validation": held}, names, ("accuracy",))


def rows(data):
    return [tuple(row.items()) for row in data]


def test_the_share_is_taken_away_from_training_and_validation_is_gone():
    whole = task([i % 3 for i in range(90)], pair=True)
    part = held_out(whole, 0.2, 0)
    assert list(part.validation) == [SPLIT]
    train, held = rows(part.train), rows(part.validation[SPLIT])
    assert (len(train), len(held)) == (72, 18)
    assert sorted(train + held) == sorted(rows(whole.train))
    assert set(Counter(part.validation[SPLIT]["label"][:]).values()) == {6}
    assert not set(held) & set(rows(whole.validation["validation"]))


def test_the_seed_decides_and_the_fingerprint_tells():
    whole = task([i % 3 for i in range(90)])
    first, again, other, larger = (held_out(whole, *a) for a in ((0.2, 0), (0.2, 0), (0.2, 1), (0.3, 0)))
    assert first.fingerprint == again.fingerprint
    assert rows(first.train) == rows(again.train)
    assert len({whole.fingerprint, first.fingerprint, other.fingerprint, larger.fingerprint}) == 4


def test_validation_data_do_not_matter():
    labels = [i % 3 for i in range(90)]
    assert held_out(task(labels), 0.2, 0).fingerprint == held_out(task(labels, validation=4), 0.2, 0).fingerprint


def test_a_class_with_one_example_stays_in_training():
    part = held_out(task([2, *[i % 2 for i in range(40)]]), 0.9, 0)
    assert set(part.train["label"][:]) == {0, 1, 2}


def test_regression_is_drawn_uniformly():
    part = held_out(task([i / 7 for i in range(50)], kind="regression"), 0.1, 3)
    assert (len(part.train), len(part.validation[SPLIT])) == (45, 5)


def test_too_few_examples_are_refused():
    with pytest.raises(DataError, match=r"a share of 0\.05 of its 20 training examples leaves 1"):
        held_out(task([i % 2 for i in range(20)]), 0.05, 0)
