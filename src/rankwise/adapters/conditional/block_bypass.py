"""The path around a block: h + s · B A h, for the inputs that skip it.

With B = 0 at first a skipped block is left out and nothing is put in its place. Parameters are direct attributes,
because PEFT takes an adapter's name out of `….lora_bypass.NAME.parameter` and no deeper.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Bypass(nn.Module):
    """h: (..., width) -> (..., width).

    Args:
        width: of the hidden states.
        rank: of the path.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, hidden: Tensor) -> Tensor:
        """See the class; the result has the dtype of `hidden`."""
        seen = hidden.to(self.down.dtype)
        path = functional.linear(functional.linear(seen, self.down), self.up)
        return hidden + path.to(hidden.dtype)


def bypass_cost(width: int, rank: int) -> int:
    """Its parameters."""
    return 2 * width * rank
