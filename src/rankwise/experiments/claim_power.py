"""What a plan of claims needs besides verdicts: Holm's correction, power and numbers of seeds, the noise floor.

And a bootstrap to compare the intervals with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy import optimize, stats

from rankwise.errors import DataError
from rankwise.experiments.claim_examples import as_noisy
from rankwise.experiments.claim_statistics import (
    Differences,
    Evidence,
    Interval,
    Tasks,
    check_choice,
    check_share,
    checked,
    degrees_of_freedom,
    from_spreads,
)
from rankwise.experiments.claim_tests import ClaimResult, judge

Sides: TypeAlias = Literal[1, 2]

RESAMPLES = 4000
"""Of the bootstrap; an end of a 95 % interval then moves by about 2 % of the half-width with other draws."""
MOST_SEEDS = 999
"""Numbers of seeds beyond this are not looked for."""


@dataclass(frozen=True)
class NoiseFloor:
    """How far two runs of the same method differ by seed alone.

    `run` is the standard deviation of one run's metric (root mean square over tasks), `by_task` that of each task;
    `low` to `high` covers `run` with 95 % for normal differences of equal variance. `difference` is the standard
    deviation of the mean over tasks of a difference between two means of `seeds` runs each.
    """

    run: float
    low: float
    high: float
    by_task: tuple[float, ...]
    difference: float
    seeds: int
    n: int


def power(effect: float, spread: float, seeds: int, *, alpha: float = 0.05, sides: Sides = 1, tasks: int = 1) -> float:
    """Chance that a true mean difference is found by the t test of fixed tasks with equal spreads.

    With δ = effect · √(T n) / spread, 1 - F(t(1 - α; df); T (n - 1), δ), F being the noncentral t and df what
    `degrees_of_freedom` gives for equal spreads (n - 1 for one task); two-sided with α / 2 and both tails. Exact for
    one task. For several the claim estimates its df from the spreads, which costs power: up to 0.02 with 3 seeds, 0.01
    with 5 or more, in simulations of 2 to 8 tasks.

    Source: N. L. Johnson and B. L. Welch, "Applications of the non-central t-distribution", Biometrika 31, 1940.

    Args:
        effect: true mean difference beyond the margin, in the metric's units; for one side, positive is as claimed.
        spread: standard deviation over seeds of one task's paired differences.
        seeds: n, per task.
        alpha: level.
        sides: of the test.
        tasks: T.

    Raises:
        DataError: fewer than two seeds or one task, a spread that is not positive, alpha outside (0, 1).
    """
    _check_design(spread, seeds, alpha, sides, tasks)
    if not math.isfinite(effect):
        raise DataError(f"effect {effect}: must be finite")
    return _power(effect * math.sqrt(tasks * seeds) / spread, seeds, tasks, alpha, sides)


def smallest_effect(
    spread: float,
    seeds: int,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    sides: Sides = 1,
    tasks: int = 1,
) -> float:
    """The smallest true mean difference that is found with this power; arguments as for `power`.

    Raises:
        DataError: as `power`, or a power that is not between alpha and 1.
    """
    _check_design(spread, seeds, alpha, sides, tasks)
    _check_power(power, alpha)
    top = 1.0
    while _power(top, seeds, tasks, alpha, sides) < power:
        top *= 2
    shift = optimize.brentq(lambda x: _power(x, seeds, tasks, alpha, sides) - power, 0, top, xtol=1e-10)
    return float(shift) * spread / math.sqrt(tasks * seeds)


def seeds_needed(
    effect: float, spread: float, *, alpha: float = 0.05, power: float = 0.8, sides: Sides = 1, tasks: int = 1
) -> int | None:
    """The fewest seeds per task (at least 2) that find the effect with this power; None if 999 do not.

    Arguments as for `power`.

    Raises:
        DataError: an effect that is not positive, otherwise as `smallest_effect`.
    """
    _check_design(spread, 2, alpha, sides, tasks)
    _check_power(power, alpha)
    if not (math.isfinite(effect) and effect > 0):
        raise DataError(f"effect {effect}: must be finite and positive")
    for seeds in range(2, MOST_SEEDS + 1):
        if _power(effect * math.sqrt(tasks * seeds) / spread, seeds, tasks, alpha, sides) >= power:
            return seeds
    return None


def what_would_settle(result: ClaimResult) -> int | None:
    """The fewest seeds per task that would decide an inconclusive claim if estimate and spreads stayed as they are.

    Every task would have that many; the search starts from the largest number that a task has. It is a projection,
    not a power: the estimate will move, and near an edge about half of such runs stay inconclusive. For random tasks
    seeds shrink only the part of the tasks' variance that seeds explain. None if no number up to 999 decides it, if
    the spread is unknown (one seed), or if nothing was sampled.

    Raises:
        DataError: the claim is decided already.
    """
    if result.verdict != "inconclusive":
        raise DataError(f"the claim is {result.verdict}: only an inconclusive one is left to settle")
    found = result.evidence
    if found is None or any(math.isnan(spread) for spread in found.spreads):
        return None
    for seeds in range(max(*found.seeds, 2), MOST_SEEDS + 1):
        grown = _with_seeds(found, seeds)
        if judge(result.kind, grown, result.alpha, result.above, result.below, result.scale).verdict != "inconclusive":
            return seeds
    return None


def noise_floor(differences: Differences, seeds: int) -> NoiseFloor:
    """The noise floor from differences between two runs of the same method with different seeds.

    The two runs of a pair have the same distribution, so d = a - b has mean 0 and variance 2 σ_t², and

        σ_t² = mean(d²) / 2                      n_t degrees of freedom: the mean is known
        run = √(Σ σ_t² / T)
        difference = √(Σ 2 σ_t² / seeds) / T

    No run may stand in two pairs. Arms that share their seeds may differ by less than this: common random numbers.
    `low` and `high` are the chi-squared interval with Satterthwaite's degrees of freedom.

    Args:
        differences: `(tasks, pairs)`, or one `(pairs,)` per task.
        seeds: number of runs in each of the two means whose difference is asked for.

    Raises:
        DataError: fewer than one seed, or differences that cannot be used.
    """
    if seeds < 1:
        raise DataError(f"seeds {seeds}: at least 1 is needed")
    rows = checked(differences)
    variances = np.array([float((row**2).mean()) / 2 for row in rows])
    run = math.sqrt(float(variances.mean()))
    difference = math.sqrt(2 * float(variances.sum()) / seeds) / len(rows)
    low = high = run
    if run > 0:
        pairs = np.array([len(row) for row in rows])
        df = float(variances.sum() ** 2 / (variances**2 / pairs).sum())
        low, high = (run * math.sqrt(df / float(stats.chi2.ppf(tail, df))) for tail in (0.975, 0.025))
    by_task = tuple(math.sqrt(value) for value in variances)
    return NoiseFloor(run, low, high, by_task, difference, seeds, sum(len(row) for row in rows))


def holm(p_values: Sequence[float | None]) -> list[float]:
    """Holm's adjusted p-values in the order given: rejecting those below α keeps the family-wise error at α.

    With m tested claims and p sorted upwards, adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)). A claim
    that was not tested (None or NaN) stays NaN and does not count. Needs no independence.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6,
    1979.

    Raises:
        DataError: a p-value outside [0, 1].
    """
    p = np.array([math.nan if value is None else value for value in p_values], dtype=float)
    tested = np.flatnonzero(~np.isnan(p))
    for value in p[tested]:
        if not 0 <= value <= 1:
            raise DataError(f"p-value {value}: must be between 0 and 1")
    order = tested[np.argsort(p[tested], kind="stable")]
    p[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return [float(value) for value in p]


def bootstrap_interval(
    differences: Differences,
    confidence: float = 0.95,
    tasks: Tasks = "fixed",
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentiles of the hierarchical bootstrap: tasks drawn (unless fixed), then seeds within each drawn task.

    Too narrow for few seeds or tasks: a bootstrapped variance lacks the factor n / (n - 1), percentiles the t. The
    order of seeds and tasks does not matter.

    Source: A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application", section 3.8, 1997.
    """
    check_share("confidence", confidence)
    check_choice("tasks", tasks, ("fixed", "random"))
    rows = sorted((np.sort(row) for row in checked(differences)), key=lambda row: (len(row), *row))
    rng = np.random.default_rng(seed)
    count = len(rows)
    drawn = np.tile(np.arange(count), (resamples, 1))
    if tasks == "random":
        drawn = rng.integers(0, count, drawn.shape)
    means = np.empty(drawn.shape)
    for task, row in enumerate(rows):
        here = drawn == task
        means[here] = row[rng.integers(0, len(row), (int(here.sum()), len(row)))].mean(axis=1)
    low, high = np.quantile(means.mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    seeds = tuple(len(row) for row in checked(differences))
    estimate = float(np.mean([row.mean() for row in rows]))
    note = "percentiles of a bootstrap: too narrow below about 30 seeds, or 20 tasks if they are random"
    return Interval(estimate, float(low), float(high), confidence, count, seeds, f"bootstrap, {tasks} tasks", note)


def _with_seeds(found: Evidence, seeds: int) -> Evidence:
    """The same mean and spreads with that many seeds of every task."""
    counts = (seeds,) * len(found.seeds)
    between = max(found.between, 0.0)
    within = float(np.mean(np.square(found.spreads))) / seeds
    variance = between + within if found.reading == "random" and len(counts) > 1 else math.nan
    grown = from_spreads(found.mean, found.spreads, counts, found.reading, between, variance)
    return as_noisy(grown, found)


def _power(shift: float, seeds: int, tasks: int, alpha: float, sides: Sides) -> float:
    """Power for a mean that lies `shift` true standard errors beyond the edge."""
    edge = float(stats.t.isf(alpha / sides, degrees_of_freedom(np.ones(tasks), (seeds,) * tasks)))
    df = tasks * (seeds - 1)
    return _beyond(edge, df, shift) + (_beyond(edge, df, -shift) if sides == 2 else 0.0)


def _beyond(edge: float, df: float, shift: float) -> float:
    """P(T > edge) of the noncentral t; below a shift of -6 it is under 1e-9 and SciPy 1.17 may return NaN."""
    return 0.0 if shift < -6 else float(stats.nct.sf(edge, df, shift))


def _check_design(spread: float, seeds: int, alpha: float, sides: int, tasks: int) -> None:
    check_share("alpha", alpha)
    if not (math.isfinite(spread) and spread > 0):
        raise DataError(f"spread {spread}: must be finite and positive")
    if seeds < 2:
        raise DataError(f"seeds {seeds}: at least 2 are needed, one says nothing about seeds")
    if tasks < 1:
        raise DataError(f"tasks {tasks}: at least 1 is needed")
    if sides not in (1, 2):
        raise DataError(f"sides {sides}: must be 1 or 2")


def _check_power(power: float, alpha: float) -> None:
    if not alpha < power < 1:
        raise DataError(f"power {power}: must be between alpha ({alpha}) and 1")
