"""What claims and intervals do on data whose truth is known.

Rates are held to their level within three standard errors of the simulation, √(p (1 - p) / simulations).
"""

import math

import numpy as np
import pytest
from scipy import stats

from rankwise.experiments.claim_power import bootstrap_interval, holm, noise_floor, power
from rankwise.experiments.claim_statistics import degrees_of_freedom, evidence, interval, seed_averages
from rankwise.experiments.claim_tests import bound, equivalence, non_inferiority, sign_flip, superiority

LEVELS = (0.05, 0.025, 0.01, 0.005)


def draw(rng, tail, shape):
    """Mean 0, variance 1. `alike`: arms that are equally distributed and skewed, whose differences are not skewed."""
    if tail == "normal":
        return rng.normal(size=shape)
    if tail == "t3":
        return rng.standard_t(3, size=shape) / math.sqrt(3)
    if tail == "alike":
        return (rng.exponential(size=shape) - rng.exponential(size=shape)) / math.sqrt(2)
    assert tail == "skewed"
    return rng.exponential(size=shape) - 1


def slack(rate, simulations):
    return 3 * math.sqrt(rate * (1 - rate) / simulations)


def tails(counts, scales, tail, simulations, tasks="fixed", between=0.0, seed=0):
    """Both one-sided p-values of a true null, `(simulations, 2)`."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(simulations):
        rows = [scale * draw(rng, tail, n) for n, scale in zip(counts, scales, strict=True)]
        if between:
            rows = [row + between * draw(rng, tail, ()) for row in rows]
        one = evidence(rows, tasks)
        found.append((one.above(0.0), one.below(0.0)))
    return np.array(found)


def check_levels(p):
    """False claims on their edge are supported, and true ones refuted, at most at each level."""
    for level in LEVELS:
        rate = (p < level).mean(axis=0).max()
        assert rate <= level + slack(level, len(p)), f"{rate} of {len(p)} p-values below {level}"


def coverage(p, confidence=0.95):
    return float((p >= (1 - confidence) / 2).all(axis=1).mean())


CLAIMS = {
    "superiority": lambda d, tasks: superiority(d + 0.5, 0.5, tasks=tasks),
    "superiority, lower": lambda d, tasks: superiority(d - 0.5, 0.5, better="lower", tasks=tasks),
    "non-inferiority": lambda d, tasks: non_inferiority(d - 0.5, 0.5, tasks=tasks),
    "equivalence": lambda d, tasks: equivalence(d + 2, 2.0, tasks=tasks),
    "narrow equivalence": lambda d, tasks: equivalence(d + 0.01, 0.01, tasks=tasks),
    "at most": lambda d, tasks: bound(d + 1, 1.0, "at most", tasks=tasks),
    "at least": lambda d, tasks: bound(d - 1, -1.0, "at least", tasks=tasks),
    "ratio": lambda d, tasks: bound(0.9 * np.exp(0.2 * d), 0.9, scale="ratio", tasks=tasks),
}


@pytest.mark.parametrize(
    ("tasks", "seeds", "tail", "reading"), [(1, 3, "t3", "fixed"), (4, 5, "normal", "fixed"), (4, 3, "alike", "random")]
)
def test_no_kind_of_claim_is_supported_or_refuted_too_often(tasks, seeds, tail, reading):
    """1000 simulations on the edge of every claim: neither verdict beyond 5 %."""
    rng = np.random.default_rng(0)
    scales = np.array([4.0, 1.0, 1.0, 1.0])[:tasks, None]
    counts = {kind: [0, 0] for kind in CLAIMS}
    for _ in range(1000):
        d = scales * draw(rng, tail, (tasks, seeds))
        for kind, claim in CLAIMS.items():
            verdict = claim(d, reading).verdict
            counts[kind][0] += verdict == "supported"
            counts[kind][1] += verdict == "refuted"
    for kind, (supported, refuted) in counts.items():
        assert max(supported, refuted) <= 1000 * (0.05 + slack(0.05, 1000)), kind


@pytest.mark.parametrize(("tasks", "seeds", "scale"), [(1, 5, 1), (4, 10, 5), (4, 3, 5)])
def test_intervals_cover(tasks, seeds, scale):
    """3000 simulations of normal differences, one task noisier."""
    p = tails((seeds,) * tasks, (scale,) + (1,) * (tasks - 1), "normal", 3000)
    assert 0.93 <= coverage(p) <= (0.97 if seeds >= 10 or tasks == 1 else 1.0)
    check_levels(p)


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["normal", "t3", "alike"])
@pytest.mark.parametrize("seeds", [3, 5, 10, 30])
@pytest.mark.parametrize("scales", [(1,), (1, 1, 1, 1), (5, 1, 1, 1)], ids=["one task", "equal", "unequal"])
def test_fixed_tasks_keep_level_and_cover(scales, seeds, tail):
    """10000 simulations; below 10 seeds of several tasks the interval may be wider than 95 %, on purpose."""
    p = tails((seeds,) * len(scales), scales, tail, 10_000)
    check_levels(p)
    assert 0.93 <= coverage(p) <= (0.97 if seeds >= 10 or len(scales) == 1 else 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("counts", "scales"),
    [((3, 30), (1, 1)), ((3, 30), (5, 1)), ((3, 3, 10, 30), (5, 1, 1, 1)), ((5, 12, 12, 12), (5, 1, 1, 1)),
     ((3,) * 8, (8,) + (1,) * 7), ((2,) * 4, (8, 1, 1, 1))],
)  # fmt: skip
def test_unequal_seeds_and_very_noisy_tasks_keep_level(counts, scales):
    """10000 simulations of normal differences."""
    p = tails(counts, scales, "normal", 10_000)
    check_levels(p)
    assert coverage(p) >= 0.93


@pytest.mark.parametrize(
    ("tasks", "seeds"),
    [(4, 3), (8, 10), *(pytest.param(t, n, marks=pytest.mark.slow) for t in (2, 4, 8) for n in (2, 4, 5, 7, 10, 20))],
)
def test_degrees_of_freedom_keep_the_level_for_any_noise(tasks, seeds):
    """4000 draws of the spreads; given those, the error of a normal mean is known, which is exact to 3 %."""
    rng = np.random.default_rng(0)
    drawn = rng.chisquare(seeds - 1, (4000, tasks)) / (seeds - 1)
    for noise in (1, 3, 5, 15):
        scale = np.array([noise**2] + [1] * (tasks - 1))
        df = np.array([degrees_of_freedom(row * scale, (seeds,) * tasks) for row in drawn])
        se = np.sqrt((drawn * scale).sum(axis=1) / scale.sum())
        for level, most in zip(LEVELS, (1.02, 1.02, 1.03, 1.08), strict=True):
            error = stats.norm.sf(stats.t.isf(level, df) * se)
            assert error.mean() / level <= most + 3 * error.std() / level / math.sqrt(4000)


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["normal", "t3", "alike"])
@pytest.mark.parametrize("between", [0.0, 3.0])
@pytest.mark.parametrize(("tasks", "seeds"), [(2, 3), (4, 3), (4, 1), (8, 10)])
def test_random_tasks_keep_level_and_cover(tasks, seeds, between, tail):
    """5000 simulations; `between` is the standard deviation of the tasks' true means over that of one seed."""
    p = tails((seeds,) * tasks, (1,) * tasks, tail, 5000, "random", between)
    check_levels(p)
    assert 0.93 <= coverage(p) <= 0.97


