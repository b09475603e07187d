"""The mean paired difference over tasks × seeds and its interval: the evidence that a claim is judged by.

A difference is the arm's metric minus the reference's with the same seed (common random numbers). Every task counts
the same, however many seeds it ran with. Two readings of the tasks: `fixed` (the claim names them, only seeds are
sampled) and `random` (they stand for tasks in general).

What 95 % intervals cover in simulations, in percent: the range over normal differences and t with 3 degrees of
freedom, and over 4 tasks of equal spread and with one of them five times as noisy (600 simulations for a bootstrap,
at least 10000 for the rest).

    tasks   method                           3 seeds  5 seeds  10 seeds  30 seeds
    1       t, n - 1                         95 - 96  95 - 96  95 - 96   95 - 96
    1       bootstrap                        75 - 78  82 - 86  88 - 90   93
    4       t, Satterthwaite                 93 - 98  94 - 97  95 - 96   95 - 96
    4       t, damped (used below 20 seeds)  98 - 100 96 - 98  95 - 96
    4       t over seed averages             95 - 96  95 - 96  95 - 96   95 - 96
    4       bootstrap, fixed tasks           77 - 85  84 - 90  90 - 93   93 - 95
    2 - 20  t over task means                95 - 96           95 - 96
    2 - 20  bootstrap, random tasks          60 - 99           57 - 99

So the bootstrap (`claim_power.bootstrap_interval`) is there to compare with and is never chosen. Nothing here claims
skewed differences: of an exponential's, the t interval of one task covers 88 to 93 %, and its worse one-sided error
is 9 to 16 % instead of 5. Arms that are skewed alike have differences that are not: 95 % and more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

from rankwise.errors import DataError

Array: TypeAlias = NDArray[np.float64]
Differences: TypeAlias = Array | Sequence[Array] | Sequence[Sequence[float]]
"""`(tasks, seeds)`, or one `(seeds,)` per task where the numbers of seeds differ."""
Tasks: TypeAlias = Literal["fixed", "random"]

ROUNDING = 1e-14
"""Differences of a metric that lie closer together than this are the same number."""
_RELATIVE = 1e-9
_DAMPED_BELOW = 20
_ONE_TASK = "one task: tasks in general need at least two, the interval is unbounded"
_NO_SPREAD = "no spread at all, so the noise is unknown: p is the least that a sign flip could give,"


@dataclass(frozen=True)
class Interval:
    """`estimate` is the mean over the tasks of the mean over seeds; `low` to `high` covers it with `confidence`.

    `seeds` are the numbers of seeds, one per task. Where nothing can be said, `low` and `high` are -inf and inf and
    `note` says why.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    tasks: int
    seeds: tuple[int, ...]
    method: str
    note: str = ""


@dataclass(frozen=True)
class Evidence:
    """The mean difference with its standard error and degrees of freedom; NaN where seeds or tasks are too few.

    `spreads` are the tasks' standard deviations over seeds (NaN for one seed), `between` the variance of the tasks'
    true means if they are random (a moment estimate, may be negative; else 0), `units` what a sign flip would flip.

    No spread at all (`se` 0) is no proof of no noise. The p-value is then 2^-units, the least that a sign-flip test
    of these data could give, and the interval is the point if that suffices for its confidence, else unbounded.
    """

    mean: float
    se: float
    df: float
    seeds: tuple[int, ...]
    spreads: tuple[float, ...]
    between: float
    units: int
    reading: Tasks
    method: str
    note: str = ""

    def above(self, value: float) -> float:
        """p-value of "the true mean is at most `value`", small where it is above; 1 where nothing can be said."""
        return self._p(self.mean - value)

    def below(self, value: float) -> float:
        """p-value of "the true mean is at least `value`"."""
        return self._p(value - self.mean)

    def ends(self, confidence: float) -> tuple[float, float]:
        """Both ends of the interval, mean ± t(df) · se."""
        if math.isnan(self.se):
            return -math.inf, math.inf
        if self.se == 0:
            enough = 2 * 0.5**self.units <= (1 - confidence) * (1 + _RELATIVE)
            return (self.mean, self.mean) if enough else (-math.inf, math.inf)
        half = float(special.stdtrit(self.df, (1 + confidence) / 2)) * self.se
        return self.mean - half, self.mean + half

    def _p(self, distance: float) -> float:
        if math.isnan(self.se):
            return 1.0
        if self.se == 0:
            return 0.5**self.units if distance > 0 else 1.0
        return float(special.stdtr(self.df, -distance / self.se))


