"""The generator of the record: a network per module that writes the factors for each input anew.

    [A_i | B_iᵀ] = G norm(x̄_i) + g ,    G: (r · (in + out), in), or G = U V with V of `middle` rows

Component j of an example is row j of (r, in + out), so that rank k costs the first k · (in + out) rows of G. It starts
as plain LoRA: G = 0, and g holds LoRA's A beside a B of zeros; g is the part that no input changes. In inference
factors are made for rows whose gate is open, for the components they use, and freed before the next group of rows;
where gradients are wanted, for all.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankwise.adapters.conditional.tokens import by_example, full_precision

HYPER = "lora_hyper"
"""Name of the container of generators on a layer."""


class Hyper(nn.Module):
    """x̄: (batch, in) -> A: (batch, rank, in), B: (batch, rank, out).

    Args:
        in_features: of the layer.
        out_features: of the layer.
        rank: the largest.
        middle: width of the middle of a factorised generator; None for the full matrix.
        zero: whether B starts at zero.
    """

    centre: Tensor
    """Mean of norm(x̄) over training examples, (in,); set when training ends."""

    def __init__(self, in_features: int, out_features: int, rank: int, middle: int | None, *, zero: bool) -> None:
        super().__init__()
        self.sizes, self.rank = (in_features, out_features), rank
        entries = rank * (in_features + out_features)
        self.weight = nn.Parameter(torch.zeros(entries, middle or in_features))
        self.down = None if middle is None else nn.Parameter(torch.empty(middle, in_features))
        if self.down is not None:
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        bounds = 1 / math.sqrt(in_features), 0.0 if zero else 1 / math.sqrt(rank)
        parts = [torch.empty(rank, n).uniform_(-b, b) for n, b in zip(self.sizes, bounds, strict=True)]
        self.bias = nn.Parameter(torch.cat(parts, 1).flatten())
        self.register_buffer("centre", torch.zeros(in_features))

    def generate(self, seen: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Factors of the first `rank` components for norm(x̄), (batch, in)."""
        rows = rank * sum(self.sizes)
        if self.down is not None:
            seen = functional.linear(seen, self.down)
        made = functional.linear(seen, self.weight[:rows], self.bias[:rows])
        a, b = made.view(len(seen), rank, sum(self.sizes)).split(self.sizes, dim=2)
        return a, b

    def normalise(self, pooled: Tensor) -> Tensor:
        """norm(x̄), as routers have it."""
        with full_precision(pooled.device):
            return functional.layer_norm(pooled.to(self.bias.dtype), pooled.shape[-1:])

    @torch.no_grad()
    def average(self) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank) for the average input."""
        a, b = self.generate(self.centre[None], self.rank)
        return a[0], b[0].t()


def hyper_cost(in_features: int, out_features: int, rank: int, middle: int | None) -> int:
    """Its parameters."""
    entries = rank * (in_features + out_features)
    return entries * (1 + (middle or in_features)) + (middle or 0) * in_features


class Fixed(nn.Module):
    """The part of A or B that no input changes; stands where PEFT has `lora_A` or `lora_B`.

    Args:
        hyper: owned by the same layer, in a container of its own.
        side: 0 for A, (rank, in); 1 for B, (out, rank).
    """

    def __init__(self, hyper: Hyper, side: int) -> None:
        super().__init__()
        self._hyper, self.side = (hyper,), side

    @property
    def weight(self) -> Tensor:
        """A view of the generator's bias."""
        hyper = self._hyper[0]
        a, b = hyper.bias.view(hyper.rank, -1).split(hyper.sizes, dim=1)
        part: Tensor = b if self.side else a
        return part.t() if self.side else part


def add_generated(
    result: Tensor, x: Tensor, hyper: Hyper, seen: Tensor, weights: Tensor, ranks: Tensor | None, scaling: float
) -> Tensor:
    """Add s · ((x_i A_iᵀ) ∘ weights_i) B_i to `result`.

    Args:
        result: (batch, tokens, out), or flattened to (batch · tokens, out); changed in place without gradients.
        x: (batch, tokens, in), flattened alike.
        hyper: makes A_i and B_i.
        seen: norm(x̄), (batch, in).
        weights: (batch, rank).
        ranks: (batch,), components that each row uses, in inference; all rows are computed with None, and where
            gradients are wanted.
        scaling: s.
    """
    shape = result.shape
    result, x = by_example(result, len(weights)), by_example(x, len(weights))
    dtype = result.dtype if torch.is_autocast_enabled(result.device.type) else hyper.bias.dtype
    result, x, weights = (t.to(dtype) for t in (result, x, weights))
    inputs = (result, x, seen, weights, *hyper.parameters())
    if ranks is None or (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
        a, b = (factor.to(dtype) for factor in hyper.generate(seen, hyper.rank))
        hidden = torch.bmm(x, a.mT) * weights[:, None, :]
        return torch.baddbmm(result, hidden, b, alpha=scaling).view(shape)
    result = result.contiguous()
    for rank in sorted(set(ranks.tolist()) - {0}):
        _add_rows(result, x, hyper, seen, weights, (ranks == rank).nonzero()[:, 0], rank, scaling)
    return result.view(shape)


@torch.no_grad()
def _add_rows(
    result: Tensor, x: Tensor, hyper: Hyper, seen: Tensor, weights: Tensor, rows: Tensor, rank: int, scaling: float
) -> None:
    """For these rows, all of one rank."""
    a, b = (factor.to(result.dtype) for factor in hyper.generate(seen[rows], rank))
    hidden = torch.bmm(x[rows], a.mT) * weights[rows, None, :rank]
    result.index_add_(0, rows, torch.bmm(hidden, b), alpha=scaling)
