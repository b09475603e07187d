import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rankwise.errors import DataError, UnknownNameError
from rankwise.experiments.records import RunRecord
from rankwise.experiments.statistics import compare_arms, summarise, time_ratio
from rankwise.tasks.base import MetricValue
from rankwise.tasks.metrics import METRICS, evaluate


def runs(method, seeds=(0, 1, 2), **changes):
    values = {"task": "docstrings", "model": "minilm", "budget": "r=4", **changes}
    return [RunRecord(run_id=f"{method}-{seed}", method=method, seed=seed, **values) for seed in seeds]


def noisy_classes(rng, right, classes, share):
    return np.where(rng.random(len(right)) < share, right, rng.integers(0, classes, len(right)))


def setting(metric, seeds=3, examples=200, seed=0):
    """Two arms, the first one better, and predictions fit for the metric."""
    rng = np.random.default_rng(seed)
    if METRICS[metric].fits == "regression":
        right = rng.normal(size=examples)
        make = {
            "arm": lambda: right + rng.normal(0, 0.7, examples),
            "ref": lambda: right + rng.normal(0, 1.2, examples),
        }
    else:
        classes = 2 if METRICS[metric].fits == "binary" else 3
        right = rng.integers(0, classes, examples)
        make = {
            "arm": lambda: noisy_classes(rng, right, classes, 0.8),
            "ref": lambda: noisy_classes(rng, right, classes, 0.5),
        }
    predictions = {f"{arm}-{s}": (make[arm](), right) for arm in make for s in range(seeds)}
    return runs("arm", range(seeds)), runs("ref", range(seeds)), predictions


def test_summary_of_seeds_is_mean_and_standard_error():
    summary = summarise([MetricValue(value, 0.5, 1000) for value in (0.7, 0.8, 0.6, 0.9)])
    assert summary.value == pytest.approx(0.75)
    assert summary.se == pytest.approx(stats.sem([0.7, 0.8, 0.6, 0.9]))
    assert summary.n == 4


def test_summary_of_one_seed_keeps_its_own_standard_error():
    assert summarise([MetricValue(0.7, 0.02, 1000)]) == MetricValue(0.7, 0.02, 1)


def test_summary_of_nothing_is_an_error_and_nan_stays_nan():
    with pytest.raises(DataError, match="no runs to summarise"):
        summarise([])
    assert math.isnan(summarise([MetricValue(math.nan, 0.1, 5), MetricValue(0.5, 0.1, 5)]).value)


@pytest.mark.parametrize("metric", list(METRICS))
def test_difference_is_that_of_the_metric_values(metric):
    arm, ref, predictions = setting(metric)
    comparison = compare_arms(arm, ref, predictions, metric)
    values = {run_id: evaluate([metric], *pair)[metric].value for run_id, pair in predictions.items()}
    expected = np.mean([values[f"arm-{s}"] - values[f"ref-{s}"] for s in range(3)])
    assert comparison.difference == pytest.approx(expected, abs=1e-12)
    assert comparison.low < comparison.difference < comparison.high
    assert (comparison.arm, comparison.reference, comparison.metric) == ("arm", "ref", metric)
    assert (comparison.n, comparison.examples, comparison.confidence, comparison.note) == (3, 200, 0.95, "")


@pytest.mark.parametrize("metric", list(METRICS))
def test_identical_arms_differ_by_exactly_zero(metric):
    arm, _, predictions = setting(metric)
    same = {**predictions, **{f"twin-{s}": predictions[f"arm-{s}"] for s in range(3)}}
    comparison = compare_arms(runs("twin"), arm, same, metric)
    assert (comparison.difference, comparison.low, comparison.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("metric", list(METRICS))
def test_swapping_the_arms_flips_the_sign(metric):
    arm, ref, predictions = setting(metric)
    one, other = compare_arms(arm, ref, predictions, metric), compare_arms(ref, arm, predictions, metric)
    assert one.difference == pytest.approx(-other.difference, abs=1e-15)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)


