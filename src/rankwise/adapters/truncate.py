"""Cutting an adapter down after training: one singular-value threshold over all its matrices.

Source: PARA (arXiv 2604.27796): train at a uniform high rank, decompose ΔW = B A of every module, and keep the
singular values above one threshold, the same for all modules. Ours spends a number of parameters (or ranks) exactly
instead of taking the threshold as given, and never forms ΔW: with thin QR factors B = Q_b R_b and Aᵀ = Q_a R_a,
the SVD of the small core R_b R_aᵀ = U Σ Vᵀ gives ΔW = (Q_b U) Σ (Q_a V)ᵀ exactly (all in float64).
By Eckart & Young (1936), and because the squared Frobenius error over all modules is the sum of the dropped σ²,
no other choice of the same ranks is nearer to the adapter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.adapters.pairs import Pair
from rankwise.allocation.allocate import allocate
from rankwise.allocation.budget import Target
from rankwise.errors import BudgetError

NOISE = 1e-7
"""Relative to the largest singular value: what the rounding of float32 factors alone can leave."""


@dataclass(frozen=True)
class Decomposed:
    """delta_weight = `left` diag(`values`) `right`ᵀ (float64); left: (out, k), values: (k,) falling, right: (in, k)."""

    left: Tensor
    values: Tensor
    right: Tensor


@dataclass(frozen=True)
class Truncated:
    """What is left of an adapter, and what it lost.

    `pairs` holds every module, those cut to rank 0 with empty factors; `ranks` says which rank each has.
    `norms` is ‖ΔW‖ (Frobenius) per module before, `lost` ‖ΔW - ΔW'‖ / ‖ΔW‖, and `total_lost` the same over all modules
    together; a module whose ΔW was zero lost nothing.
    """

    pairs: dict[str, Pair]
    ranks: dict[str, int]
    norms: dict[str, float]
    lost: dict[str, float]
    total_lost: float


def truncate_pairs(pairs: Mapping[str, Pair], target: Target, costs: Mapping[str, int]) -> Truncated:
    """Keep the largest singular values over all modules, spending `target` exactly.

    Args:
        pairs: module -> factors with the scale folded in, of any ranks (0 too).
        target: what is kept, in parameters or ranks; see `largest_target`.
        costs: module -> parameters per rank.

    Raises:
        BudgetError: `target` cannot be spent exactly on components that are there.
    """
    parts = {name: decompose(pair) for name, pair in pairs.items()}
    # σ² rather than σ: the same order, and what dropping a component costs in the squared Frobenius error.
    gains = {name: part.values.square().tolist() for name, part in parts.items() if len(part.values)}
    if not gains:
        raise BudgetError("nothing to truncate: every module has rank 0 already")
    kept = allocate(gains, costs, target, floor=0, cap={name: len(gain) for name, gain in gains.items()})
    ranks = {name: kept.get(name, 0) for name in pairs}
    return Truncated(
        pairs={name: _leading(parts[name], ranks[name], like=pair) for name, pair in pairs.items()},
        ranks=ranks,
        norms={name: float(part.values.norm()) for name, part in parts.items()},
        lost={name: _lost([part.values], [ranks[name]]) for name, part in parts.items()},
        total_lost=_lost([part.values for part in parts.values()], list(ranks.values())),
    )


def decompose(pair: Pair) -> Decomposed:
    """Thin SVD of `pair.b @ pair.a` through the r x r core; at most min(rank, in, out) components."""
    a, b = pair.a.double(), pair.b.double()
    if a.shape[0] == 0:
        return Decomposed(b, b.new_zeros(0), a.T)
    q_a, r_a = torch.linalg.qr(a.T)
    q_b, r_b = torch.linalg.qr(b)
    u, values, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return Decomposed(q_b @ u, values, q_a @ vh.T)


def used_ranks(pairs: Mapping[str, Pair]) -> dict[str, int]:
    """Components that do anything, per module: singular values above `NOISE` of the module's largest.

    Zero padding and copies of one component are not counted.
    """
    values = {name: decompose(pair).values for name, pair in pairs.items()}
    return {name: int((v > NOISE * v[0]).sum()) if len(v) else 0 for name, v in values.items()}


def largest_target(asked: int, ranks: Mapping[str, int], costs: Mapping[str, int]) -> Target:
    """The most parameters, not above `asked`, that whole components of modules with these ranks can cost.

    A bounded coin problem, solved over the bits of one integer.

    Raises:
        BudgetError: not even the cheapest component fits.
    """
    divisor = math.gcd(*(costs[name] for name in ranks))
    limit = asked // divisor
    mask = (1 << (limit + 1)) - 1
    table = 1
    counts: dict[int, int] = {}
    for name, rank in ranks.items():
        counts[costs[name] // divisor] = counts.get(costs[name] // divisor, 0) + rank
    for unit, count in counts.items():
        lot = 1
        while count > 0:  # lots of 1, 2, 4, … and the rest: together they can be any number up to `count`
            taken = min(lot, count)
            table |= (table << (taken * unit)) & mask
            count, lot = count - taken, lot * 2
    total = (table.bit_length() - 1) * divisor
    if total == 0 and not any(ranks.values()):
        raise BudgetError("nothing is left to cut: ΔW is zero in every module")
    if total == 0:
        least = min((costs[name] for name, rank in ranks.items() if rank), default=0)
        raise BudgetError(f"{asked:,} parameters are less than one component costs; the cheapest has {least:,}")
    return Target(total, "parameters")


def _leading(part: Decomposed, rank: int, like: Pair) -> Pair:
    """The first `rank` components, σ shared evenly between both factors."""
    root = part.values[:rank].sqrt()
    a = (part.right[:, :rank] * root).T.contiguous()
    b = (part.left[:, :rank] * root).contiguous()
    return Pair(a.to(like.a), b.to(like.b))


def _lost(values: list[Tensor], ranks: list[int]) -> float:
    whole = sum(float(v.square().sum()) for v in values)
    gone = sum(float(v[rank:].square().sum()) for v, rank in zip(values, ranks, strict=True))
    return math.sqrt(gone / whole) if whole > 0 else 0.0
