"""Memory of models whose needs are known."""

from functools import partial

import pytest
import torch
from tiny import tiny_model
from torch import nn

from rankwise.costs.memory import CLEAR, peak_of_process, watch_memory, weight_bytes
from rankwise.errors import ModelError

MIB = 2**20


class Hungry(nn.Module):
    """Takes `mib` for as long as it runs."""

    def __init__(self, mib):
        super().__init__()
        self.mib = mib

    def forward(self, input_ids):
        assert torch.is_inference_mode_enabled()
        torch.ones(self.mib * MIB // 4).sum()


def load(mib):
    torch.ones(300 * MIB // 4).sum()  # loading takes more than running, and is over by then
    return Hungry(mib)


def broken():
    raise ValueError("no such model\nsecond line")


@pytest.mark.slow
def test_what_passes_take_is_the_difference():
    found = peak_of_process(partial(load, 200), [{"input_ids": torch.ones(1, 2, dtype=torch.long)}])
    assert found.idle is not None
    assert 195 * MIB < found.passes < 215 * MIB
    assert found.highest == found.idle + found.passes


@pytest.mark.skipif(not CLEAR.exists(), reason="only Linux says how much a process held")
def test_the_peak_of_a_block_is_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with watch_memory() as idle:
        pass
    torch.ones(400 * MIB // 4).sum()  # before the block: not counted
    with watch_memory() as small:
        torch.ones(100 * MIB // 4).sum()
    with watch_memory() as large:
        torch.ones(300 * MIB // 4).sum()
    assert 90 * MIB < small.highest - idle.highest < 130 * MIB
    assert 190 * MIB < large.highest - small.highest < 210 * MIB


@pytest.mark.skipif(not CLEAR.exists(), reason="only Linux says how much a process held")
def test_what_was_freed_before_the_block_is_not_counted(monkeypatch):
    """Small pieces below one that is still held: the C library keeps them unless it is told to give them back."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with watch_memory() as idle:
        pass
    hoard = [bytearray(2000) for _ in range(100_000)]
    held = bytearray(2000)
    del hoard
    with watch_memory() as after:
        pass
    assert after.highest - idle.highest < 50 * MIB
    assert len(held) == 2000


def test_no_number_where_the_system_cannot_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("rankwise.costs.memory.CLEAR", tmp_path / "no/such/file")
    with watch_memory() as watched:
        pass
    assert watched.highest is None


@pytest.mark.slow
def test_failure_in_the_process_is_told():
    with pytest.raises(ModelError, match=r"process that measures memory failed: no such model$"):
        peak_of_process(broken, [{"input_ids": torch.ones(1, 2, dtype=torch.long)}])


def test_weights_are_counted_once():
    model = tiny_model()
    tensors = [*model.parameters(), *model.buffers()]
    assert weight_bytes(model) == sum(t.numel() * t.element_size() for t in tensors)
    half = tiny_model().half()
    assert weight_bytes(half) < 0.6 * weight_bytes(model)
    before = weight_bytes(model)
    model.classifier.weight = nn.Parameter(model.bert.embeddings.word_embeddings.weight[:3])
    assert weight_bytes(model) == before - 3 * 32 * 4
