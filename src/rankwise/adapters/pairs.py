"""An adapter as plain numbers: one pair of factors per module, whatever trained them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """One module's adapter with its scale folded in: delta_weight (out, in) = `b` (out, rank) @ `a` (rank, in)."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Components, 0 where the adapter has been dropped."""
        return int(self.a.shape[0])

    @property
    def cost(self) -> int:
        """Parameters of one component."""
        return int(self.a.shape[1] + self.b.shape[0])


def fold(a: Tensor, b: Tensor, scaling: float) -> Pair:
    """The pair of `scaling · b @ a`; half-precision factors become float32 where folding would round them."""
    folded = b * scaling
    if b.dtype in (torch.float16, torch.bfloat16) and not torch.equal(folded.float(), b.float() * scaling):
        folded = b.float() * scaling
    return Pair(a, folded)
