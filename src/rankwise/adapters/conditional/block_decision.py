"""Which blocks an input keeps, from the router's logits.

One logit ℓ per skippable block, price b, temperature T (both the training method's):

    p_j = σ((ℓ_j - b) / T) ,    training: z_j = 1 with probability p_j, ∂z_j/∂p_j = 1 (straight through)

- any subset: the z_j are drawn independently; in inference z_j = 1 where σ(ℓ_j) is above the threshold.
- exit: the router's outputs a are taken as ℓ_j = a_1 - Σ_{1 < i ≤ j} softplus(a_i), and all blocks are compared with
  one draw u: z_j = [u < p_j]. As p_j falls with j, z_j never rises, and every block still has a probability of its own.
- in training a share f of the inputs, drawn anew at every step, keeps every block instead.
- some subsets P: in inference the one that is likeliest under the independent draws,
  argmax_k Σ_j P_kj (ℓ_j - logit(threshold)), because log Π_j p_j^z (1 - p_j)^(1-z) = Σ_j z_j logit(p_j) + constant.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rankwise.adapters.conditional.router import logit, opened

_NEVER = 1e-12
_HALVINGS = 60


def settled(raw: Tensor, *, exit_early: bool) -> Tensor:
    """The logits that count, (batch, blocks): those of an early exit fall from block to block."""
    if not exit_early:
        return raw
    return torch.cat([raw[:, :1], raw[:, :1] - functional.softplus(raw[:, 1:]).cumsum(1)], dim=1)


def drawn_bits(logits: Tensor, price: float, temperature: float, *, exit_early: bool, full_rows: float = 0.0) -> Tensor:
    """z in training, (batch, blocks): 0 or 1, with the gradient of its probability.

    Args:
        logits: settled ones.
        price: b.
        temperature: T.
        exit_early: one draw for all blocks of an input.
        full_rows: f; these inputs give the logits no gradient.
    """
    chances = torch.sigmoid((logits - price) / temperature)
    draws = torch.rand_like(chances[:, :1]) if exit_early else torch.rand_like(chances)
    if full_rows:
        chances = torch.where(torch.rand_like(chances[:, :1]) < full_rows, torch.ones_like(chances), chances)
    return (draws < chances).to(chances.dtype) + (chances - chances.detach())


def kept_bits(logits: Tensor, threshold: float, patterns: Tensor | None = None) -> Tensor:
    """z in inference, (batch, blocks), 0 or 1 in the dtype of `logits`.

    Args:
        logits: settled ones.
        threshold: probability above which a block is kept.
        patterns: (K, blocks) of 0 and 1, the only rows allowed.
    """
    if patterns is None:
        return opened(logits, threshold).to(logits.dtype)
    margins = logits.double() - logit(min(max(threshold, _NEVER), 1 - _NEVER))
    allowed = patterns.to(margins)
    return allowed[(margins @ allowed.t()).argmax(1)].to(logits.dtype)


def frequent_patterns(bits: Tensor, limit: int, share: float) -> list[str]:
    """The `limit` most frequent rows of `bits` as strings of 0 and 1, most frequent first.

    One of them keeps at most `share` of the blocks and one at least, where there are such rows: otherwise no choice
    among them could keep `share` on average.

    Args:
        bits: (examples, blocks) of 0 and 1.
        limit: 2 or more.
        share: of the blocks, 0 to 1.
    """
    counted = Counter("".join(str(int(bit)) for bit in row) for row in bits.tolist())
    ordered = [pattern for pattern, _ in counted.most_common()]
    few = [pattern for pattern in ordered if pattern.count("1") <= share * len(pattern)]
    many = [pattern for pattern in ordered if pattern.count("1") >= share * len(pattern)]
    chosen = dict.fromkeys([*few[:1], *many[:1], *ordered])
    return sorted(list(chosen)[:limit], key=ordered.index)


def pattern_rows(patterns: Sequence[str] | None) -> Tensor | None:
    """(K, blocks) of the strings."""
    return None if patterns is None else torch.tensor([[int(bit) for bit in pattern] for pattern in patterns]).float()


def fitting_level(logits: Tensor, share: float, patterns: Tensor | None = None) -> float:
    """What to take off these logits so that they keep `share` of their blocks at threshold 0.5, as nearly as they can.

    Args:
        logits: (examples, blocks), settled.
        share: between 0 and 1.
        patterns: see `kept_bits`. What is kept never rises with the level, so bisection finds it.
    """
    logits = logits.double()
    if patterns is None:
        return float(torch.quantile(logits.flatten(), 1 - share))
    reach = float(logits.abs().max()) * logits.shape[1] + 1
    low, high = -reach, reach
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        kept = float(kept_bits(logits - middle, 0.5, patterns).mean())
        low, high = (middle, high) if kept > share else (low, middle)
    best = min(low, high, key=lambda level: abs(float(kept_bits(logits - level, 0.5, patterns).mean()) - share))
    return _middle(logits, best, patterns, reach)


def _middle(logits: Tensor, level: float, patterns: Tensor, reach: float) -> float:
    """The middle of all levels that keep the same blocks as `level`, so that rounding flips none."""
    bits = kept_bits(logits - level, 0.5, patterns)
    ends = []
    for inside, outside in ((level, -reach), (level, reach)):
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            same = torch.equal(kept_bits(logits - middle, 0.5, patterns), bits)
            inside, outside = (middle, outside) if same else (inside, middle)
        ends.append(inside)
    return sum(ends) / 2
