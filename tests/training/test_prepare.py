"""What a method may see before the first step, and what the run must not notice of it."""

import random

import numpy as np
import pytest
import torch
from scripted import scripted
from tiny import build, settings, tiny_data, tiny_model, trainer_for
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from rankwise.training.callback import RankwiseCallback
from rankwise.training.ddp import wrappers_of
from rankwise.training.preparation import batches_of, prepare, same_random_state

QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def collate(rows):
    columns = ("input_ids", "attention_mask", "labels")
    return {name: torch.tensor([row[name] for row in rows]) for name in columns} | {"text": "not for the model"}


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_batches_come_in_an_order_of_their_own_again_and_again():
    method, data = build("lora"), tiny_data(10, length=5)
    start = batches_of(method.model, data, collate, 4, seed=3)
    before = states()
    first, second = [list(start()) for _ in range(2)]
    assert states() == before
    assert [len(batch["labels"]) for batch in first] == [4, 4, 2]
    assert all(batch.keys() == {"input_ids", "attention_mask", "labels"} for batch in first)
    rows = [row for batch in first for row in batch["input_ids"].tolist()]
    assert rows == [row for batch in second for row in batch["input_ids"].tolist()]
    assert sorted(rows) == sorted(data["input_ids"][:])
    assert rows != data["input_ids"][:]
    other = [
        row for batch in batches_of(method.model, data, collate, 4, seed=4)() for row in batch["input_ids"].tolist()
    ]
    assert rows != other


def test_stream_of_examples_is_taken_in_its_order():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(tiny_data(6, length=5))

    batches = list(batches_of(build("lora").model, Stream(), collate, 4, seed=3)())
    rows = [row for batch in batches for row in batch["input_ids"].tolist()]
    assert rows == tiny_data(6, length=5)["input_ids"][:]


def test_all_random_states_come_back():
    def draw():
        with same_random_state():
            torch.rand(3), np.random.rand(3), random.random()
            raise KeyError

    before = states()
    with pytest.raises(KeyError):
        draw()
    assert states() == before


def test_preparation_leaves_no_trace():
    """It runs the model in training mode, with dropout, and backwards."""
    method = scripted(first=(3, 1))
    method.model.eval()
    before = states()
    resize = prepare(method, tiny_data(20, length=9), collate, 4, 0)
    assert set(resize.ranks.values()) == {3, 1}
    assert len(method.seen) == 2
    assert states() == before
    assert all(p.grad is None for p in method.model.parameters())
    assert not method.model.training


def test_method_without_a_preparation_sees_nothing():
    assert prepare(build("lora"), None, None, 4, 0) is None


class Steps(TrainerCallback):
    def __init__(self, method):
        self.method, self.ranks = method, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.ranks.append(self.method.rank_pattern())


def test_new_ranks_hold_from_the_first_step_on_and_are_told_at_step_0(tmp_path):
    method = scripted(first=(3, 1))
    driver, steps = RankwiseCallback(method, total_steps=12), Steps(method)
    trainer_for(method, tmp_path, settings(save_every=6), driver=driver, callbacks=[steps]).train()
    assert [(event.step, event.event) for event in driver.trace] == [(0, "start"), (0, "resize"), (12, "end")]
    wanted = dict(zip(method.matrices, [3, 1] * 6, strict=True))
    assert driver.trace[1].ranks == steps.ranks[0] == wanted
    assert driver.trace[1].scores == {name: float(rank) for name, rank in wanted.items()}
    assert method.parameter_count().peak >= method.parameter_count().final


def test_resumed_run_is_not_prepared_again(tmp_path):
    whole = scripted(first=(3, 1))
    trainer_for(whole, tmp_path, settings(save_every=6)).train()
    again = scripted(first=(3, 1))
    driver = RankwiseCallback(again, total_steps=12)
    trainer_for(again, tmp_path, driver=driver).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert not hasattr(again, "seen")
    assert [(event.step, event.event) for event in driver.trace] == [(0, "start"), (0, "resize"), (12, "end")]
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in again.state_dict().items())


def test_preparation_changes_nothing_but_the_ranks(tmp_path):
    """Against a run that starts at those ranks: the same batches and dropout, so the same first loss."""
    losses = {}
    for first in (None, (2,)):
        method = scripted(tiny_model(), first=first)
        trainer = trainer_for(method, tmp_path)
        trainer.train()
        losses[first] = trainer.losses
    assert losses[None] == losses[(2,)]


def test_several_processes_without_ddp_are_refused_before_training(monkeypatch):
    from rankwise.errors import TrainingError
    from rankwise.training import ddp

    assert wrappers_of(build("lora").model) == []
    monkeypatch.setattr(ddp, "world_size", lambda: 2)
    with pytest.raises(TrainingError, match="only under DistributedDataParallel"):
        wrappers_of(build("lora").model)