@pytest.mark.slow
def test_skewed_differences_are_not_claimed_to_be_covered():
    """5000 simulations: an exponential's 95 % interval of 5 seeds covers 88 %."""
    assert 0.86 <= coverage(tails((5,), (1,), "skewed", 5000)) <= 0.90


def test_seed_averages_cover_where_seeds_move_all_tasks():
    """1500 simulations of 4 tasks whose differences correlate by 1/2 over the seeds."""
    rng = np.random.default_rng(0)
    hits = np.zeros(2)
    for _ in range(1500):
        d = (draw(rng, "normal", (4, 10)) + draw(rng, "normal", 10)) / math.sqrt(2)
        for which, found in enumerate((interval(d), interval(seed_averages(d)))):
            hits[which] += found.low <= 0 <= found.high
    assert hits[0] / 1500 < 0.85
    assert 0.93 <= hits[1] / 1500 <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "seeds", "reading", "lowest", "highest"),
    [(1, 3, "fixed", 0.70, 0.82), (1, 30, "fixed", 0.90, 0.96), (4, 5, "fixed", 0.86, 0.93),
     (4, 3, "random", 0.91, 0.99)],
)  # fmt: skip
def test_the_bootstrap_covers_as_documented(tasks, seeds, reading, lowest, highest):
    """600 simulations of normal differences: too little for few seeds, which is why it is never chosen."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        found = bootstrap_interval(draw(rng, "normal", (tasks, seeds)), tasks=reading, resamples=1000)
        hits += found.low <= 0 <= found.high
    assert lowest <= hits / 600 <= highest


@pytest.mark.parametrize(
    ("tasks", "seeds", "tail", "reading", "simulations"),
    [
        (1, 5, "t3", "fixed", 2000),
        (1, 3, "normal", "fixed", 500),
        (4, 3, "t3", "random", 1000),
        pytest.param(1, 10, "alike", "fixed", 5000, marks=pytest.mark.slow),
        pytest.param(4, 3, "t3", "fixed", 5000, marks=pytest.mark.slow),
        pytest.param(8, 3, "t3", "random", 5000, marks=pytest.mark.slow),
        pytest.param(1, 30, "t3", "fixed", 300, marks=pytest.mark.slow),
    ],
)
def test_sign_flips_keep_their_level(tasks, seeds, tail, reading, simulations):
    """Unequal spreads; random tasks with true means that differ."""
    rng = np.random.default_rng(0)
    scales = np.arange(1.0, tasks + 1)[:, None]
    hits = np.zeros(2)
    for _ in range(simulations):
        d = scales * draw(rng, tail, (tasks, seeds))
        if reading == "random":
            d = d + draw(rng, tail, (tasks, 1))
        two, one = sign_flip(d, tasks=reading), sign_flip(d, alternative="greater", tasks=reading)
        hits += two.p <= 0.05, one.p <= 0.05
        assert two.p >= two.smallest
        assert one.p >= one.smallest
    assert hits.max() / simulations <= 0.05 + slack(0.05, simulations)
    if two.smallest > 0.05:
        assert hits[0] == 0


def test_sign_flips_of_tasks_that_differ_are_conservative():
    """1000 simulations: within-task flips assume no difference in any task; means that cancel out make p larger."""
    rng = np.random.default_rng(0)
    effects = np.array([2.0, -2.0, 1.0, -1.0])[:, None]
    hits = sum(sign_flip(effects + draw(rng, "normal", (4, 3))).p <= 0.05 for _ in range(1000))
    assert hits / 1000 <= 0.02


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_holm_keeps_the_family_wise_error(correlation):
    """5000 families of four true nulls and two false ones, t tests of 5 seeds at level 0.05."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(5000, 6, 5)) * math.sqrt(1 - correlation)
    noise += rng.normal(size=(5000, 1, 5)) * math.sqrt(correlation)
    noise[:, 4:] += 3.0
    p = stats.ttest_1samp(noise, 0, axis=2, alternative="greater").pvalue
    adjusted = np.array([holm(list(row)) for row in p])
    wrong = (adjusted[:, :4] < 0.05).any(axis=1).mean()
    assert wrong <= 0.05 + slack(0.05, 5000)
    assert (p[:, :4] < 0.05).any(axis=1).mean() > 0.09  # without it
    assert (adjusted[:, 4:] < 0.05).mean() > 0.9