def test_interval_follows_the_formula():
    arm, ref, predictions = setting("accuracy", seeds=4, examples=150)
    correct = {run_id: predicted == right for run_id, (predicted, right) in predictions.items()}
    each = np.array([correct[f"arm-{s}"].astype(float) - correct[f"ref-{s}"] for s in range(4)])
    seeds, examples = each.mean(axis=1).var(ddof=1) / 4, each.mean(axis=0).var(ddof=1) / 150
    for confidence in (0.8, 0.95):
        tail = (1 + confidence) / 2
        half = math.sqrt(stats.t.ppf(tail, 3) ** 2 * seeds + stats.t.ppf(tail, 149) ** 2 * examples)
        comparison = compare_arms(arm, ref, predictions, "accuracy", confidence=confidence)
        assert comparison.high - comparison.difference == pytest.approx(half)
        assert comparison.difference - comparison.low == pytest.approx(half)


def test_one_seed_covers_the_examples_only_and_says_so():
    arm, ref, predictions = setting("accuracy", seeds=1)
    comparison = compare_arms(arm, ref, predictions, "accuracy")
    each = np.subtract(*((predictions[f"{name}-0"][0] == predictions[f"{name}-0"][1]) * 1.0 for name in ("arm", "ref")))
    expected = stats.ttest_1samp(each, 0).confidence_interval(0.95)
    assert (comparison.low, comparison.high) == pytest.approx((expected.low, expected.high))
    assert comparison.note.startswith("one seed: the interval covers the noise of the evaluation examples only")
    assert comparison.n == 1


@pytest.mark.parametrize("metric", ["mse", "mae"])
def test_bootstrap_agrees_with_the_analytic_variance_of_a_mean(metric):
    arm, ref, predictions = setting(metric, seeds=1, examples=400)
    comparison = compare_arms(arm, ref, predictions, metric)
    power = 2 if metric == "mse" else 1
    loss = {run_id: np.abs(predicted - right) ** power for run_id, (predicted, right) in predictions.items()}
    expected = stats.ttest_1samp(loss["arm-0"] - loss["ref-0"], 0).confidence_interval(0.95)
    assert comparison.high - comparison.low == pytest.approx(expected.high - expected.low, rel=0.08)


def test_grouping_equal_examples_does_not_change_the_bootstrap():
    """F1 of many repeated examples: the interval shrinks like the root of the number of examples."""
    arm, ref, predictions = setting("f1", seeds=1, examples=100)
    wide = compare_arms(arm, ref, predictions, "f1")
    repeated = {run_id: (np.tile(p, 16), np.tile(r, 16)) for run_id, (p, r) in predictions.items()}
    narrow = compare_arms(arm, ref, repeated, "f1")
    assert narrow.difference == pytest.approx(wide.difference)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(4, rel=0.12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(2, 30), st.integers(0, 1000), st.sampled_from(["accuracy", "f1", "pearson"]))
def test_interval_always_holds_the_difference(seeds, examples, seed, metric):
    arm, ref, predictions = setting(metric, seeds, examples, seed)
    comparison = compare_arms(arm, ref, predictions, metric)
    assert comparison.low <= comparison.difference <= comparison.high
    assert math.isfinite(comparison.low)


def coverage(seeds, seed_noise, example_noise, examples=300, repetitions=400):
    """How often the interval holds the truth under crossed random effects on a probit scale, where the mean over all
    seeds and examples is known in closed form."""
    rng, hits = np.random.default_rng(7), 0
    level = {"arm": 0.9, "ref": 0.7}
    spread = math.sqrt(1 + seed_noise**2 + 0.8**2 + example_noise**2)
    truth = float(stats.norm.cdf(level["arm"] / spread) - stats.norm.cdf(level["ref"] / spread))
    for _ in range(repetitions):
        difficulty = rng.normal(0, 0.8, examples)  # shared by the arms
        predictions = {}
        for name in level:
            mean = level[name] + difficulty + rng.normal(0, example_noise, examples)
            for seed in range(seeds):
                score = mean + rng.normal(0, seed_noise) + rng.normal(size=examples)
                predictions[f"{name}-{seed}"] = ((score < 0).astype(float), np.zeros(examples))
        found = compare_arms(runs("arm", range(seeds)), runs("ref", range(seeds)), predictions, "accuracy")
        hits += found.low <= truth <= found.high
    return hits / repetitions


