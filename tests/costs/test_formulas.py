"""The formulas against products of matrices that are really done, and counted by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from rankwise.adapters.attach import Matrix
from rankwise.costs.formulas import (
    adapter_flops,
    adapter_share,
    attention_flops,
    bert_block,
    linear_flops,
    pooling_flops,
    router_flops,
)

SIZES = st.integers(1, 9)


def counted(function, *tensors):
    with FlopCounterMode(display=False) as counter:
        function(*tensors)
    return counter.get_total_flops()


@given(SIZES, SIZES, SIZES)
def test_linear(tokens, width, out):
    x, weight = torch.ones(tokens, width), torch.ones(out, width)
    assert linear_flops(tokens, width, out) == counted(torch.nn.functional.linear, x, weight)
    by_hand = sum(2 for _ in range(tokens) for _ in range(out) for _ in range(width))
    assert linear_flops(tokens, width, out) == by_hand


@given(SIZES, SIZES, SIZES, SIZES)
def test_adapter(tokens, rank, width, out):
    x, a, b = torch.ones(tokens, width), torch.ones(rank, width), torch.ones(out, rank)
    assert adapter_flops(tokens, rank, width, out) == counted(lambda: (x @ a.t()) @ b.t())


@given(SIZES, SIZES, SIZES, SIZES, SIZES)
def test_attention(batch, heads, queries, keys, depth):
    q, k = torch.ones(batch, heads, queries, depth), torch.ones(batch, heads, keys, depth)
    assert attention_flops(batch, queries, keys, heads * depth) == counted(lambda: (q @ k.mT) @ k)


@given(SIZES, SIZES, SIZES, SIZES)
def test_router_and_pooling(tokens, width, hidden, outputs):
    x = torch.ones(1, tokens, width)
    down, up = torch.ones(hidden, width), torch.ones(outputs, hidden)
    assert router_flops(width, hidden, outputs) == counted(lambda: (x[:, 0] @ down.t()) @ up.t())
    assert pooling_flops(tokens, width) == counted(lambda: torch.bmm(torch.ones(1, 1, tokens), x))


def test_share_of_adapters_in_bert_base():
    """r=8 on the six matrices of a block of width 768: 110,592 of 7,077,888."""
    block = bert_block(768)
    assert [(m.in_features, m.out_features) for m in block] == [(768, 768)] * 4 + [(768, 3072), (3072, 768)]
    assert adapter_share(block, 8) == 0.015625
    assert adapter_share([Matrix("m", 10, 30)], 3) == pytest.approx(3 * 40 / 300)
