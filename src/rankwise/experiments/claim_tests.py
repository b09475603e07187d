"""Claims on paired differences, whether the runs support them, and the sign-flip test.

Every claim says that the true mean θ lies within a range and is judged at one-sided level α; `low` to `high` is the
interval of confidence 1 - 2α, m the margin and b the bound.

    kind             claim          supported        refuted                  p
    superiority      θ > m          low > m          high < m                 of θ <= m
    non-inferiority  θ > -m         low > -m         high < -m                of θ <= -m
    equivalence      -m < θ < m     low > -m and     the 1 - α interval lies  the larger of both sides'
                                    high < m         wholly outside
    at most          θ <= b         high < b         low > b                  of θ >= b
    at least         θ >= b         low > b          high < b                 of θ <= b

A metric where smaller is better (`better="lower"`) mirrors the first two: θ < -m, θ < m. Everything else is
inconclusive. Each row is one test inverted, so "supported" means p < α and is wrong with probability at most α; so is
"refuted" (an equivalence can be refuted on two sides, hence the wider interval). A ratio is judged by its logarithm:
θ is the geometric mean of arm / reference. p is 1 where the runs cannot tell (one seed, or one task for tasks in
general), so that such a claim still counts in a correction; NaN where nothing was sampled (`counted`).

Sources: D. J. Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", Journal of
Pharmacokinetics and Biopharmaceutics 15, 1987; R. L. Berger and J. C. Hsu, "Bioequivalence trials, intersection-union
tests and equivalence confidence sets", Statistical Science 11, 1996.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from rankwise.errors import DataError
from rankwise.experiments.claim_statistics import (
    Array,
    Differences,
    Evidence,
    Tasks,
    check_choice,
    check_share,
    checked,
    evidence,
)

Verdict: TypeAlias = Literal["supported", "refuted", "inconclusive"]
Better: TypeAlias = Literal["higher", "lower"]
Side: TypeAlias = Literal["at most", "at least"]
Scale: TypeAlias = Literal["difference", "ratio"]
Alternative: TypeAlias = Literal["two-sided", "greater", "less"]

EXACT_UNITS = 16
"""Up to here a sign-flip test goes through all 2^n flips."""
FLIPS = 99_999
"""Flips drawn beyond that: the smallest p is 1e-5, and one of 0.05 is known to 0.0007."""
_LOG_ROUNDING = 1e-9
_CHUNK = 10_000


@dataclass(frozen=True)
class ClaimResult:
    """What the runs say about one claim.

    `low` to `high` has confidence 1 - 2 `alpha`; estimate and ends are geometric mean ratios if `scale` is "ratio".
    The claim is that the mean lies between `above` and `below`, on the same scale. `seeds` are per task; `evidence`
    is on the scale of the test (logarithms of ratios), None for counted values.
    """

    kind: str
    verdict: Verdict
    estimate: float
    low: float
    high: float
    p: float
    alpha: float
    tasks: int
    seeds: tuple[int, ...]
    method: str
    note: str
    scale: Scale
    above: float
    below: float
    evidence: Evidence | None = field(repr=False)


@dataclass(frozen=True)
class SignFlip:
    """p-value of a sign-flip test of `units` flipped signs; `smallest` is the least p that so many can give."""

    p: float
    smallest: float
    units: int
    exact: bool
    method: str


def superiority(
    differences: Differences,
    margin: float = 0.0,
    *,
    better: Better = "higher",
    alpha: float = 0.05,
    tasks: Tasks = "fixed",
) -> ClaimResult:
    """The arm is better than the reference by more than the margin.

    Raises:
        DataError: a negative margin, alpha outside (0, 0.5), or differences that cannot be used.
    """
    check_choice("better", better, ("higher", "lower"))
    _check_margin(margin, zero=True)
    return _one_sided("superiority", differences, margin, better, alpha, tasks)


def non_inferiority(
    differences: Differences,
    margin: float,
    *,
    better: Better = "higher",
    alpha: float = 0.05,
    tasks: Tasks = "fixed",
) -> ClaimResult:
    """The arm is worse than the reference by less than the margin, if at all.

    Raises:
        DataError: a margin that is not positive, alpha outside (0, 0.5), or differences that cannot be used.
    """
    check_choice("better", better, ("higher", "lower"))
    _check_margin(margin)
    return _one_sided("non-inferiority", differences, -margin, better, alpha, tasks)


def equivalence(differences: Differences, margin: float, *, alpha: float = 0.05, tasks: Tasks = "fixed") -> ClaimResult:
    """Arm and reference differ by less than the margin (two one-sided tests).

    Raises:
        DataError: a margin that is not positive, alpha outside (0, 0.5), or differences that cannot be used.
    """
    _check_margin(margin)
    return judge("equivalence", evidence(differences, tasks), alpha, -margin, margin)


def bound(
    values: Differences,
    limit: float,
    side: Side = "at most",
    *,
    scale: Scale = "difference",
    counted: bool = False,
    alpha: float = 0.05,
    tasks: Tasks = "fixed",
) -> ClaimResult:
    """The mean difference, or the geometric mean of the ratios arm / reference, keeps a bound.

    Args:
        values: differences, or ratios (all positive), per task and seed.
        limit: the bound, on the scale of the values.
        side: which side of it is claimed.
        scale: what the values are.
        counted: the values have no noise (numbers of parameters): the claim is supported if every single value keeps
            the bound, refuted if none does, and `low` to `high` is their range.
        alpha: one-sided level.
        tasks: how the tasks are read.

    Raises:
        DataError: a limit or a ratio that is not finite or, for ratios, not positive; alpha outside (0, 0.5).
    """
    check_choice("side", side, ("at most", "at least"))
    check_choice("scale", scale, ("difference", "ratio"))
    rows = checked(values)
    if not math.isfinite(limit) or (scale == "ratio" and limit <= 0):
        raise DataError(f"limit {limit}: must be finite{' and positive' if scale == 'ratio' else ''}")
    lowest = min(float(row.min()) for row in rows)
    if scale == "ratio" and lowest <= 0:
        raise DataError(f"ratio {lowest}: must be positive")
    above, below = (-math.inf, limit) if side == "at most" else (limit, math.inf)
    if counted:
        return _counted(rows, limit, side, scale, alpha, (above, below))
    if scale == "difference":
        return judge(side, evidence(rows, tasks), alpha, above, below)
    found = evidence([np.log(row) for row in rows], tasks, rounding=_LOG_ROUNDING)
    return judge(side, found, alpha, above, below, "ratio")


def judge(
    kind: str, found: Evidence, alpha: float, above: float, below: float, scale: Scale = "difference"
) -> ClaimResult:
    """The verdict on "the true mean lies between `above` and `below`", at least one of them finite.

    Raises:
        DataError: alpha outside (0, 0.5).
    """
    check_share("alpha", alpha, 0.5)
    bottom, top = (_log(above), _log(below)) if scale == "ratio" else (above, below)
    low, high = found.ends(1 - 2 * alpha)
    sides = [found.above(bottom)] * (bottom > -math.inf) + [found.below(top)] * (top < math.inf)
    wrong = [found.below(bottom)] * (bottom > -math.inf) + [found.above(top)] * (top < math.inf)
    p, against = max(sides), min(1.0, len(wrong) * min(wrong))
    verdict: Verdict = "inconclusive"
    if p < alpha and low > bottom and high < top:
        verdict = "supported"
    elif against < alpha and (high < bottom or low > top):
        verdict = "refuted"
    estimate = found.mean
    if scale == "ratio":
        estimate, low, high = _exp(estimate), _exp(low), _exp(high)
    return ClaimResult(
        kind, verdict, estimate, low, high, p, alpha, len(found.seeds), found.seeds, found.method, found.note, scale,
        above, below, found,
    )  # fmt: skip


def sign_flip(differences: Differences, *, alternative: Alternative = "two-sided", tasks: Tasks = "fixed") -> SignFlip:
    """p-value of "arm and reference do not differ", from flipping the signs of the differences.

    The statistic is the mean over tasks of the mean over seeds. Fixed tasks: every difference is flipped by itself,
    which assumes that under the null each is symmetric about zero, in every task. Random tasks: all differences of a
    task are flipped together, which assumes that the tasks' means are symmetric about zero. p is the share of the
    2^n flips whose statistic is at least the observed one, the observed one included, so that p is at least 2^-n (two
    sided 2^(1 - n)): 3 seeds of one task cannot go below 0.125. Beyond 16 units, m = 99999 flips are drawn with a
    fixed seed and p = (b + 1) / (m + 1), b of them being at least as large. Ties within rounding count as equal.

    Sources: R. A. Fisher, "The Design of Experiments", section 21, 1935; B. Phipson and G. K. Smyth, "Permutation
    p-values should never be zero", Statistical Applications in Genetics and Molecular Biology 9, 2010.

    Raises:
        DataError: differences that cannot be used, or no such alternative.
    """
    check_choice("alternative", alternative, ("two-sided", "greater", "less"))
    check_choice("tasks", tasks, ("fixed", "random"))
    rows = checked(differences)
    if tasks == "fixed":
        parts = np.concatenate([row / (len(row) * len(rows)) for row in rows])
    else:
        parts = np.array([row.mean() / len(rows) for row in rows])
    observed = float(parts.sum()) * (-1 if alternative == "less" else 1)
    if alternative == "two-sided":
        observed = abs(observed)
    sizes = np.sort(np.abs(parts))
    exact = len(sizes) <= EXACT_UNITS
    flipped = _all_flips(sizes) if exact else _drawn_flips(sizes)
    if alternative == "two-sided":
        flipped = np.abs(flipped)
    hits = int((flipped >= observed - 1e-12 * float(sizes.sum())).sum())
    p = hits / len(flipped) if exact else (hits + 1) / (FLIPS + 1)
    least = 0.5 ** len(sizes) * (2 if alternative == "two-sided" else 1)
    method = f"sign flip of {'differences' if tasks == 'fixed' else 'tasks'}, {'exact' if exact else 'drawn'}"
    return SignFlip(p, least if exact else max(least, 1 / (FLIPS + 1)), len(sizes), exact, method)


def _one_sided(
    kind: str, differences: Differences, edge: float, better: Better, alpha: float, tasks: Tasks
) -> ClaimResult:
    above, below = (edge, math.inf) if better == "higher" else (-math.inf, -edge)
    return judge(kind, evidence(differences, tasks), alpha, above, below)


def _counted(
    rows: list[Array], limit: float, side: Side, scale: Scale, alpha: float, edges: tuple[float, float]
) -> ClaimResult:
    check_share("alpha", alpha, 0.5)
    values = np.concatenate(rows)
    kept = values <= limit if side == "at most" else values >= limit
    verdict: Verdict = "supported" if kept.all() else "inconclusive" if kept.any() else "refuted"
    means = [float(np.log(row).mean() if scale == "ratio" else row.mean()) for row in rows]
    estimate = _exp(float(np.mean(means))) if scale == "ratio" else float(np.mean(means))
    note = "" if kept.all() or not kept.any() else f"{int(kept.sum())} of {len(kept)} values keep the bound"
    seeds = tuple(len(row) for row in rows)
    return ClaimResult(
        side, verdict, estimate, float(values.min()), float(values.max()), math.nan, alpha, len(rows), seeds,
        "counted, no test", note, scale, *edges, None,
    )  # fmt: skip


def _all_flips(sizes: Array) -> Array:
    """The sums ± sizes[0] ± sizes[1] ... of all 2^n choices of the signs."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    return sums


def _drawn_flips(sizes: Array) -> Array:
    rng = np.random.default_rng(0)
    chunks = [min(_CHUNK, FLIPS - start) for start in range(0, FLIPS, _CHUNK)]
    return np.concatenate([(2.0 * rng.integers(0, 2, (n, len(sizes)), dtype=np.int8) - 1) @ sizes for n in chunks])


def _log(value: float) -> float:
    return math.log(value) if 0 < value < math.inf else value


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _check_margin(margin: float, *, zero: bool = False) -> None:
    if not (math.isfinite(margin) and (margin > 0 or (zero and margin == 0))):
        raise DataError(f"margin {margin}: must be finite and {'not negative' if zero else 'positive'}")
