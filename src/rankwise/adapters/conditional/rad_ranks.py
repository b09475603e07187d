"""A rank per input, as a draw and as a decision.

    P(k) = softmax_k((λ_k - π k) / T) ,   k = 1 … r ,     q_j = P(k >= j) = Σ_{k >= j} P(k)

λ are the logits of a router, π the price of a component and T a temperature. Ranks are nested: rank k uses components
1 … k, so component j is used with probability q_j. The record also has a logit for rank 0 beside its gate; both say "no
adapter", so rank 0 is left out here and the gate alone closes.

In training k is drawn and its one-hot vector y passed straight through, ∂y/∂P = 1 (Bengio, Léonard & Courville 2013,
arXiv 1308.3432); the mask of component j is m_j = Σ_{k >= j} y_k. Draw and gradient use the same probabilities, so the
gradient is exact in expectation where the loss is linear in y. (That of the Gumbel-softmax estimator, arXiv 1611.01144,
is not: the mean of its soft samples is not P.)

In inference component j is used where q_j is above one half, the rule that gates follow too. This makes k the median.
Unlike the most likely rank, which jumps from 1 to r where inputs look alike, it moves with π in single components, so
the share of used components can be brought to its target.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.allocation.schedules import cubic

_SCALE = 1_000_000
_HALVINGS = 40


def rank_chances(logits: Tensor, price: float | Tensor, temperature: float) -> Tensor:
    """P, the shape of `logits` (…, r)."""
    ranks = torch.arange(1, logits.shape[-1] + 1, device=logits.device, dtype=logits.dtype)
    return ((logits - price * ranks) / temperature).softmax(-1)


def tail_sums(values: Tensor) -> Tensor:
    """Σ_{k >= j} of the last dimension."""
    return values.flip(-1).cumsum(-1).flip(-1)


def drawn_mask(chances: Tensor) -> Tensor:
    """m of a draw from `chances` (batch, r), 1 for components that are used; passed straight through."""
    index = (chances.detach() / torch.empty_like(chances).exponential_()).argmax(-1, keepdim=True)
    drawn = torch.zeros_like(chances).scatter_(-1, index, 1.0)
    return tail_sums(drawn + (chances - chances.detach()))


def uniform_mask(count: int, rank: int, like: Tensor) -> Tensor:
    """(count, rank): a rank from 1 to `rank` per example, all equally likely (nested dropout, arXiv 1402.0915)."""
    ranks = torch.randint(1, rank + 1, (count, 1), device=like.device)
    return (torch.arange(rank, device=like.device) < ranks).to(like.dtype)


def settled_ranks(logits: Tensor, price: float | Tensor, temperature: float) -> Tensor:
    """k in inference, integers from 1 to r: (…, r) -> (…)."""
    above = tail_sums(rank_chances(logits, price, temperature))[..., 1:] > 0.5
    return above.sum(-1) + 1


def mean_rank(chances: Tensor, weights: Tensor) -> Tensor:
    """Σ w E[k] / Σ w, a scalar; `weights` has the shape of `chances` without its last dimension."""
    expected = tail_sums(chances).sum(-1)
    return (expected * weights).sum() / weights.sum()


@torch.no_grad()
def fair_rank_price(logits: Tensor, temperature: float, goal: float, weights: Tensor) -> float:
    """π at which the mean expected rank is `goal`, in (1, r); it falls strictly in π, so bisection finds it."""
    return _bisect(
        logits, temperature, lambda price: mean_rank(rank_chances(logits, price, temperature), weights) > goal
    )


@torch.no_grad()
def fitting_rank_price(logits: Tensor, temperature: float, goal: float, opened: Tensor) -> float:
    """π at which the mean settled rank, over examples and modules and 0 where not `opened`, is nearest `goal`."""

    def mean(price: float | Tensor) -> Tensor:
        return (settled_ranks(logits, price, temperature) * opened).double().mean()

    price = _bisect(logits, temperature, lambda price: mean(price) > goal)
    step = 1e-6 * max(1.0, abs(price))  # to either side of where the last component changes
    return min((price - step, price + step), key=lambda near: abs(float(mean(near)) - goal))


def _bisect(logits: Tensor, temperature: float, too_much: Callable[[Tensor], Tensor]) -> float:
    """Where `too_much` turns false, without asking the device in between."""
    reach = logits.max() - logits.min() + 50 * temperature  # beyond it all ranks are 1, or all r
    low, high = -reach, reach
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = too_much(middle)
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return float((low + high) / 2)


@dataclass
class RankTracker:
    """The price of a component, and the course of the mean rank of open adapters as a share of r.

    It works as `allocation.tracking.Tracker` does for gates, from the mean of uniform ranks to its target.

    Args:
        rank: r.
        target: the share at the end.
        first: last step with uniform ranks.
        last: first step at the target.
        price: π, at first.
        rate: how far the price moves to the fair one per step.
        stiffness: of the penalty, in units of the loss.
    """

    rank: int
    target: float
    first: int
    last: int
    price: float = 0.0
    rate: float = 0.2
    stiffness: float = 1.0

    def target_at(self, step: int) -> float:
        """The target of step `step`, from 1 (see `schedules.cubic`)."""
        uniform = round((self.rank + 1) / (2 * self.rank) * _SCALE)
        return (
            cubic(step, initial=uniform, target=round(self.target * _SCALE), warmup=self.first, last=self.last) / _SCALE
        )

    def penalty(self, chances: Tensor, weights: Tensor, step: int) -> Tensor:
        """Half the squared distance of the expected share to its target, for P (…, r) and weights (…)."""
        return self.stiffness / 2 * (mean_rank(chances, weights) / self.rank - self.target_at(step)).square()

    def update(self, logits: Tensor, temperature: float, step: int, weights: Tensor) -> None:
        """Move the price; see `fair_rank_price`."""
        goal = fair_rank_price(logits, temperature, self.rank * self.target_at(step), weights)
        self.price += self.rate * (goal - self.price)