def evidence(differences: Differences, tasks: Tasks = "fixed", *, rounding: float = ROUNDING) -> Evidence:
    """Mean paired difference, standard error and degrees of freedom.

    With T tasks, n_t seeds of task t, m_t and s_t mean and standard deviation of its differences, v_t = s_t² / n_t:

        mean   = Σ m_t / T
        fixed  : se² = Σ v_t / T²,      df from `degrees_of_freedom` (n - 1 for one task)
        random : se² = var(m_t) / T,    df = T - 1

    Fixed tasks take the seeds of different tasks to be independent; if they may not be, hand in
    `seed_averages`. A task with one seed leaves fixed tasks without a standard error.

    Args:
        differences: arm minus reference, in the metric's units.
        tasks: how the tasks are read.
        rounding: differences within a task that are closer than this, or closer than 1e-9 of the largest, are equal.

    Raises:
        DataError: no tasks, a task without seeds, or a number that is not finite.
    """
    check_choice("tasks", tasks, ("fixed", "random"))
    rows = checked(differences)
    limit = max(rounding, _RELATIVE * max(float(np.abs(row).max()) for row in rows))
    spreads = tuple(_spread(row, limit) if len(row) > 1 else math.nan for row in rows)
    means = np.array([row.mean() for row in rows])
    seeds = tuple(len(row) for row in rows)
    if tasks == "fixed":
        return from_spreads(float(means.mean()), spreads, seeds, "fixed")
    within = float(np.mean([0.0 if math.isnan(s) else s**2 / n for s, n in zip(spreads, seeds, strict=True)]))
    variance = _spread(means, limit) ** 2 if len(rows) > 1 else math.nan
    return from_spreads(float(means.mean()), spreads, seeds, "random", variance - within, variance)


def from_spreads(
    mean: float,
    spreads: tuple[float, ...],
    seeds: tuple[int, ...],
    tasks: Tasks,
    between: float = 0.0,
    variance: float = math.nan,
) -> Evidence:
    """The evidence that a mean and standard deviations `(tasks,)` with these numbers of seeds amount to.

    between, variance: of the tasks' true means and of their measured ones, both for random tasks only.
    """
    count = len(seeds)
    if tasks == "random":
        se, df, units, method = math.sqrt(variance / count), count - 1.0, count, "t over task means"
        note = _ONE_TASK if count == 1 else ""
    else:
        v = np.array(spreads) ** 2 / np.array(seeds)
        se, units = math.sqrt(float(v.sum())) / count, sum(seeds)
        df = degrees_of_freedom(v, seeds) if se > 0 else math.nan
        method, note = _method(seeds), _note(spreads, seeds)
    if math.isnan(se):
        method = "none"
    elif se == 0:
        method, note = "sign flip", f"{_NO_SPREAD} {0.5**units:.2g}"
    return Evidence(mean, se, df, seeds, spreads, between, units, tasks, method, note)