@pytest.mark.parametrize(
    ("tasks", "seeds", "effect", "simulations", "loss"),
    [
        (1, 5, 1.2, 3000, 0.0),
        pytest.param(1, 10, 0.8, 20_000, 0.0, marks=pytest.mark.slow),
        pytest.param(1, 30, 0.4, 20_000, 0.0, marks=pytest.mark.slow),
        pytest.param(4, 3, 1.2, 20_000, 0.025, marks=pytest.mark.slow),
        pytest.param(4, 5, 0.7, 20_000, 0.015, marks=pytest.mark.slow),
        pytest.param(4, 10, 0.4, 20_000, 0.01, marks=pytest.mark.slow),
    ],
)
def test_claims_are_supported_as_often_as_the_power_says(tasks, seeds, effect, simulations, loss):
    """One task: within Monte Carlo error. Several: the estimated degrees of freedom cost up to `loss`."""
    rng = np.random.default_rng(0)
    p = np.array([evidence(effect + draw(rng, "normal", (tasks, seeds))).above(0.0) for _ in range(simulations)])
    expected, found = power(effect, 1.0, seeds, tasks=tasks), float((p < 0.05).mean())
    error = slack(expected, simulations)
    assert expected - loss - error <= found <= expected + error


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.0, 1.0)])
def test_noise_floor_covers(scales):
    """1500 simulations of 5 pairs: the interval covers the standard deviation of one run; `run` is nearly unbiased."""
    rng = np.random.default_rng(0)
    scale = math.sqrt(2) * np.array(scales)[:, None]
    floors = [noise_floor(scale * draw(rng, "normal", (len(scales), 5)), 3) for _ in range(1500)]
    assert np.mean([one.low <= 1 <= one.high for one in floors]) >= 0.93
    assert np.mean([one.run**2 for one in floors]) == pytest.approx(1, abs=0.06)
