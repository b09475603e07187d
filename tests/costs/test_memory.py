"""Memory of models whose needs are known."""

from functools import partial

import pytest
import torch
from tiny import tiny_model
from torch import nn

from rankwise.costs.memory import peak_of_process, weight_bytes
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
