import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rankwise.errors import DataError
from rankwise.experiments.claim_power import (
    bootstrap_interval,
    holm,
    noise_floor,
    power,
    seeds_needed,
    smallest_effect,
    what_would_settle,
)
from rankwise.experiments.claim_statistics import degrees_of_freedom, evidence, interval, seed_averages
from rankwise.experiments.claim_tests import bound, equivalence, non_inferiority, sign_flip, superiority


def sample(tasks, seeds, seed=0, mean=0.3):
    return np.random.default_rng(seed).normal(mean, 1, (tasks, seeds))


def standard(seeds, mean, spread=1.0):
    """One task whose differences have exactly this mean and standard deviation."""
    z = np.random.default_rng(0).normal(size=seeds)
    return (mean + spread * (z - z.mean()) / z.std(ddof=1))[None]


@st.composite
def unequal(draw):
    """Two to four tasks with two to six seeds each, with some spread."""
    seed = draw(st.integers(0, 10_000))
    counts = draw(st.lists(st.integers(2, 6), min_size=2, max_size=4))
    rng = np.random.default_rng(seed)
    return [rng.normal(draw(st.floats(-2, 2)), draw(st.floats(0.1, 3)), n) for n in counts]


READINGS = ("fixed", "random")


def test_interval_of_one_task_is_the_t_interval():
    d = sample(1, 7)
    found = interval(d, 0.9)
    assert (found.low, found.high) == pytest.approx(stats.ttest_1samp(d[0], 0).confidence_interval(0.9))
    assert (found.tasks, found.seeds, found.method, found.note) == (1, (7,), "t", "")