@pytest.mark.parametrize(
    ("seeds", "seed_noise", "example_noise"),
    [(2, 0.1, 0.5), (2, 0.3, 0.5), (3, 0.2, 0.5), (3, 0.0, 1.0), (5, 0.3, 1.0), (10, 0.3, 0.5)],
)
def test_interval_covers_the_true_difference(seeds, seed_noise, example_noise):
    """400 repetitions: a true coverage of 95 % is seen as less than 92.5 % once in a hundred times."""
    assert 0.925 <= coverage(seeds, seed_noise, example_noise) <= 1.0


def test_runs_that_do_not_pair_are_named():
    _, _, predictions = setting("accuracy")
    with pytest.raises(DataError, match=r"'arm' ran with seeds \[0, 1\] and 'ref' with \[0, 1, 2\].*same seeds"):
        compare_arms(runs("arm", (0, 1)), runs("ref"), predictions, "accuracy")
    with pytest.raises(DataError, match=r"'arm' has several runs of one seed: \[1, 1\]"):
        compare_arms(runs("arm", (1, 1)), runs("ref"), predictions, "accuracy")
    with pytest.raises(DataError, match="the reference has no completed run"):
        compare_arms(runs("arm"), [], predictions, "accuracy")
    with pytest.raises(DataError, match="different tasks cannot be compared: docstrings, glue/rte"):
        compare_arms(runs("arm", task="glue/rte"), runs("ref"), predictions, "accuracy")
    with pytest.raises(DataError, match="different models"):
        compare_arms(runs("arm", model="other"), runs("ref"), predictions, "accuracy")


def test_predictions_that_do_not_match_are_named():
    arm, ref, predictions = setting("accuracy")
    missing = {run_id: pair for run_id, pair in predictions.items() if run_id != "ref-1"}
    with pytest.raises(DataError, match=r"run ref-1 \(ref, seed 1\) has no stored predictions"):
        compare_arms(arm, ref, missing, "accuracy")
    right = predictions["arm-0"][1]
    for own in (right[:-1], 2 - right):
        other = {**predictions, "ref-2": (np.zeros(len(own)), own)}
        with pytest.raises(DataError, match=r"run ref-2 \(ref, seed 2\) was evaluated on other examples"):
            compare_arms(arm, ref, other, "accuracy")
    odd = {**predictions, "arm-1": (np.full(len(right), math.nan), right)}
    with pytest.raises(DataError, match=r"run arm-1 .* not numbers"):
        compare_arms(arm, ref, odd, "accuracy")
    one = {run_id: (p[:1], r[:1]) for run_id, (p, r) in predictions.items()}
    with pytest.raises(DataError, match="at least 2 evaluation examples, there are 1"):
        compare_arms(arm, ref, one, "accuracy")


def test_metric_and_confidence_are_checked():
    arm, ref, predictions = setting("accuracy")
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        compare_arms(arm, ref, predictions, "acuracy")
    with pytest.raises(DataError, match="is for two classes; class index 2"):
        compare_arms(arm, ref, predictions, "f1")
    with pytest.raises(DataError, match=r"confidence 95: must be between 0 and 1"):
        compare_arms(arm, ref, predictions, "accuracy", confidence=95)


def timed(method, seconds):
    return [
        RunRecord(f"{method}-{seed}", method, "docstrings", "minilm", seed, None, train_seconds=value)
        for seed, value in seconds.items()
    ]


def test_time_ratio_pairs_the_seeds():
    ratio = time_ratio(timed("arm", {2: 30.0, 0: 11.0, 1: 24.0}), timed("ref", {0: 10.0, 1: 20.0, 2: 10.0}))
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.2, 1.1, 3.0))
    with pytest.raises(DataError, match="same seeds"):
        time_ratio(timed("arm", {0: 1.0}), timed("ref", {1: 1.0}))
    assert math.isnan(time_ratio(timed("arm", {0: 1.0}), timed("ref", {0: 0.0})).median)
