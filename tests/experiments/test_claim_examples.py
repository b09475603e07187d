"""Two sources of noise in one interval: against `compare_arms`, against simulation, and by its own definition."""

import math

import numpy as np
import pytest
from scipy import stats

from rankwise.errors import DataError
from rankwise.experiments.claim_examples import on_examples
from rankwise.experiments.claim_power import what_would_settle
from rankwise.experiments.claim_statistics import evidence
from rankwise.experiments.claim_tests import judge
from rankwise.experiments.plan_runs import plan_of
from rankwise.experiments.records import RunRecord
from rankwise.experiments.statistics import compare_arms
from rankwise.experiments.verdicts import Cell, examples_noise, verdicts
from rankwise.tasks.base import MetricValue

RIGHT = np.random.default_rng(7).integers(0, 2, 300)


def runs(name, share, task="glue/rte", seeds=4):
    """Records and predictions that are right with a probability, differently for every seed."""
    records, predictions = [], {}
    for seed in range(seeds):
        rng = np.random.default_rng([seed, len(name), len(task)])
        predicted = np.where(rng.random(300) < share + 0.03 * rng.normal(), RIGHT, 1 - RIGHT)
        run_id = f"{name}-{task}-{seed}"
        accuracy = MetricValue(float((predicted == RIGHT).mean()), 0.01, 300)
        records.append(
            RunRecord(
                run_id=run_id,
                method=name,
                task=task,
                model="minilm",
                seed=seed,
                budget="r=4",
                status="completed",
                metrics={"accuracy": accuracy},
            )
        )
        predictions[run_id] = (predicted, RIGHT)
    return tuple(records), predictions


def cell(task="glue/rte"):
    (arm, one), (reference, other) = runs("glora", 0.8, task), runs("lora", 0.7, task)
    return Cell(task, "r=4", arm, reference), one | other


def differences(place):
    pairs = zip(place.arm, place.reference, strict=True)
    return [[one.metrics["accuracy"].value - other.metrics["accuracy"].value for one, other in pairs]]


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_one_task_has_the_interval_of_a_comparison(confidence):
    place, predictions = cell()
    expected = compare_arms(place.arm, place.reference, predictions, "accuracy", confidence=confidence)
    found = on_examples(evidence(differences(place)), *examples_noise("main", [place], predictions))
    assert found.ends(confidence) == pytest.approx((expected.low, expected.high))
    assert found.df_examples == 299


def test_cells_of_one_task_share_their_examples_and_those_of_two_do_not():
    (one, first), (other, second) = cell(), cell("glue/cola")
    alone, _ = examples_noise("accuracy", [one], first)
    elsewhere, _ = examples_noise("accuracy", [other], second)
    assert examples_noise("accuracy", [one, one], first)[0] == pytest.approx(alone)
    both, df = examples_noise("accuracy", [one, other], first | second)
    assert both == pytest.approx(math.hypot(alone, elsewhere) / 2)
    assert df == 299


@pytest.mark.parametrize("edge", [-0.3, -0.05, 0.0, 0.013, 0.02, 0.1, 5.0])
def test_p_is_where_the_end_of_the_interval_touches_the_edge(edge):
    found = on_examples(evidence([[0.01, 0.03, 0.02, 0.018]]), 0.006, 871)
    above, below = found.above(edge), found.below(edge)
    assert above + below == pytest.approx(1, abs=1e-9)
    p = min(above, below)
    if p > 1e-9:
        assert min(abs(end - edge) for end in found.ends(1 - 2 * p)) < 1e-6
    assert (above < 0.5) == (edge < found.mean)


def test_without_noise_of_examples_nothing_changes_and_with_it_claims_are_harder():
    plain = evidence([[0.01, 0.03, 0.02, 0.018]])
    assert on_examples(plain, 0.0, 871) is plain
    noisy = on_examples(plain, 0.01, 871)
    assert noisy.above(0) > plain.above(0)
    assert noisy.ends(0.9)[0] < plain.ends(0.9)[0] < plain.ends(0.9)[1] < noisy.ends(0.9)[1]
    z = stats.t(871).ppf(0.95) * 0.01
    assert noisy.ends(0.9)[1] - noisy.mean == pytest.approx(math.hypot(plain.ends(0.9)[1] - plain.mean, z))


def test_seeds_that_say_nothing_leave_nothing_to_say():
    one = on_examples(evidence([[0.02]]), 0.001, 871)
    assert (one.above(0), one.below(0), one.ends(0.9)) == (1.0, 1.0, (-math.inf, math.inf))
    same = on_examples(evidence([[0.02] * 3]), 0.001, 871)
    assert same.above(0) == pytest.approx(0.125)
    assert on_examples(evidence([[0.02] * 3]), 0.02, 871).above(0) == pytest.approx(float(stats.t(871).sf(1.0)))
    assert same.below(0) == 1.0


@pytest.mark.parametrize(("se", "df"), [(-0.1, 10), (math.nan, 10), (math.inf, 10), (0.1, 0)])
def test_noise_that_is_none_is_refused(se, df):
    with pytest.raises(DataError, match=r"standard error .*: must be finite, not negative"):
        on_examples(evidence([[0.1, 0.2]]), se, df)


def test_seeds_do_not_settle_what_examples_leave_open():
    few = evidence([[0.01, 0.03, -0.012]])
    assert what_would_settle(judge("superiority", few, 0.05, 0.0, math.inf)) is not None
    assert what_would_settle(judge("superiority", on_examples(few, 0.02, 871), 0.05, 0.0, math.inf)) is None
    with_few, alone = (
        what_would_settle(judge("superiority", found, 0.05, 0.0, math.inf))
        for found in (on_examples(few, 0.004, 871), few)
    )
    assert with_few > alone


@pytest.mark.parametrize(("seeds", "share"), [(3, 0.2), (3, 1.0), (3, 5.0), (10, 1.0)])
def test_coverage_of_both_sources(seeds, share):
    """`share`: noise of the examples in units of that of the mean over seeds. 2000 simulations, 3 standard errors."""
    rng, hits, n = np.random.default_rng(3), 0, 2000
    for _ in range(n):
        examples = rng.normal() * share / math.sqrt(seeds)
        found = evidence([rng.normal(size=seeds) + examples])
        se = share / math.sqrt(seeds) * math.sqrt(rng.chisquare(300) / 300)
        low, high = on_examples(found, se, 300).ends(0.95)
        hits += low <= 0 <= high
    assert hits / n >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / n)


def test_a_verdict_takes_the_examples_into_account():
    planned = plan_of(
        {
            "name": "p",
            "arms": {"lora": "lora", "glora": "glora"},
            "tasks": "glue/rte",
            "seeds": 4,
            "claims": [{"id": "C", "text": "t", "kind": "superiority", "arm": "glora", "reference": "lora"}],
        },
        "plan.yaml",
    )
    place, predictions = cell()
    by_name = {(r.method, r.seed): r for r in [*place.arm, *place.reference]}
    records, known = {}, {}
    for run in planned.runs:
        record = by_name[run.arm, run.config.seed]
        records[run.config.run_id] = RunRecord(**(record.__dict__ | {"run_id": run.config.run_id}))
        known[run.config.run_id] = predictions[record.run_id]
    (plain,) = verdicts(planned.config, planned.runs, records)
    (found,) = verdicts(planned.config, planned.runs, records, predictions=known)
    expected = compare_arms(place.arm, place.reference, predictions, "accuracy", confidence=0.9)
    assert (found.result.low, found.result.high) == pytest.approx((expected.low, expected.high))
    assert found.result.p > plain.result.p
