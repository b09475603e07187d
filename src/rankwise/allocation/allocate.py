"""Who gets the budget: from scores to whole ranks, exactly.

Every component (one rank-1 direction) of every matrix has a priority, all components form one sequence, and an
allocation is a prefix of it: nothing is ever taken back as the budget grows (house monotonicity). Component i
(0-based) of a matrix with score s has the priority

    s / (i + 1/2),

the divisor method of Webster and Sainte-Laguë, whose ranks are proportional to the scores and which, unlike largest
remainder, is house-monotone (Balinski and Young, Fair Representation, 1982). A matrix with a spectrum has its i-th gain
as priority instead. See docs/decisions/0006.
"""

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from numbers import Real
from typing import Literal

from rankwise.allocation.exchange import CostClass, Unreachable, exchange, reach_of
from rankwise.allocation.names import natural
from rankwise.errors import BudgetError

Score = float | Sequence[float]
Component = tuple[float, int, float, int, str]
"""(-priority, index, -score, position of the matrix in natural order, its name): smaller stands earlier.

The score (of a gain: the number that would have it as quotient) tells apart numbers so close that dividing them by
i + 1/2 rounds to the same priority.
"""


@dataclass(frozen=True)
class Target:
    """A resolved budget: `total` in `unit`, exactly."""

    total: int
    unit: Literal["parameters", "ranks"]


def spent(ranks: Mapping[str, int], costs: Mapping[str, int]) -> int:
    """Parameters that `ranks` cost."""
    return sum(rank * costs[name] for name, rank in ranks.items())


def allocate(
    scores: Mapping[str, Score],
    costs: Mapping[str, int],
    target: Target,
    *,
    floor: int = 1,
    cap: Mapping[str, int] | int | None = None,
    per: Literal["rank", "parameter"] = "rank",
) -> dict[str, int]:
    """Whole ranks by priority, spending `target` exactly, each within `[floor, cap]`.

    A score is a number (ranks in proportion to it) or a spectrum, the gain of each further component. Floors come
    first; then components by descending priority, equal ones by lower index, then by natural order of the names. Where
    a prefix of this sequence spends the target, it is the answer: always in ranks, and in parameters whenever it lands
    there. Otherwise components of different costs are exchanged around the longest prefix that fits so that the
    parameters add up exactly and Σ priority·cost of what is kept is largest (see `allocation.exchange`). Zero scores
    everywhere count as equal; zero scores beside others get what nobody else can hold.

    Args:
        scores: name -> importance, finite and >= 0; or name -> gains, finite, >= 0 and non-increasing.
        costs: name -> parameters per rank (in + out).
        target: what to spend.
        floor: smallest rank a matrix may get.
        cap: largest rank, for all or per name; no spectrum gives more components than it has.
        per: what a score is worth: gain per `rank`, or gain per `parameter` (divides it by the matrix's cost).

    Raises:
        BudgetError: a score is not what it should be, or floor and cap leave no way to spend the target exactly.
    """
    names = sorted(scores, key=natural)
    gains = _checked(scores)
    upper = {name: _upper(gains[name], cap, name, target.total) for name in names}
    price = {name: costs[name] if target.unit == "parameters" else 1 for name in names}
    left = target.total - _floor_cost(names, price, floor, upper, target)
    weight = {name: 1 / costs[name] if per == "parameter" else 1.0 for name in names}
    sequences: dict[int, list[Iterator[Component]]] = {}
    for position, name in enumerate(names):
        sequence = _components(gains[name], weight[name], range(floor, upper[name]), position, name)
        sequences.setdefault(price[name], []).append(sequence)
    taken = _take({cost: heapq.merge(*group) for cost, group in sorted(sequences.items())}, left, target)
    ranks = dict.fromkeys(scores, floor)
    for name in taken:
        ranks[name] += 1
    return ranks


def _take(classes: Mapping[int, Iterator[Component]], left: int, target: Target) -> list[str]:
    """Names of the matrices whose next components are taken, one entry each, costing `left` in all."""
    taken: dict[int, list[Component]] = {cost: [] for cost in classes}
    heads = [(head, cost) for cost, sequence in classes.items() if (head := next(sequence, None))]
    heapq.heapify(heads)
    while heads and heads[0][1] <= left:
        component, cost = heads[0]
        taken[cost].append(component)
        left -= cost
        following = next(classes[cost], None)
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following, cost))
    if left > 0:
        _exchange(taken, classes, heads, left, target)
    return [name for group in taken.values() for *_, name in group]


