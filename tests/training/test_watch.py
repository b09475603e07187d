"""Measurements on the way leave a run as it would have been without them."""

import numpy as np
import pytest
import torch
from tiny import build, settings, tiny_data, tiny_tokenizer

from rankwise.training.fit import fit
from rankwise.training.watch import Watch, moments


def train(name, folder, watch=None, **fields):
    torch.manual_seed(5)
    method = build(name, **fields)
    changes = settings(batch_size=4, total_steps=12)
    held = {"main": tiny_data(9, seed=3)}
    fitted = fit(method, tiny_tokenizer(), tiny_data(20), held, changes, work_dir=folder, watch=watch)
    weights = {n: p.detach().clone() for n, p in method.model.named_parameters() if p.requires_grad}
    return fitted, weights


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("lora", {"dropout": 0.1}),
        pytest.param("glora", {"warmup": 4}, marks=pytest.mark.slow),
        pytest.param("cogalora", {"budget": "r=6"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_nothing_changes(name, fields, tmp_path):
    seen = []
    watch = Watch(0.25, lambda number, logits, references: seen.append((number, logits, references)))
    alone, weights = train(name, tmp_path / "a", **fields)
    watched, same = train(name, tmp_path / "b", watch, **fields)
    assert [number for number, _, _ in seen] == [1, 2, 3]
    assert all(logits.shape == (9, 3) for _, logits, _ in seen)
    assert all((references == alone.references["main"]).all() for _, _, references in seen)
    assert alone.losses == watched.losses
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    assert np.array_equal(alone.logits["main"], watched.logits["main"])


def test_what_the_watch_raises_ends_training(tmp_path):
    class Enough(Exception):
        pass

    def stop(number, logits, references):
        raise Enough

    with pytest.raises(Enough):
        train("lora", tmp_path, Watch(0.5, stop))


def test_moments_are_shares_and_leave_the_last_step_out():
    assert moments(0.1, 100) == {10 * k: k for k in range(1, 10)}
    assert moments(0.5, 3) == {2: 1}
    assert moments(0.3, 10) == {3: 1, 6: 2, 9: 3}
    assert moments(0.1, 4) == {1: 2, 2: 4, 3: 7}
    assert moments(0.1, 1) == {}
