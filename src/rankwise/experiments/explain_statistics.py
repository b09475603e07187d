"""What decisions per input say: shares, information about the class, groups of examples. Arrays in, numbers out.

Mutual information of a module's decision D (the rank used, 0 where closed) and the class C, in bits:

    I(D; C) = H(D) + H(C) - H(D, C) ,   all with frequencies for probabilities

With n examples this is above 0 even where D and C have nothing to do with each other, by about
(|D| - 1)(|C| - 1) / (2 n ln 2) (Miller 1955). How far is measured by permuting the classes. One permutation is used for
all modules, and a module's p-value compares it with the largest of all modules (Westfall & Young 1993, maxT): with many
modules some stand out by chance, and that is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 500
ROWS = 8192
"""Examples counted at once."""
CLOSE = 1e-9
"""Bits that are rounding."""

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Information:
    """Of every module, in bits.

    Args:
        bits: (modules,) I(D; C).
        chance: (modules,) its mean over permuted classes.
        p: (modules,) share of permutations whose largest module reaches `bits` (the real classes counted as one).
    """

    bits: Array
    chance: Array
    p: Array


def information(ranks: Integers, classes: Integers, *, permutations: int = PERMUTATIONS, seed: int = 0) -> Information:
    """Mutual information of every module's decision and the class, and what chance gives; see the module.

    Args:
        ranks: (examples, modules), what each example used.
        classes: (examples,) from 0.
        permutations: how many.
        seed: of the permutations.
    """
    rng = np.random.default_rng(seed)
    labels = np.stack([classes, *(rng.permutation(classes) for _ in range(permutations))])
    levels = [np.unique(column) for column in ranks.T]
    starts = np.r_[0, np.cumsum([len(each) for each in levels])[:-1]]
    tables = _tables(ranks, labels, levels)  # (1 + permutations, levels of all modules, classes)
    n = len(classes)
    joint = np.add.reduceat(_surprise(tables, n).sum(axis=2), starts, axis=1)
    decisions = np.add.reduceat(_surprise(tables[0].sum(axis=1), n), starts)
    bits = decisions + _surprise(np.bincount(classes), n).sum() - joint
    bits = np.where(np.abs(bits) < CLOSE, 0.0, bits)
    real, chance = bits[0], bits[1:]
    reached = (chance.max(axis=1)[:, None] >= real - CLOSE).sum(axis=0)
    return Information(real, chance.mean(axis=0), (1 + reached) / (1 + permutations))


def _tables(ranks: Integers, labels: Integers, levels: Sequence[Integers]) -> Array:
    """How often every level of every module meets every class, for each row of `labels`."""
    count = int(labels.max()) + 1
    tables = np.zeros((len(labels), sum(map(len, levels)), count))
    for start in range(0, len(ranks), ROWS):
        rows = slice(start, start + ROWS)
        columns = [ranks[rows, [module]] == each for module, each in enumerate(levels)]
        member = np.concatenate(
            [column.reshape(-1, len(each)) for column, each in zip(columns, levels, strict=True)], 1
        )
        for label in range(count):
            # whole numbers below 2^24 are exact in float32
            tables[:, :, label] += (labels[:, rows] == label).astype(np.float32) @ member.astype(np.float32)
    return tables


def _surprise(counts: NDArray[np.float64] | Integers, n: int) -> Array:
    """-p log2 p for p = counts / n, 0 where p is 0."""
    p = counts / n
    return -p * np.log2(np.where(p > 0, p, 1.0))


def thirds(values: NDArray[np.float64] | Integers) -> Integers:
    """0, 1 or 2 for the lower, middle and upper third; equal values stay together, so a third may be empty.

    Args:
        values: (examples,).
    """
    low, high = np.quantile(values, [1 / 3, 2 / 3], method="lower")
    found: Integers = (values > low).astype(np.int64) + (values > high)
    return found


def share_by_class(opened: NDArray[np.bool_], classes: Integers, count: int) -> Array:
    """(classes, modules): share of each class's examples that open each module; NaN for a class without examples."""
    rows = [opened[classes == label] for label in range(count)]
    return np.stack([each.mean(axis=0) if len(each) else np.full(opened.shape[1], np.nan) for each in rows])


def extremes(total: Integers, opened: Integers, count: int) -> tuple[list[int], list[int]]:
    """Indices of the most and of the least adapted examples, by total rank, then by open modules, then in order.

    Args:
        total: (examples,) rank used, summed over modules.
        opened: (examples,) open modules.
        count: how many of each; fewer where the two lists would meet.
    """
    count = min(count, len(total) // 2)
    index = np.arange(len(total))
    most = np.lexsort((index, -opened, -total))[:count]
    least = np.lexsort((index, opened, total))[:count]
    return most.tolist(), least.tolist()


def rank_counts(ranks: Integers) -> dict[int, int]:
    """Rank used (0: closed) -> how many decisions of examples and modules."""
    values, counts = np.unique(ranks, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