def test_interval_of_two_tasks_has_the_degrees_of_freedom_of_welch():
    """The mean of a and b over tasks is half the difference between a and -b."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 1, 20), rng.normal(0, 3, 28)
    welch = stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    found = interval([a, b])
    assert (found.low, found.high) == pytest.approx((welch.low / 2, welch.high / 2))
    assert (found.seeds, found.method, found.note) == ((20, 28), "t, Satterthwaite", "")


def test_few_seeds_of_several_tasks_widen_the_interval_and_say_so():
    found = interval(sample(3, 4))
    assert found.method == "t, damped Satterthwaite"
    assert found.note == "4 seeds: fewer degrees of freedom, because Satterthwaite's would undercover"
    equal, lone = np.ones(4), np.array([1.0, 0, 0, 0])
    assert degrees_of_freedom(equal, (20,) * 4) == pytest.approx(76)
    assert degrees_of_freedom(equal, (10,) * 4) == pytest.approx(1 / (0.75 / 36 + 0.25 / 9))
    assert degrees_of_freedom(equal, (5,) * 4) == pytest.approx(1 / (0.5 / 16 + 0.5 / 4))
    assert degrees_of_freedom(equal, (3,) * 4) == pytest.approx(1 / (0.25 / 8 + 0.75 / 2))
    assert all(degrees_of_freedom(lone, (n,) * 4) == pytest.approx(n - 1) for n in (2, 3, 5, 10, 20))


def test_random_tasks_have_the_t_interval_of_their_means():
    d = sample(5, 3)
    found = interval(d, tasks="random")
    expected = stats.ttest_1samp(d.mean(axis=1), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.method == "t over task means"
    assert interval(d[:, :1], tasks="random").low > -math.inf  # one seed per task will do


def test_seed_averages_are_one_task():
    d = sample(4, 6)
    assert interval(seed_averages(d)) == interval([d.mean(axis=0)])
    with pytest.raises(DataError, match=r"equal numbers of seeds, the tasks have \[2, 3\]"):
        seed_averages([[1, 2], [1, 2, 3]])


def test_every_task_counts_the_same():
    assert interval([[1.0, 1.0, 1.0, 3.0], [5.0]]).estimate == pytest.approx((1.5 + 5) / 2)


@pytest.mark.parametrize(
    ("differences", "tasks", "note"),
    [([[1.0]], "fixed", "one seed of task 0"), ([[1, 2], [3]], "fixed", "one seed of task 1"),
     ([[1, 2, 4]], "random", "one task: tasks in general")],
)  # fmt: skip
def test_too_few_seeds_or_tasks_leave_the_interval_open(differences, tasks, note):
    found = interval(differences, tasks=tasks)
    assert (found.low, found.high, found.method) == (-math.inf, math.inf, "none")
    assert note in found.note
    claim = superiority(differences, tasks=tasks)
    assert (claim.verdict, claim.p) == ("inconclusive", 1.0)


@given(unequal(), st.floats(-5, 5), st.floats(0.01, 100), st.sampled_from(READINGS))
def test_intervals_move_scale_and_turn_with_the_differences(d, shift, scale, tasks):
    base = interval(d, tasks=tasks)
    moved = interval([scale * row + shift for row in d], tasks=tasks)
    assert (moved.low, moved.estimate, moved.high) == pytest.approx(
        tuple(scale * value + shift for value in (base.low, base.estimate, base.high)), rel=1e-6, abs=1e-6 * scale
    )
    turned = interval([-row for row in d], tasks=tasks)
    assert (-turned.high, -turned.low) == pytest.approx((base.low, base.high))


@given(unequal(), st.randoms(use_true_random=False), st.sampled_from(READINGS))
def test_the_order_of_seeds_and_tasks_does_not_matter(d, random, tasks):
    other = [np.array(random.sample(list(row), len(row))) for row in random.sample(d, len(d))]
    for function in (interval, lambda x, tasks: bootstrap_interval(x, tasks=tasks, resamples=50)):
        one, two = function(d, tasks=tasks), function(other, tasks=tasks)
        assert (one.low, one.high) == pytest.approx((two.low, two.high))
    assert sign_flip(d, tasks=tasks).p == sign_flip(other, tasks=tasks).p


@given(unequal(), st.floats(-1, 1), st.floats(0.1, 2), st.floats(0.001, 0.3), st.sampled_from(READINGS))
def test_claims_agree_with_their_p_values_and_intervals(d, edge, margin, alpha, tasks):
    setting = {"alpha": alpha, "tasks": tasks}
    up, down = bound(d, edge, "at least", **setting), bound(d, edge, "at most", **setting)
    assert up.p + down.p == pytest.approx(1)
    assert (up.verdict == "supported") == (up.p < alpha) == (down.verdict == "refuted")
    assert (up.low, up.high) == pytest.approx(_ends(interval(d, 1 - 2 * alpha, tasks)))
    same = equivalence(d, margin, **setting)
    sides = (bound(d, -margin, "at least", **setting), bound(d, margin, "at most", **setting))
    assert same.p == max(side.p for side in sides)
    assert (same.verdict == "supported") == (same.p < alpha) == (-margin < same.low and same.high < margin)
    wide = interval(d, 1 - alpha, tasks)
    assert (same.verdict == "refuted") == (wide.low > margin or wide.high < -margin)
    turned = [-row for row in d]
    for kind, size in ((superiority, abs(edge)), (non_inferiority, margin)):
        one, two = kind(d, size, **setting), kind(turned, size, better="lower", **setting)
        assert (one.verdict, one.p) == (two.verdict, pytest.approx(two.p))


def _ends(found):
    return found.low, found.high


def test_superiority_and_non_inferiority_are_one_sided_t_tests():
    d = sample(1, 8)
    for claim, edge in ((superiority(d, 0.1), 0.1), (non_inferiority(d, 0.2), -0.2)):
        assert claim.p == pytest.approx(stats.ttest_1samp(d[0], edge, alternative="greater").pvalue)
    lower = non_inferiority(d, 0.2, better="lower")
    assert lower.p == pytest.approx(stats.ttest_1samp(d[0], 0.2, alternative="less").pvalue)
    assert (lower.kind, lower.above, lower.below, lower.alpha) == ("non-inferiority", -math.inf, 0.2, 0.05)


def test_equivalence_is_two_one_sided_t_tests():
    d = sample(1, 20, mean=0.1)
    sides = ((-0.5, "greater"), (0.5, "less"))
    expected = max(stats.ttest_1samp(d[0], edge, alternative=side).pvalue for edge, side in sides)
    assert equivalence(d, 0.5).p == pytest.approx(expected)


@pytest.mark.parametrize(
    ("claim", "mean", "verdict"),
    [
        (lambda d: superiority(d, 1.0), 2.0, "supported"), (lambda d: superiority(d, 1.0), 1.1, "inconclusive"),
        (lambda d: superiority(d, 1.0), 0.5, "refuted"), (lambda d: non_inferiority(d, 1.0), -0.5, "supported"),
        (lambda d: non_inferiority(d, 1.0), -2.0, "refuted"), (lambda d: equivalence(d, 1.0), 0.5, "supported"),
        (lambda d: equivalence(d, 1.0), 2.0, "refuted"), (lambda d: equivalence(d, 1.0), -2.0, "refuted"),
        (lambda d: equivalence(d, 1.0), 0.9, "inconclusive"), (lambda d: bound(d, 1.0), 0.5, "supported"),
        (lambda d: bound(d, 1.0), 1.5, "refuted"), (lambda d: bound(d, 1.0, "at least"), 1.5, "supported"),
    ],
)  # fmt: skip
def test_verdicts(claim, mean, verdict):
    """Ten seeds of standard deviation 0.5: the 90 % interval reaches 0.29 to either side."""
    assert claim(standard(10, mean, 0.5)).verdict == verdict


def test_ratios_are_judged_by_their_geometric_mean():
    ratios = np.exp(sample(3, 12, mean=-0.4) * 0.1)
    found = bound(ratios, 1.0, scale="ratio")
    logs = bound(np.log(ratios), 0.0)
    assert found.estimate == pytest.approx(stats.gmean(ratios, axis=None))
    assert (found.low, found.high) == pytest.approx((math.exp(logs.low), math.exp(logs.high)))
    assert (found.p, found.verdict) == (logs.p, logs.verdict)
    assert bound([[1e-300, 1e300, 1.0]], 2.0, scale="ratio").high == math.inf  # and no overflow


def test_counted_values_are_compared_and_not_tested():
    found = bound([[0.5, 0.5], [0.5, 0.5]], 0.5, scale="ratio", counted=True)
    assert (found.verdict, found.estimate, found.low, found.high) == ("supported", 0.5, 0.5, 0.5)
    assert math.isnan(found.p)
    assert bound([[1.0, 2.0]], 0.5, counted=True).verdict == "refuted"
    mixed = bound([[1.0, 2.0]], 1.5, "at least", counted=True)
    assert (mixed.verdict, mixed.note) == ("inconclusive", "1 of 2 values keep the bound")
    assert what_would_settle(mixed) is None


def test_no_spread_gives_the_smallest_p_of_a_sign_flip_and_not_zero():
    few, many = superiority([[0.1 + 0.2] * 2 + [0.3] * 2]), superiority([[0.3] * 5])
    assert (few.p, few.verdict, few.low) == (0.5**4, "inconclusive", -math.inf)
    assert (many.p, many.verdict, many.low, many.high) == (0.5**5, "supported", 0.3, 0.3)
    assert many.method == "sign flip"
    assert "no spread at all" in many.note
    assert superiority([[0.0] * 5]).p == 1.0
    assert superiority([[-0.3] * 5]).verdict == "refuted"
    assert superiority([[0.3, 0.1, 0.2], [0.2] * 3, [0.2] * 3], tasks="random").p == 0.5**3
    assert what_would_settle(few) == 5
    assert "all differences of task 1 are equal" in interval([[1.0, 2.0, 3.0], [2.0] * 3]).note


def by_itertools(d, tasks):
    """Every flip of the signs, one by one: the statistics, the observed one first."""
    if tasks == "random":
        units = [row.mean() / len(d) for row in d]
    else:
        units = [value / len(row) / len(d) for row in d for value in row]
    return np.array([np.dot(signs, units) for signs in itertools.product((1, -1), repeat=len(units))])


@pytest.mark.parametrize("tasks", READINGS)
@pytest.mark.parametrize("counts", [(3,), (5,), (2, 3), (3, 4, 2)])
def test_sign_flips_match_an_enumeration(tasks, counts):
    rng = np.random.default_rng(len(counts))
    for d in ([rng.normal(0.5, 1, n) for n in counts], [rng.integers(-1, 2, n).astype(float) for n in counts]):
        statistic = by_itertools(d, tasks)
        units = len(counts) if tasks == "random" else sum(counts)
        for alternative, sign in (("greater", 1), ("less", -1), ("two-sided", 0)):
            values = sign * statistic if sign else np.abs(statistic)
            found = sign_flip(d, alternative=alternative, tasks=tasks)
            assert found.p == np.mean(values >= values[0] - 1e-9)
            assert (found.units, found.exact) == (units, True)
            assert found.smallest == 0.5**units * (1 if sign else 2) <= max(found.p, 0.5**units * 2)


def test_many_units_are_flipped_at_random():
    d = sample(2, 20, mean=0.2)
    one, two = sign_flip(d), sign_flip(-d)
    assert (one.exact, one.units, one.smallest) == (False, 40, 1e-5)
    assert one == two
    normal = 2 * stats.norm.sf(abs(d.sum()) / np.sqrt((d**2).sum()))
    assert one.p == pytest.approx(normal, abs=0.01)
    assert sign_flip(d + 100, alternative="greater").p == 1e-5
    assert sign_flip(d, alternative="greater").p + sign_flip(d, alternative="less").p == pytest.approx(1, abs=0.01)


@given(unequal(), st.sampled_from(READINGS))
def test_sign_flips_turn_with_the_differences(d, tasks):
    turned = [-row for row in d]
    assert sign_flip(d, tasks=tasks).p == sign_flip(turned, tasks=tasks).p
    assert sign_flip(d, alternative="greater", tasks=tasks).p == sign_flip(turned, alternative="less", tasks=tasks).p
    scaled = [7.3 * row for row in d]
    assert sign_flip(d, tasks=tasks) == sign_flip(scaled, tasks=tasks)


def closed_test(p):
    """Adjusted p-values of the closed test with Bonferroni's test of every intersection."""
    indices = range(len(p))
    subsets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(indices, size)]
    return [max(min(1, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in indices]


@given(st.lists(st.one_of(st.floats(0, 1), st.none(), st.just(math.nan)), max_size=6))
def test_holm_is_the_closed_bonferroni_test(p):
    found = holm(p)
    tested = [i for i, value in enumerate(p) if value is not None and not math.isnan(value)]
    assert [found[i] for i in tested] == pytest.approx(closed_test([p[i] for i in tested]))
    assert all(math.isnan(found[i]) for i in range(len(p)) if i not in tested)


def test_power_is_that_of_the_noncentral_t():
    for seeds in (2, 5, 30):
        df, shift = seeds - 1, 0.7 * math.sqrt(seeds) / 1.3
        edge = stats.t.isf(0.025, df)
        two = stats.nct.sf(edge, df, shift) + stats.nct.cdf(-edge, df, shift)
        assert power(0.7, 1.3, seeds, sides=2) == pytest.approx(two)
    assert power(0.0, 1.0, 5, alpha=0.01) == pytest.approx(0.01)
    expected = stats.nct.sf(stats.t.isf(0.05, 76), 76, 0.3 * math.sqrt(80))
    assert power(0.3, 1.0, 20, tasks=4) == pytest.approx(expected)
    assert power(-9.0, 1.0, 30) == 0.0
    assert power(-0.8, 1.0, 9, sides=2) == pytest.approx(power(0.8, 1.0, 9, sides=2))
    assert power(50.0, 1.0, 3, sides=2) == pytest.approx(1.0)


@given(st.integers(2, 40), st.floats(0.5, 0.95), st.sampled_from((1, 2)), st.integers(1, 4))
def test_smallest_effect_and_seeds_needed_invert_the_power(seeds, chance, sides, tasks):
    design = {"sides": sides, "tasks": tasks}
    effect = smallest_effect(2.0, seeds, power=chance, **design)
    assert power(effect, 2.0, seeds, **design) == pytest.approx(chance, abs=1e-6)
    needed = seeds_needed(effect * (1 + 1e-6), 2.0, power=chance, **design)
    assert needed == seeds


def test_seeds_beyond_the_limit_are_not_found():
    assert seeds_needed(0.01, 1.0) is None
    assert power(10.0, 1.0, 2) >= 0.8
    assert seeds_needed(10.0, 1.0) == 2


@pytest.mark.parametrize("seeds", [2, 4, 8])
def test_what_would_settle_is_the_first_number_that_does(seeds):
    claim = superiority(standard(seeds, 0.4), 0.1)
    found = what_would_settle(claim)
    assert superiority(standard(found, 0.4), 0.1).verdict == "supported"
    assert superiority(standard(found - 1, 0.4), 0.1).verdict == "inconclusive"


def test_what_would_settle_knows_when_nothing_does():
    assert what_would_settle(superiority(standard(5, 0.1), 0.1)) is None  # the estimate is the margin
    assert what_would_settle(superiority([[0.3]])) is None
    with pytest.raises(DataError, match="the claim is supported"):
        what_would_settle(superiority(standard(20, 1.0)))
    means = np.array([-1.0, 0.0, 4.0])[:, None]
    assert what_would_settle(superiority(means + sample(3, 4), tasks="random")) is None
    ratio = bound(np.exp(standard(4, -0.1, 0.2)), 1.0, scale="ratio")
    assert what_would_settle(ratio) == what_would_settle(bound(standard(4, -0.1, 0.2), 0.0))


def test_noise_floor():
    rng = np.random.default_rng(0)
    d = rng.normal(0, math.sqrt(2) * np.array([[1.0], [2.0]]), (2, 5000))
    floor = noise_floor(d, 5)
    assert floor.by_task == pytest.approx((1.0, 2.0), rel=0.03)
    assert floor.run == pytest.approx(math.sqrt(2.5), rel=0.03)
    assert floor.low < math.sqrt(2.5) < floor.high
    assert floor.difference == pytest.approx(math.sqrt((2 * 1 / 5 + 2 * 4 / 5) / 4), rel=0.03)
    one = noise_floor([[3.0, -1.0, 2.0]], 1)
    assert one.run == pytest.approx(math.sqrt(14 / 6))
    assert one.high == pytest.approx(math.sqrt(7 / stats.chi2.ppf(0.025, 3)))
    assert noise_floor([[0.0, 0.0]], 2).high == 0.0


def test_differences_are_checked():
    for bad, message in (
        ([], "at least one task"), ([[]], "task 0 has no seeds"), ([[1.0], []], "task 1 has no seeds"),
        ([[1.0, math.nan]], "task 0 has the difference nan"), ([[math.inf]], "the difference inf"),
        ([1.0, 2.0], "one number per seed"), ([["a"]], "one row of numbers per task"),
    ):  # fmt: skip
        for function in (interval, superiority, sign_flip, bootstrap_interval, seed_averages, evidence):
            with pytest.raises(DataError, match=message):
                function(bad)


def test_arguments_are_checked():
    d = sample(1, 5)
    for call, message in (
        (lambda: interval(d, 1.0), r"confidence 1.0: must be between 0 and 1"),
        (lambda: interval(d, tasks="some"), "tasks 'some': must be one of fixed, random"),
        (lambda: bootstrap_interval(d, 0.0), "confidence 0.0"),
        (lambda: superiority(d, alpha=0.0), "alpha 0.0: must be between 0 and 0.5"),
        (lambda: superiority(d, alpha=1.0), "alpha 1.0: must be between 0 and 0.5"),
        (lambda: superiority(d, -0.1), "margin -0.1: must be finite and not negative"),
        (lambda: superiority(d, better="more"), "better 'more': must be one of higher, lower"),
        (lambda: non_inferiority(d, 0.0), "margin 0.0: must be finite and positive"),
        (lambda: equivalence(d, math.inf), "margin inf: must be finite and positive"),
        (lambda: bound(d, math.nan), "limit nan: must be finite"),
        (lambda: bound(d, 0.0, scale="ratio"), "limit 0.0: must be finite and positive"),
        (lambda: bound([[1.0, -2.0]], 1.0, scale="ratio"), "ratio -2.0: must be positive"),
        (lambda: bound(d, 1.0, "below"), "side 'below': must be one of at most, at least"),
        (lambda: bound(d, 1.0, counted=True, alpha=2.0), "alpha 2.0"),
        (lambda: sign_flip(d, alternative="up"), "alternative 'up'"),
        (lambda: holm([0.1, 1.2]), "p-value 1.2: must be between 0 and 1"),
        (lambda: power(1.0, 1.0, 1), "seeds 1: at least 2"),
        (lambda: power(math.nan, 1.0, 5), "effect nan"),
        (lambda: power(1.0, 0.0, 5), "spread 0.0: must be finite and positive"),
        (lambda: power(1.0, 1.0, 5, tasks=0), "tasks 0: at least 1"),
        (lambda: power(1.0, 1.0, 5, sides=3), "sides 3: must be 1 or 2"),
        (lambda: power(1.0, 1.0, 5, alpha=1.0), "alpha 1.0: must be between 0 and 1"),
        (lambda: smallest_effect(1.0, 5, power=0.01), r"power 0.01: must be between alpha \(0.05\) and 1"),
        (lambda: seeds_needed(-1.0, 1.0), "effect -1.0: must be finite and positive"),
        (lambda: noise_floor(d, 0), "seeds 0: at least 1"),
    ):
        with pytest.raises(DataError, match=message):
            call()
