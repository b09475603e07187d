"""Shrinking whole modules until a given share of them is left. Pure functions.

A group penalty (Yuan & Lin 2006, doi 10.1111/j.1467-9868.2005.00532.x) on what each module m does to its matrix,

    λ Σ_m w_m √p_m ‖ΔW_m‖_F ,    ΔW_m = g_m · s · B_m A_m ,    p_m = parameters of the module's adapter,

through its proximal step (Parikh & Boyd 2014, doi 10.1561/2400000003, §6.5.4: block soft thresholding) after every
optimizer step. In units of `n_m = ‖ΔW_m‖_F / √p_m` that is

    ΔW_m ← ΔW_m · max(0, 1 - (τ / n_m)^q) .

q = 1 is the group lasso (w = 1), which takes as much from a strong module as from a weak one. q = 2 is its adaptive
form with weights w_m = τ / n_m taken from the module as it is now (Zou 2006, doi 10.1198/016214506000000735; as a
threshold it is Breiman's 1995 non-negative garrote): who dies is the same, but what lives well is hardly touched.

The step looks at the product alone, so it cannot be evaded by moving size from one factor to another, which an L1
penalty on g invites: (g, B) -> (g / c, c·B) leaves the function as it is and the penalty as small as one likes.

τ is not a setting. It follows from the share that should be left at which step: see `threshold`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.allocation.allocate import allocate
from rankwise.allocation.budget import Target
from rankwise.errors import BudgetError


def delta_norms(a: Tensor, b: Tensor) -> Tensor:
    """‖B A‖_F of many modules of one shape, from rank x rank matrices: ‖B A‖² = tr(BᵀB · A Aᵀ).

    Args:
        a: (modules, rank, in).
        b: (modules, out, rank).

    Returns:
        (modules,), in float32 or better; where components cancel, float32 is sure to about 3e-4 of their size.
    """
    a, b = (x if x.dtype is torch.float64 else x.float() for x in (a, b))
    squared = ((b.mT @ b) * (a @ a.mT)).sum((1, 2))
    return squared.clamp_min(0).sqrt()  # rounding can leave a product of opposite components just below 0


@dataclass(frozen=True)
class Decline:
    """How much is left alive at which step: `total` up to step `first`, `final` from step `last` on.

    In between left(t) = final + (total - final)·(1 - x)³ with x = (t - first) / (last - first): fast while
    there is much to choose from, slow at the end (Zhu & Gupta 2017, arXiv 1710.01878, eq. 1).

    Attributes:
        first: last step at which everything is alive.
        last: first step at which no more than needed is; above `first`.
        total: what there is at first, in parameters or in ranks.
        final: what has to be left; at least this much always is.
    """

    first: int
    last: int
    total: int
    final: int

    def left(self, step: int) -> float:
        """What should be alive after `step`."""
        x = min(max((step - self.first) / (self.last - self.first), 0.0), 1.0)
        return self.final + (self.total - self.final) * (1 - x) ** 3

    def deadlines(self, gone: Tensor) -> Tensor:
        """First step after which as much as `gone` may be dead, elementwise; infinity where that is too much.

        Args:
            gone: int64, what is dead altogether.
        """
        spare = self.total - self.final - gone  # exact: whole numbers
        x = 1 - (spare.clamp_min(0).float() / max(self.total - self.final, 1)) ** (1 / 3)
        steps = torch.ceil(self.first + x * (self.last - self.first) - 1e-3)  # a hair, against rounding
        return torch.where(spare >= 0, steps.clamp(self.first + 1, self.last), math.inf)


def threshold(norms: Tensor, sizes: Tensor, decline: Decline, step: int, *, power: int) -> tuple[Tensor, Tensor]:
    """τ for this step, and who dies of it.

    The smallest constant τ that, if the norms did nothing but shrink by it, would meet every deadline of `decline`
    from now on. A norm at n falls to τ or below, and so to zero, within k steps if n^q <= (q·(k - 1) + 1)·τ^q: exactly
    for q = 1; for q = 2 a step takes 2τ² - τ⁴/n² off n², so that the last ones come up to one step late, which the
    choice of a new τ at every step makes good. In order of their norms the modules have to be at zero after steps
    d_1 <= d_2 <= …, k_j = d_j - step + 1 steps to go:

        τ = max_j  n_(j) / (q·(k_j - 1) + 1)^(1/q) .

    Chosen anew at every step (a receding horizon), it answers to how the norms really move. Whoever is due now has one
    step to go, so the schedule is met at every step, to the size of one module, however fast modules grow
    back: there is no gain to tune and no λ to search. Nothing here waits for the device.

    Args:
        norms: (modules,) n_m of the modules that are there, dead ones included.
        sizes: (modules,) int64, what each of them counts, in the unit of `decline`.
        decline: how much should be left when; what `sizes` lacks to `decline.total` is gone already.
        step: this step.
        power: q.

    Returns:
        τ: scalar; dies: (modules,) bool. The living never count less than `decline.final`.
    """
    ordered, order = torch.sort(norms, stable=True)
    gone = decline.total - sizes.sum() + sizes[order].cumsum(0)
    due = decline.deadlines(gone)
    to_go = (due - step + 1).clamp_min(1)
    tau = (ordered / (power * (to_go - 1) + 1) ** (1 / power)).max()
    dies_in_order = (due <= step) | ((ordered <= tau) & (tau > 0) & due.isfinite())
    return tau, torch.empty_like(dies_in_order).scatter_(0, order, dies_in_order)


def shrink_factors(norms: Tensor, tau: Tensor, dies: Tensor, *, power: int) -> Tensor:
    """What the proximal step multiplies each ΔW with, (modules,): 0 for who `dies`, else 1 - (τ / n)^q, above 0.

    Of a module that is exactly as strong as one that dies, but is needed, nothing is taken.
    """
    kept = 1 - (tau / torch.where(norms > tau, norms, math.inf)) ** power
    return torch.where(dies, 0.0, kept)


def surviving_ranks(
    norms: Mapping[str, float], ranks: Mapping[str, int], costs: Mapping[str, int], target: Target
) -> dict[str, int]:
    """Ranks that spend `target` exactly on the strongest modules; 0 for the others.

    The fewest strongest modules that can hold the budget at their present ranks share it equally, none above its
    present rank. Where whole ranks of those do not add up to the budget, the next strongest joins them.

    Raises:
        BudgetError: no choice among these modules spends the target exactly.
    """
    order = sorted(norms, key=lambda name: -norms[name])  # stable: ties go to the earlier name
    price = {name: costs[name] if target.unit == "parameters" else 1 for name in norms}
    held = 0
    for count, name in enumerate(order, start=1):
        held += ranks[name] * price[name]
        if held < target.total:
            continue
        chosen = set(order[:count])
        live = [n for n in norms if n in chosen]
        try:
            return dict.fromkeys(norms, 0) | _shared(live, ranks, costs, target, floor=1)
        except BudgetError:
            continue
    return _shared(list(norms), ranks, costs, target, floor=0)


def can_hold(names: Sequence[str], ranks: Mapping[str, int], costs: Mapping[str, int], target: Target) -> bool:
    """Whether these modules, none above its present rank, can spend `target` exactly."""
    try:
        _shared(names, ranks, costs, target, floor=0)
    except BudgetError:
        return False
    return True


def _shared(
    names: Sequence[str], ranks: Mapping[str, int], costs: Mapping[str, int], target: Target, *, floor: int
) -> dict[str, int]:
    return allocate(dict.fromkeys(names, 1.0), costs, target, floor=floor, cap=ranks)