def _method(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return "t"
    return "t, Satterthwaite" if min(seeds) >= _DAMPED_BELOW else "t, damped Satterthwaite"


def _note(spreads: Sequence[float], seeds: Sequence[int]) -> str:
    """What a reader must know about fixed tasks with these spreads and numbers of seeds."""
    alone = [task for task, n in enumerate(seeds) if n == 1]
    if alone:
        return f"one seed of task {', '.join(map(str, alone))}: seeds cannot be told apart, the interval is unbounded"
    notes = []
    if len(seeds) > 1 and min(seeds) < _DAMPED_BELOW:
        notes.append(f"{min(seeds)} seeds: fewer degrees of freedom, because Satterthwaite's would undercover")
    still = [task for task, spread in enumerate(spreads) if spread == 0]
    if still:
        notes.append(f"all differences of task {', '.join(map(str, still))} are equal: its noise counts as none")
    return "; ".join(notes)


def degrees_of_freedom(variances: Array, seeds: Sequence[int]) -> float:
    """Degrees of freedom of Σ v_t, damped where a v_t `(tasks,)` comes from few seeds.

    With the shares w_t = v_t / Σ v and n the smallest number of seeds,

        1 / df = (1 - λ) Σ w_t² / (n_t - 1) + λ / (n - 1),    λ = `damping(n)`.

    λ = 0 is Satterthwaite's formula. It is too generous for few seeds when one task is noisier than the rest: the
    lower that task's variance comes out by chance, the more degrees of freedom (8 tasks with 3 seeds: 92.7 % instead
    of 95, 97.0 instead of 99). λ = 1, the fewest that any task has, is safe for any variances (proven for two tasks
    by Mickey and Brown) and far too wide for equal ones. The λ between are this project's, set by simulation: for
    normal differences of 2, 4 and 8 tasks, one or two of them 1 to 15 times as noisy as the rest, the one-sided error
    is at most 1.02 times a level of 0.05 to 0.01 and 1.06 times one of 0.005. For equal spreads it is lower.

    Sources: F. E. Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics
    Bulletin 2, 1946; M. R. Mickey and M. B. Brown, "Bounds on the distribution functions of the Behrens-Fisher
    statistic", Annals of Mathematical Statistics 37, 1966.
    """
    share = variances / variances.sum()
    mix = damping(min(seeds))
    inverse = (1 - mix) * float((share**2 / (np.array(seeds) - 1)).sum()) + mix / (min(seeds) - 1)
    return 1 / inverse


def damping(seeds: int) -> float:
    """λ of `degrees_of_freedom`: 3/4 below 5 seeds, 1/2 below 10, 1/4 below 20, 0 from there on."""
    return 0.75 if seeds < 5 else 0.5 if seeds < 10 else 0.25 if seeds < _DAMPED_BELOW else 0.0


def interval(differences: Differences, confidence: float = 0.95, tasks: Tasks = "fixed") -> Interval:
    """The interval of the mean paired difference, the narrowest that covers (table in the module's docstring).

    t for one task, Satterthwaite's degrees of freedom for several from 20 seeds each and damped ones below, t over
    the task means for random tasks. `method` and `note` say which and why.

    Raises:
        DataError: confidence outside (0, 1), or differences that cannot be used.
    """
    check_share("confidence", confidence)
    found = evidence(differences, tasks)
    low, high = found.ends(confidence)
    return Interval(found.mean, low, high, confidence, len(found.seeds), found.seeds, found.method, found.note)


def seed_averages(differences: Differences) -> Array:
    """Each seed's mean over the tasks, as one task `(1, seeds)`: for seeds that may move all tasks together.

    Its t interval is exact for normal differences whatever their correlation and their variances, and wide for few
    seeds, since tasks add no degrees of freedom.

    Raises:
        DataError: the tasks have different numbers of seeds, or differences that cannot be used.
    """
    rows = checked(differences)
    if len({len(row) for row in rows}) > 1:
        raise DataError(f"seed averages need equal numbers of seeds, the tasks have {[len(row) for row in rows]}")
    averages: Array = np.stack(rows).mean(axis=0, keepdims=True)
    return averages


def checked(differences: Differences) -> list[Array]:
    """One `(seeds,)` array per task.

    Raises:
        DataError: no tasks, a task without seeds, not one row of numbers per task, or a number that is not finite.
    """
    try:
        rows = [np.asarray(row, dtype=float) for row in differences]
    except (TypeError, ValueError) as error:
        raise DataError(f"differences: one row of numbers per task is needed ({error})") from error
    if not rows:
        raise DataError("no differences: at least one task is needed")
    for task, row in enumerate(rows):
        if row.ndim != 1:
            raise DataError(f"differences of task {task} have shape {row.shape}: one number per seed is needed")
        if len(row) == 0:
            raise DataError(f"task {task} has no seeds: at least one is needed")
        if not np.isfinite(row).all():
            raise DataError(f"task {task} has the difference {row[~np.isfinite(row)][0]}: all must be finite")
    return rows


def check_share(name: str, value: float, top: float = 1) -> None:
    """Raises DataError unless 0 < value < top."""
    if not 0 < value < top:
        raise DataError(f"{name} {value}: must be between 0 and {top:g}")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises DataError unless the value is one of those allowed."""
    if value not in allowed:
        raise DataError(f"{name} '{value}': must be one of {', '.join(allowed)}")


def _spread(values: Array, limit: float) -> float:
    """Standard deviation (n - 1), exactly 0 where the values differ by rounding alone."""
    return 0.0 if np.ptp(values) <= limit else float(values.std(ddof=1))
