import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.errors import DataError, TrainingError, UnknownNameError
from rankwise.tasks.metrics import METRICS, allowed_metrics, canonical_metric, check_metric, decode, evaluate

CLASSES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)
NUMBERS = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=40)


def values(names, pairs):
    predictions, references = (np.array(column) for column in zip(*pairs, strict=True))
    return predictions, references, {k: v.value for k, v in evaluate(names, predictions, references).items()}


@given(CLASSES)
@settings(max_examples=40, deadline=None)
def test_classification_values_are_those_of_sklearn(pairs):
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    predictions, references, ours = values(["accuracy", "matthews_correlation"], pairs)
    assert ours["accuracy"] == pytest.approx(accuracy_score(references, predictions))
    assert ours["matthews_correlation"] == pytest.approx(
        matthews_corrcoef(references, predictions) if len({*references, *predictions}) > 1 else 0.0, abs=1e-12
    )


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_f1_is_that_of_class_1(pairs):
    from sklearn.metrics import f1_score

    predictions, references, ours = values(["f1"], pairs)
    assert ours["f1"] == pytest.approx(f1_score(references, predictions, zero_division=0))


@given(NUMBERS)
@settings(max_examples=40, deadline=None)
def test_regression_values_are_those_of_scipy(pairs):
    from scipy.stats import pearsonr, spearmanr

    predictions, references, ours = values(["pearson", "spearman", "mse", "mae"], pairs)
    if np.ptp(predictions) and np.ptp(references):
        assert ours["pearson"] == pytest.approx(pearsonr(predictions, references)[0], abs=1e-9)
        assert ours["spearman"] == pytest.approx(spearmanr(predictions, references)[0], abs=1e-9)
    else:
        assert ours["pearson"] == ours["spearman"] == 0.0
    assert ours["mse"] == pytest.approx(((predictions - references) ** 2).mean())
    assert ours["mae"] == pytest.approx(np.abs(predictions - references).mean())


def test_accuracy_has_the_binomial_standard_error():
    result = evaluate(["accuracy"], np.array([1, 1, 1, 0]), np.array([1, 1, 1, 1]))["accuracy"]
    assert (result.value, result.n) == (0.75, 4)
    assert result.se == pytest.approx((0.75 * 0.25 / 4) ** 0.5)


@pytest.mark.parametrize("name", ["f1", "matthews_correlation", "pearson", "spearman", "mse", "mae"])
def test_standard_errors_are_those_of_scipys_bootstrap(name):
    from scipy.stats import bootstrap

    rng = np.random.default_rng(1)
    references = rng.normal(size=300)
    predictions = references + rng.normal(size=300)
    if METRICS[name].fits != "regression":
        references, predictions = (references > 0).astype(int), (predictions > 0.2).astype(int)

    def statistic(p, r):
        return evaluate_value(name, p, r)

    reference = bootstrap(
        (predictions, references), statistic, paired=True, vectorized=False, n_resamples=400, method="percentile", rng=2
    )
    assert evaluate([name], predictions, references)[name].se == pytest.approx(reference.standard_error, rel=0.15)


def evaluate_value(name, predictions, references):
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import f1_score, matthews_corrcoef

    return {
        "f1": lambda: f1_score(references, predictions),
        "matthews_correlation": lambda: matthews_corrcoef(references, predictions),
        "pearson": lambda: pearsonr(predictions, references)[0],
        "spearman": lambda: spearmanr(predictions, references)[0],
        "mse": lambda: ((predictions - references) ** 2).mean(),
        "mae": lambda: np.abs(predictions - references).mean(),
    }[name]()


def test_the_same_examples_give_the_same_standard_error():
    rng = np.random.default_rng(0)
    predictions, references = rng.normal(size=(2, 50))
    names = ["pearson", "spearman"]
    assert evaluate(names, predictions, references) == evaluate(names, predictions, references)


@pytest.mark.parametrize("constant", [0.0, 0.1, 3.3333333, 1e8 + 0.1])
def test_constant_predictions_have_no_correlation(constant):
    references = np.linspace(0, 5, 21)
    for result in evaluate(["pearson", "spearman"], np.full(21, constant), references).values():
        assert (result.value, result.se) == (0.0, 0.0)


def test_one_class_predicted_means_no_matthews_correlation_and_no_f1():
    result = evaluate(["matthews_correlation", "f1"], np.zeros(10, int), np.array([0, 1] * 5))
    assert [v.value for v in result.values()] == [0.0, 0.0]


def test_one_example_is_enough():
    result = evaluate(["accuracy", "f1", "matthews_correlation"], np.array([1]), np.array([1]))
    assert result["accuracy"].value == 1.0
    assert evaluate(["pearson"], np.array([1.0]), np.array([2.0]))["pearson"].value == 0.0


def test_f1_refuses_a_third_class():
    with pytest.raises(DataError, match="two classes"):
        evaluate(["f1"], np.array([0, 1, 2]), np.array([0, 1, 1]))


@pytest.mark.parametrize(("predictions", "references"), [([], []), ([1, 0], [1]), ([[1]], [[1]])])
def test_shapes_that_do_not_match_are_refused(predictions, references):
    with pytest.raises(DataError, match="as many predictions as references"):
        evaluate(["accuracy"], np.array(predictions), np.array(references))


def test_an_unknown_metric_is_named():
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        evaluate(["acuracy"], np.array([1]), np.array([1]))


def test_decode():
    assert decode("classification", np.array([[0.1, 2.0], [1.0, -1.0]])).tolist() == [1, 0]
    assert decode("regression", np.array([[0.5], [2.0]])).tolist() == [0.5, 2.0]
    with pytest.raises(TrainingError, match="NaN or infinite on 1 of 2"):
        decode("classification", np.array([[np.nan, 0.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match=r"expected \(examples, 1\)"):
        decode("regression", np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("written", "ours"),
    [
        ("matthews_corrcoef", "matthews_correlation"),
        ("Matthews Correlation", "matthews_correlation"),
        ("acc", "accuracy"),
        ("validation_accuracy", "accuracy"),
        ("eval_f1", "f1"),
        ("F1-score", "f1"),
        ("pearsonr", "pearson"),
        ("spearman", "spearman"),
        ("perplexity", None),
        ("wall-clock training time", None),
    ],
)
def test_names_as_others_write_them(written, ours):
    assert canonical_metric(written) == ours


def test_every_metric_says_what_it_is():
    assert all(METRICS[name].summary.endswith(".") for name in METRICS)


def test_only_fitting_metrics_are_allowed():
    assert allowed_metrics("classification", 2) == ("accuracy", "f1", "matthews_correlation")
    assert allowed_metrics("classification", 3) == ("accuracy", "matthews_correlation")
    assert allowed_metrics("regression", 1) == ("pearson", "spearman", "mse", "mae")
    assert check_metric("acc", "classification", 3) == "accuracy"
    with pytest.raises(UnknownNameError, match="'f1' does not exist for classification with 3 classes; allowed: acc"):
        check_metric("f1", "classification", 3)
    with pytest.raises(UnknownNameError, match="'accuracy' does not exist for regression; allowed: pearson"):
        check_metric("accuracy", "regression", 1)
    with pytest.raises(UnknownNameError, match="unknown metric 'bleu'"):
        check_metric("bleu", "regression", 1)


def test_importing_the_tasks_imports_nothing_heavy():
    code = (
        "import sys, rankwise.tasks, rankwise.tasks.metrics; "
        "print(sorted({'torch', 'datasets', 'sklearn', 'scipy', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
