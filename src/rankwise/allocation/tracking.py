"""Keeping an expected share at its target while training.

An element is open with probability σ((ℓ - b) / T), ℓ its logit, b the price that all elements pay, T the temperature.
After every step b moves towards the price at which that step's elements would have met the target exactly:

    b ← b + κ (b* - b) ,    mean σ((ℓ - b*) / T) = t

The mean falls strictly in b, so b* is unique and bisection finds it. This is the multiplier of the constraint in units
of logits: what pays for itself at price b is open. Because the price is solved for instead of integrated, the share
follows its target within steps, whatever the learning rate. A penalty ρ/2 (s - t)² on each batch's own share s gives
routers the gradient of what they cost.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankwise.allocation.schedules import cubic

_SCALE = 1_000_000
_HALVINGS = 40


@dataclass
class Tracker:
    """The price of being open, and the course of the target.

    Args:
        target: the share at the end, in (0, 1).
        first: step up to which everything is open.
        last: step from which the target is `target`; above `first`.
        price: b, at first.
        rate: κ.
        stiffness: ρ, in units of the loss.
    """

    target: float
    first: int
    last: int
    price: float = 0.0
    rate: float = 0.2
    stiffness: float = 1.0

    def target_at(self, step: int) -> float:
        """The target of step `step` (from 1): all until `first`, then a cubic down (see `schedules.cubic`)."""
        final = round(self.target * _SCALE)
        return cubic(step, initial=_SCALE, target=final, warmup=self.first, last=self.last) / _SCALE

    def penalty(self, share: Tensor, step: int) -> Tensor:
        """The term added to the loss; `share` is the expected one, a scalar with a graph."""
        return self.stiffness / 2 * (share - self.target_at(step)).square()

    def update(self, logits: Tensor, temperature: float, step: int, weights: Tensor | None = None) -> None:
        """Move the price; see `fair_price`."""
        goal = fair_price(logits, temperature, self.target_at(step), weights)
        self.price += self.rate * (goal - self.price)


@torch.no_grad()
def fair_price(logits: Tensor, temperature: float, share: float, weights: Tensor | None = None) -> float:
    """b* with mean σ((logits - b*) / temperature) = share.

    Args:
        logits: any shape.
        temperature: above 0.
        share: strictly between 0 and 1; 1 and 0 are met within 10⁻⁴.
        weights: of the mean, same shape; equal if left out.
    """
    share = min(max(share, 1e-4), 1 - 1e-4)
    each = torch.full_like(logits, 1 / logits.numel()) if weights is None else weights / weights.sum()
    # at these two every element is at least, and at most, as open as `share`
    reach = temperature * math.log(share / (1 - share))
    low, high = logits.min() - reach, logits.max() - reach
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = (torch.sigmoid((logits - middle) / temperature) * each).sum() > share
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return float((low + high) / 2)


@dataclass
class Search:
    """Thresholds that were tried, and what share was open at each.

    What is open at a threshold can be read off the chances there, but moving it changes what later routers see, so the
    next share is another one than was read. Once thresholds on both sides of the target are known, the next one lies
    between the closest two, where a straight line through their shares meets the target.

    Args:
        target: the share wanted.
    """

    target: float
    tried: list[tuple[float, float]] = field(default_factory=list)

    def off(self) -> float:
        """How far the last one was from the target."""
        return abs(self.tried[-1][1] - self.target)

    def next(self, read: float) -> float:
        """`read`, until there are thresholds on both sides of the target; then one between the closest of them."""
        low = max(((t, share) for t, share in self.tried if share > self.target), default=None)
        high = min(((t, share) for t, share in self.tried if share < self.target), default=None)
        if low is None or high is None or low[0] >= high[0]:
            return read
        part = (low[1] - self.target) / (low[1] - high[1])
        return low[0] + min(max(part, 0.1), 0.9) * (high[0] - low[0])

    def best(self) -> float:
        """The threshold that came closest."""
        return min(self.tried, key=lambda one: abs(one[1] - self.target))[0]
