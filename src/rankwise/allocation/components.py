"""Which components stay: one ranking over all matrices, cut where the budget is spent to the last one.

PEFT's AdaLoRA masks every triplet at or below the k-th smallest importance, so components tied there go together and
the budget is missed. Here ties are broken, and the count is met.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rankwise.allocation.allocate import Target, unspendable
from rankwise.allocation.exchange import CostClass, Unreachable, exchange, reach_of
from rankwise.allocation.names import natural
from rankwise.errors import BudgetError


@torch.no_grad()
def keep_components(
    scores: Mapping[str, Tensor], costs: Mapping[str, int], target: Target, *, exact: bool
) -> dict[str, list[int]]:
    """Indices (increasing) of the components of every matrix that stay, those with the highest scores overall.

    Ties go to the earlier name in natural order, then to the lower index. The longest prefix of this ranking that
    fits `target` is kept. In ranks it always spends the target. In parameters it may fall short of it; if `exact`,
    components of different costs are then exchanged around the cut so that the parameters add up and Σ score·cost of
    what is kept is largest (see `allocation.exchange`). One transfer from the device, whatever the number of matrices.

    Args:
        scores: name -> (components,), finite; on any device.
        costs: name -> parameters per component.
        target: what to spend at most, or exactly.
        exact: raise rather than spend less.

    Raises:
        BudgetError: a score is not finite, or the target cannot be spent exactly.
    """
    names = sorted(scores, key=natural)
    values = _gathered([scores[name] for name in names])
    sizes = [scores[name].numel() for name in names]
    _check_finite(values, names, sizes)
    price = [costs[name] if target.unit == "parameters" else 1 for name in names]
    prices = torch.repeat_interleave(torch.tensor(price, dtype=torch.int64), torch.tensor(sizes, dtype=torch.int64))
    order = torch.argsort(values, descending=True, stable=True)
    used = prices[order].cumsum(0)
    count = int(torch.searchsorted(used, target.total, right=True))
    kept = order[:count]
    left = target.total - (int(used[count - 1]) if count else 0)
    if exact and left:
        _check_total(target, int(prices.sum()))
        kept = _exchanged(values, prices, order, count, left, target)
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[kept] = True
    found = {n: part.nonzero().flatten().tolist() for n, part in zip(names, mask.split(sizes), strict=True)}
    return {name: found[name] for name in scores}


def _gathered(tensors: list[Tensor]) -> Tensor:
    """All scores one after the other, in float64 on the CPU: one transfer if they share a device."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    device = tensors[0].device
    return torch.cat([t.detach().flatten().to(device) for t in tensors]).cpu().double()


def _check_finite(values: Tensor, names: list[str], sizes: list[int]) -> None:
    bad = (~values.isfinite()).nonzero().flatten()
    if not len(bad):
        return
    index = int(bad[0])
    for name, size in zip(names, sizes, strict=True):
        if index < size:
            raise BudgetError(f"score of component {index} of {name} is {float(values[bad[0]])}; scores must be finite")
        index -= size


def _check_total(target: Target, everything: int) -> None:
    if target.total > everything:
        raise BudgetError(f"budget of {target.total:,} {target.unit} is above what all components hold, {everything:,}")


def _exchanged(values: Tensor, prices: Tensor, order: Tensor, count: int, left: int, target: Target) -> Tensor:
    """Which components to keep so that what the first `count` of `order` leave over is spent as well."""
    kinds = prices.unique().tolist()
    window = reach_of(kinds)
    largest = float(values.abs().max())
    scaled = torch.from_numpy(np.ldexp(values.numpy(), -math.frexp(largest)[1]))  # losses must not overflow
    ranked = prices[order]
    inside = {cost: order[:count][ranked[:count] == cost] for cost in kinds}
    outside = {cost: order[count:][ranked[count:] == cost][:window] for cost in kinds}
    classes = [CostClass(c, scaled[inside[c].flip(0)[:window]].tolist(), scaled[outside[c]].tolist()) for c in kinds]
    try:
        moves = exchange(classes, left, float(scaled[order[count]]))
    except Unreachable as error:
        raise unspendable(target, kinds, [target.total - left + near for near in error.near]) from None
    parts = [inside[c][: len(inside[c]) + min(moves[c], 0)] for c in kinds]
    return torch.cat(parts + [outside[c][: max(moves[c], 0)] for c in kinds])
