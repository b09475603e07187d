"""Parameters spent to the last one: how many components of each cost, where the greedy prefix does not land.

Components are ranked by priority (gain per parameter of what they cost); the longest prefix that fits is the best way
to spend what it spends, and leaves ρ parameters over. Components of one cost form a class and are only ever taken in
their order, so a way to spend everything is one move d per class, how many components more (d > 0) or fewer (d < 0)
than the prefix holds, with Σ d·cost = ρ. With θ the priority of the first component left out, adding a component below
θ and taking away one above it each lose |priority - θ|·cost, and the least total loss is the largest total gain.

How far to look. Write any solution as single steps of ±cost and order them so that a step down follows a sum above zero
and a step up any other: all partial sums then lie within the largest cost Δ (in units of the greatest common divisor),
in at most 2Δ places. Two equal partial sums enclose an exchange that moves no parameters and gains nothing, since what
it adds ranks below what it removes, and undoing it leaves a nearer solution that is as good. So some best solution
makes at most 2Δ - 1 steps (Eisenbrand and Weismantel's argument, arXiv 1707.00481, for one constraint).
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

CANDIDATES = 1 << 18
"""At most about so many partial solutions are looked at per class: the search is exact below it, and a beam above."""
_GLANCE = 1 << 12
"""The same for a first look, whose loss bounds the moves that are worth looking at."""


class Unreachable(Exception):
    """No exchange spends exactly what is left over. `near`: the nearest amounts that can be, below and above.

    Never leaves this package: callers make a `BudgetError` of it.
    """

    def __init__(self, near: tuple[int, ...]) -> None:
        super().__init__(near)
        self.near = near


@dataclass(frozen=True)
class CostClass:
    """The components of one cost around the prefix.

    `removable`: priorities of those in the prefix that may go, last taken first (non-decreasing).
    `addable`: priorities of those outside that may come, next first (non-increasing).
    """

    cost: int
    removable: Sequence[float]
    addable: Sequence[float]


def reach_of(costs: Collection[int]) -> int:
    """The most components by which any class has to differ from the prefix: 2Δ - 1."""
    return 2 * (max(costs) // math.gcd(*costs)) - 1


def exchange(classes: Collection[CostClass], left: int, threshold: float) -> dict[int, int]:
    """Components more (or fewer) per cost such that exactly `left` more parameters are spent, at the least loss.

    Of equal losses the one that moves fewer parameters is taken. The order of the classes does not matter.

    Args:
        classes: one per cost.
        left: parameters that the prefix leaves over, above 0 and below the cost of the next component.
        threshold: priority of the next component.

    Raises:
        Unreachable: floors, caps and costs leave no way.
    """
    divisor = math.gcd(*(c.cost for c in classes))
    window = reach_of([c.cost for c in classes])
    options = [_options(c, divisor, window, threshold) for c in classes]
    options.sort(key=lambda o: (len(o.moves), o.unit))  # the class with most moves last: it is solved directly
    space = _space(options, left // divisor)
    if left % divisor or not space.holds(left // divisor):
        raise Unreachable(tuple(units * divisor for units in space.nearest(left / divisor)))
    found = _search(space, _GLANCE, math.inf)
    if found is None:
        raise AssertionError("a sum that the tables hold was not found")
    if found.loss > 0:  # a move that alone loses more than a known solution is in no better one
        narrowed = _space([o.within(found.loss) for o in options], left // divisor)
        better = _search(narrowed, CANDIDATES, found.loss)
        found = min(better or found, found, key=lambda f: (f.loss, f.moved))
    return {o.unit * divisor: move for o, move in zip(options, found.moves, strict=True)}


@dataclass(frozen=True)
class _Options:
    """What is open to one class: `moves`, consecutive and around 0, and what each loses (least, zero, at 0)."""

    unit: int
    moves: Ints
    losses: Floats

    def within(self, loss: float) -> "_Options":
        keep = self.losses <= loss
        return _Options(self.unit, self.moves[keep], self.losses[keep])


def _options(group: CostClass, divisor: int, window: int, threshold: float) -> _Options:
    fewer, more = (np.array(p[:window], dtype=np.float64) for p in (group.removable, group.addable))
    down = np.cumsum((fewer - threshold) * group.cost)
    up = np.cumsum((threshold - more) * group.cost)
    losses = np.concatenate([down[::-1], [0.0], up])
    return _Options(group.cost // divisor, np.arange(-len(fewer), len(more) + 1, dtype=np.int64), losses)


@dataclass(frozen=True)
class _Space:
    """The options of all classes, and which sums the classes from each one on can reach.

    `tables[j]`, packed bits: bit b is set if classes j, j + 1, … together can spend `b - offsets[j]` units.
    """

    options: Sequence[_Options]
    left: int
    offsets: Sequence[int]
    tables: Sequence[NDArray[np.uint8]]

    def open(self, index: int, remaining: Ints) -> Bools:
        """Where the classes from `index` on can spend exactly `remaining`."""
        bits = remaining + self.offsets[index]
        table = self.tables[index]
        inside = (bits >= 0) & (bits < 8 * len(table))
        bits = np.where(inside, bits, 0)
        found: Bools = inside & ((table[bits >> 3] >> (bits & 7)) & 1 == 1)
        return found

    def holds(self, units: int) -> bool:
        return bool(self.open(0, np.array([units]))[0])

    def nearest(self, units: float) -> list[int]:
        """Reachable sums next to `units`, one below and one above where there are."""
        largest = max(option.unit for option in self.options)
        around = np.arange(-largest, largest + 1) + math.floor(units)
        reachable = around[self.open(0, around)]
        below, above = reachable[reachable <= units], reachable[reachable > units]
        return [int(sum_) for sum_ in (*below[-1:], *above[:1])]


def _space(options: Sequence[_Options], left: int) -> _Space:
    offsets = [0]
    for option in reversed(options):
        offsets.insert(0, offsets[0] - option.unit * int(option.moves[0]))
    limit = left + offsets[0] + max(option.unit for option in options)
    mask, table = (1 << (limit + 1)) - 1, 1
    tables = [_packed(table, limit)]
    for option in reversed(options):
        table = _with_multiples(table, option.unit, len(option.moves) - 1, mask)
        tables.insert(0, _packed(table, limit))
    return _Space(options, left, offsets, tables)


def _with_multiples(table: int, unit: int, most: int, mask: int) -> int:
    """`table` (a set of sums, as bits) plus 0 to `most` times `unit`: shifts by 1, 2, 4, … times it, and the rest."""
    step = 1
    while most > 0:
        step = min(step, most)
        table |= (table << (step * unit)) & mask
        most -= step
        step *= 2
    return table


def _packed(table: int, limit: int) -> NDArray[np.uint8]:
    return np.frombuffer(table.to_bytes(limit // 8 + 1, "little"), dtype=np.uint8)


@dataclass(frozen=True)
class _Found:
    moves: list[int]
    loss: float
    moved: int


@dataclass(frozen=True)
class _Layer:
    """Partial solutions after some classes: what remains to spend, loss and units moved so far, and where from."""

    remaining: Ints
    loss: Floats
    moved: Ints
    parent: Ints
    choice: Ints

    def pick(self, index: Ints) -> "_Layer":
        return _Layer(
            self.remaining[index], self.loss[index], self.moved[index], self.parent[index], self.choice[index]
        )


def _search(space: _Space, candidates: int, bound: float) -> _Found | None:
    """Class by class, the best partial solution for every remainder that the later classes can still spend.

    None: all that were kept lose more than `bound`.
    """
    zero = np.zeros(1, dtype=np.int64)
    layers = [_Layer(np.array([space.left], dtype=np.int64), np.zeros(1), zero, zero, zero)]
    for index in range(len(space.options)):
        layers.append(_best(_grown(space, index, layers[-1], bound), _breadth(space, index + 1, candidates)))
    final = layers[-1]
    if not len(final.remaining):
        return None
    moves, at = [], 0
    for layer, option in zip(reversed(layers[1:]), reversed(space.options), strict=True):
        moves.append(int(option.moves[layer.choice[at]]))
        at = int(layer.parent[at])
    return _Found(moves[::-1], float(final.loss[0]), int(final.moved[0]))


def _breadth(space: _Space, index: int, candidates: int) -> int:
    """How many partial solutions to take on to class `index`; the last class has but one move for each."""
    moves = len(space.options[index].moves) if index < len(space.options) - 1 else 1
    return max(1, candidates // moves)


def _grown(space: _Space, index: int, layer: _Layer, bound: float) -> _Layer:
    """Every partial solution of `layer` with every move of class `index` that can go on and loses at most `bound`."""
    option = space.options[index]
    if index == len(space.options) - 1:  # solved directly; the tables have seen to it that the move exists
        parent = np.arange(len(layer.remaining), dtype=np.int64)
        choice = layer.remaining // option.unit - option.moves[0]
    else:
        parent, choice = np.nonzero(space.open(index + 1, layer.remaining[:, None] - option.unit * option.moves))
    move = option.moves[choice]
    grown = _Layer(
        layer.remaining[parent] - option.unit * move,
        layer.loss[parent] + option.losses[choice],
        layer.moved[parent] + option.unit * np.abs(move),
        parent,
        choice,
    )
    return grown.pick(np.flatnonzero(grown.loss <= bound))


def _best(layer: _Layer, most: int) -> _Layer:
    """The best of every remainder (least loss, then fewest units moved); of those the `most` that lost least."""
    order = np.lexsort((layer.moved, layer.loss, layer.remaining))
    remaining = layer.remaining[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = remaining[1:] != remaining[:-1]
    order = order[first]
    if len(order) > most:
        order = order[np.lexsort((layer.moved[order], layer.loss[order]))[:most]]
    return layer.pick(order)