def _exchange(
    taken: dict[int, list[Component]],
    classes: Mapping[int, Iterator[Component]],
    heads: list[tuple[Component, int]],
    left: int,
    target: Target,
) -> None:
    """Change `taken` so that what is `left` is spent as well."""
    window = reach_of(classes)
    following = {cost: [head] for head, cost in heads}
    whole = left + sum(cost * len(group) for cost, group in taken.items())
    for cost, sequence in classes.items():
        following.setdefault(cost, []).extend(islice(sequence, min(window, whole // cost)))
    groups = [
        CostClass(cost, [-c[0] for c in reversed(taken[cost][-window:])], [-c[0] for c in following[cost]])
        for cost in classes
    ]
    try:
        moves = exchange(groups, left, -heads[0][0][0])
    except Unreachable as error:
        raise unspendable(target, list(classes), [target.total - left + near for near in error.near]) from None
    for cost, move in moves.items():
        if move < 0:
            del taken[cost][move:]
        taken[cost] += following[cost][: max(move, 0)]


def unspendable(target: Target, costs: Sequence[int], near: Sequence[int]) -> BudgetError:
    """The error for a target that no choice of whole ranks adds up to; `near` are the nearest that can be."""
    hint = f"; {' and '.join(f'{total:,}' for total in near)} can" if near else ""
    return BudgetError(
        f"{target.total:,} {target.unit} cannot be spent exactly on ranks costing "
        f"{', '.join(f'{cost:,}' for cost in sorted(costs))} within floor and cap{hint}"
    )


def _components(
    gains: float | tuple[float, ...], weight: float, indices: range, position: int, name: str
) -> Iterator[Component]:
    for index in indices:
        half = index + 0.5
        gain, score = (gains[index], gains[index] * half) if isinstance(gains, tuple) else (gains / half, gains)
        yield -gain * weight, index, -score, position, name


def _checked(scores: Mapping[str, Score]) -> dict[str, float | tuple[float, ...]]:
    """Scores as floats, scaled by a power of two so that no sum of them overflows.

    Raises:
        BudgetError: one is negative or not finite, a spectrum rises, or there are none.
    """
    if not scores:
        raise BudgetError("nothing to allocate to: no adapted matrices")
    values = {
        name: float(score) if isinstance(score, Real) else tuple(float(gain) for gain in score)  # type: ignore[union-attr]
        for name, score in scores.items()
    }
    largest = 0.0
    for name, value in values.items():
        for gain in value if isinstance(value, tuple) else (value,):
            if not (math.isfinite(gain) and gain >= 0):
                raise BudgetError(f"score of {name} is {gain}; scores must be finite numbers >= 0")
            largest = max(largest, gain)
        if isinstance(value, tuple) and any(later > earlier for earlier, later in pairwise(value)):
            raise BudgetError(f"gains of {name} rise from one component to a later one; sort them, largest first")
    down = -math.frexp(largest)[1]
    return {
        name: tuple(math.ldexp(g, down) for g in value) if isinstance(value, tuple) else math.ldexp(value, down)
        for name, value in values.items()
    }


def _upper(gains: float | tuple[float, ...], cap: Mapping[str, int] | int | None, name: str, default: int) -> int:
    limit = default if cap is None else cap if isinstance(cap, int) else cap[name]
    return min(limit, len(gains)) if isinstance(gains, tuple) else limit


def _floor_cost(
    names: Sequence[str], price: Mapping[str, int], floor: int, upper: Mapping[str, int], target: Target
) -> int:
    """What the floors cost.

    Raises:
        BudgetError: a cap is below the floor, or the target is outside what floors and caps allow.
    """
    for name in names:
        if floor > upper[name]:
            raise BudgetError(f"{name}: floor {floor} is above cap {upper[name]} (its cap, or the length of its gains)")
    least = sum(floor * price[name] for name in names)
    most = sum(upper[name] * price[name] for name in names)
    if target.total < least:
        raise BudgetError(
            f"budget of {target.total:,} {target.unit} is below the floor: {len(names)} matrices at rank "
            f"{floor} cost {least:,}"
        )
    if target.total > most:
        raise BudgetError(
            f"budget of {target.total:,} {target.unit} is above the cap: at their largest ranks the {len(names)} "
            f"matrices hold {most:,}"
        )
    return least
