"""Verdicts from records that were written by hand: which runs count, which word comes out, what Holm changes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from rankwise.experiments.plan_runs import plan_of
from rankwise.experiments.records import RunRecord
from rankwise.experiments.verdicts import verdicts
from rankwise.tasks.base import MetricValue

CLAIM = {"id": "C", "text": "a claim", "kind": "superiority", "arm": "glora", "reference": "lora"}


def plan(*claims, **fields):
    data = {
        "name": "p",
        "arms": {"lora": "lora", "glora": "glora"},
        "tasks": ["glue/rte", "glue/cola"],
        "seeds": 5,
        "claims": [CLAIM | claim for claim in claims],
    }
    return plan_of(data | fields, "plan.yaml")


def score(run, gain=0.02, spread=0.003):
    """Accuracy: every seed and task has its own level, and the arm gains the same in all, up to a spread."""
    level = 0.6 + 0.01 * run.config.seed + 0.1 * (run.config.task.name == "glue/cola")
    wobble = spread * ((run.config.seed * 2 + len(run.config.task.name)) % 5 - 2)
    return level + (gain + wobble if run.arm == "glora" else 0.0)


def records(planned, *, score=score, seconds=lambda run: 10.0, parameters=lambda run: 1000, without=()):
    found = {}
    for run in planned.runs:
        if run.config.run_id in without:
            continue
        main = "matthews_correlation" if run.config.task.name == "glue/cola" else "accuracy"
        found[run.config.run_id] = RunRecord(
            run_id=run.config.run_id,
            method=run.config.method.name,
            task=run.config.task.name,
            model="minilm",
            seed=run.config.seed,
            budget=run.budget,
            status="completed",
            parameters=parameters(run),
            peak_parameters=2 * parameters(run),
            metrics={main: MetricValue(score(run), 0.01, 277), "f1": MetricValue(1 - score(run), 0.01, 277)},
            train_seconds=seconds(run),
        )
    return found


def judged(planned, **how):
    return verdicts(planned.config, planned.runs, records(planned, **how))


def test_superiority_over_all_tasks_with_the_numbers_of_a_t_test():
    planned = plan({})
    (found,) = judged(planned)
    assert (found.word, found.settle, found.missing) == ("supported", "", ())
    assert set(found.runs) == {run.config.run_id for run in planned.runs}
    assert (found.result.tasks, found.result.seeds) == (2, (5, 5))
    by_task = {
        task: np.array([
            score(run) - score(other)
            for run, other in zip(planned.runs[1::2], planned.runs[::2], strict=True)
            if run.config.task.name == task
        ])
        for task in ("glue/rte", "glue/cola")
    }  # fmt: skip
    assert found.result.estimate == pytest.approx(np.mean([each.mean() for each in by_task.values()]))


def test_one_task_is_a_paired_t_test():
    (found,) = judged(plan({"tasks": "rte"}))
    wobble = np.array([0.02 + 0.003 * ((seed * 2 + len("glue/rte")) % 5 - 2) for seed in range(5)])
    assert found.result.p == pytest.approx(float(stats.ttest_1samp(wobble, 0, alternative="greater").pvalue))
    assert found.adjusted == found.result.p
    assert len(found.runs) == 10


@pytest.mark.parametrize(
    ("claim", "word"),
    [
        ({}, "supported"),
        ({"margin": 0.05}, "refuted"),
        ({"margin": 0.0201}, "inconclusive"),
        ({"kind": "equivalence", "margin": 0.05}, "supported"),
        ({"kind": "equivalence", "margin": 0.005}, "refuted"),
        ({"kind": "non-inferiority", "margin": 0.001}, "supported"),
        ({"arm": "lora", "reference": "glora"}, "refuted"),
        ({"kind": "non-inferiority", "margin": 0.005, "arm": "lora", "reference": "glora"}, "refuted"),
        ({"kind": "bound", "at_least": 0.01}, "supported"),
        ({"kind": "bound", "at_most": 0.01}, "refuted"),
        ({"metric": "f1"}, "refuted"),
    ],
)
def test_every_kind_comes_out_as_its_numbers_say(claim, word):
    (found,) = judged(plan(claim))
    assert found.word == word
    assert (found.settle != "") == (word == "inconclusive")


def clock(run):
    """The arm takes 10 % longer, up to half a percent."""
    return (10.0 + run.config.seed) * (1.0 if run.arm == "lora" else 1.1 + 0.005 * (run.config.seed % 3 - 1))


@pytest.mark.parametrize(
    ("claim", "word"),
    [
        ({"kind": "equivalence", "margin": 0.02}, "refuted"),
        ({"kind": "equivalence", "margin": 0.15}, "supported"),
        ({"kind": "bound", "at_most": 1.16}, "supported"),
        ({"kind": "bound", "at_most": 1.05}, "refuted"),
        ({"kind": "superiority"}, "refuted"),
        ({"kind": "superiority", "arm": "lora", "reference": "glora"}, "supported"),
        ({"kind": "superiority", "margin": 0.2, "arm": "lora", "reference": "glora"}, "refuted"),
        ({"kind": "non-inferiority", "margin": 0.15}, "supported"),
    ],
)
def test_time_is_a_ratio_and_less_is_better(claim, word):
    (found,) = judged(plan({"metric": "train_seconds"} | claim), seconds=clock)
    assert found.word == word
    assert found.result.scale == "ratio"
    assert found.result.estimate == pytest.approx(1.1 if claim.get("arm") != "lora" else 1 / 1.1, rel=0.01)


@pytest.mark.parametrize(
    ("ratio", "claim", "word"),
    [
        (1.0, {"kind": "equivalence", "margin": 0.001}, "supported"),
        (1.1, {"kind": "equivalence", "margin": 0.02}, "refuted"),
        (1.1, {"kind": "bound", "at_most": 1.1}, "supported"),
        (1.1, {"kind": "bound", "at_least": 1.2}, "refuted"),
    ],
)
def test_parameters_are_counted_and_have_no_p_value(ratio, claim, word):
    planned = plan({"metric": "parameters"} | claim, {"id": "D"})
    found, other = judged(planned, parameters=lambda run: int(1000 * ratio) if run.arm == "glora" else 1000)
    assert found.word == word
    assert math.isnan(found.result.p)
    assert math.isnan(found.adjusted)
    assert other.adjusted == other.result.p  # what was not tested does not count in the correction


def test_holm_over_the_claims_of_a_plan():
    claims = [{"id": f"C{i}", "margin": margin} for i, margin in enumerate((0.0, 0.0165, 0.0165, 0.0165))]
    found = judged(plan(*claims))
    assert [f.result.verdict for f in found] == ["supported"] * 4
    assert [f.word for f in found] == ["supported", *["inconclusive"] * 3]
    assert all("correction" in f.settle for f in found[1:])
    assert found[1].adjusted == pytest.approx(min(1, 3 * found[1].result.p))
    alone = judged(plan(*claims, protocol={"correction": "none"}))
    assert [f.word for f in alone] == ["supported"] * 4


def test_missing_runs_are_named_and_nothing_is_tested():
    planned = plan({}, {"id": "D", "tasks": "cola"})
    gone = [run.config.run_id for run in planned.runs if run.config.task.name == "glue/rte"][:2]
    first, second = judged(planned, without=gone)
    assert (first.word, first.result, set(first.missing)) == ("not tested", None, set(gone))
    assert first.settle == "2 of 20 runs are missing"
    assert second.word == "supported"


def test_what_a_profile_leaves_out_is_not_tested():
    planned = plan_of(
        {
            "name": "p",
            "arms": {"lora": "lora", "glora": "glora"},
            "tasks": ["glue/rte", "glue/cola"],
            "claims": [CLAIM | {"tasks": "rte"}, CLAIM | {"id": "D"}],
            "profiles": {"smoke": {"tasks": "cola"}},
        },
        "plan.yaml",
        "smoke",
    )
    first, second = judged(planned)
    assert (first.word, first.settle) == ("not tested", "the plan at this profile leaves out glue/rte")
    assert second.word == "supported"


def test_a_claim_that_is_not_testable_keeps_its_reason():
    (found,) = judged(plan({"kind": "not-testable", "reason": "a ratio of two small differences"}))
    assert (found.word, found.settle, found.runs) == ("not testable", "a ratio of two small differences", ())


def test_claims_that_came_later_are_marked():
    planned = plan({}, {"id": "D"})
    found = verdicts(planned.config, planned.runs, records(planned), post_hoc=True)
    assert [each.post_hoc for each in found] == [True, True]


def test_the_noise_floor_is_what_seeds_of_the_reference_do():
    (found,) = judged(plan({"tasks": "rte"}, seeds=4))
    # the reference rises by 0.01 per seed: both pairs differ by 0.01, and σ² = mean(d²) / 2
    assert found.floor.run == pytest.approx(0.01 / math.sqrt(2))
    assert found.floor.seeds == 4
    assert judged(plan({}, seeds=1))[0].floor is None
    assert judged(plan({"metric": "parameters", "kind": "equivalence", "margin": 0.1}))[0].floor is None


def test_the_smallest_effect_that_the_runs_can_find_follows_from_their_spread():
    (found,) = judged(plan({"tasks": "rte"}))
    spread = np.std([0.003 * ((seed * 2 + len("glue/rte")) % 5 - 2) for seed in range(5)], ddof=1)
    shift = found.detectable / spread * math.sqrt(5)
    assert stats.nct.sf(stats.t.isf(0.05, 4), 4, shift) == pytest.approx(0.8)


def test_one_seed_decides_nothing():
    (found,) = judged(plan({}, seeds=1))
    assert found.word == "inconclusive"
    assert (found.result.low, found.result.high) == (-math.inf, math.inf)
    assert found.settle == "at least two seeds per task"


def test_arms_that_are_the_same_are_not_called_different():
    (found,) = judged(plan({}), score=lambda run: 0.6 + 0.01 * run.config.seed)
    assert found.word != "supported"


def test_every_cell_counts_the_same_at_several_budgets():
    planned = plan({}, budgets=["r=2", "r=4"], tasks=["glue/rte"])
    (found,) = judged(planned, score=lambda run: 0.6 + (0.04 if run.budget == "r=2" and run.arm == "glora" else 0.0)
                      + 0.0001 * run.config.seed * (run.arm == "glora"))  # fmt: skip
    assert found.result.tasks == 2
    assert found.result.estimate == pytest.approx(0.02 + 0.0002)


# --- what is counted when a run is done -------------------------------------------------------------------------------


def counted(planned, costs, **how):
    found = {name: replace(record, costs=costs(record)) for name, record in records(planned, **how).items()}
    return verdicts(planned.config, planned.runs, found)


def test_flops_are_compared_as_ratios_and_without_noise():
    bound = {"kind": "bound", "metric": "inference_flops", "at_most": 0.45}
    (found,) = counted(plan(bound), lambda run: {"inference_flops": 5.05e8 if run.method == "glora" else 5e8})
    assert (found.word, found.result.estimate) == ("refuted", pytest.approx(1.01))
    (found,) = counted(plan(bound), lambda run: {"inference_flops": 2e8 if run.method == "glora" else 5e8})
    assert (found.word, found.result.estimate) == ("supported", pytest.approx(0.4))


def test_premise_is_compared_as_a_difference_and_more_is_better():
    claim = {"metric": "premise", "effect": 0.3}

    def costs(run, better="glora"):
        return {"premise": (0.6 if run.method == better else 0.0) + 0.01 * (run.seed % 3)}

    planned = plan(claim, evaluation={"premise": True})
    (found,) = counted(planned, lambda run: costs(run) | {"x": run.seed} | {"premise": costs(run)["premise"]})
    assert found.result.estimate == pytest.approx(0.6)
    assert found.result.scale == "difference"
    (worse,) = counted(planned, lambda run: costs(run, "lora"))
    assert worse.result.estimate == pytest.approx(-0.6)
    assert worse.word != "supported"


@pytest.mark.parametrize("costs", [{}, {"active_share": 0.0}, {"active_share": math.nan}])
def test_runs_without_the_number_leave_a_claim_untested(costs):
    claim = {"kind": "bound", "metric": "active_share", "at_most": 0.25}
    (found,) = counted(plan(claim), lambda run: {"active_share": 1.0} if run.method == "lora" else costs)
    assert found.word == "not tested"
    assert found.settle == "10 of 20 runs have no active_share (glora-glue-rte-s0-" + found.settle.split("s0-")[1]


@pytest.mark.parametrize(
    ("claim", "how", "said"),
    [
        ({}, {"score": lambda run: math.nan if run.arm == "glora" else 0.5}, "main metric that is a number"),
        ({"metric": "f1"}, {"score": lambda run: math.inf if run.arm == "glora" else 0.5}, "f1"),
        ({"metric": "mse"}, {}, "mse"),
        ({"metric": "train_seconds"}, {"seconds": lambda run: math.nan if run.arm == "glora" else 1}, "train_seconds"),
        (
            {"metric": "parameters", "kind": "bound", "at_most": 1},
            {"parameters": lambda run: 0 if run.arm == "glora" else 1000},
            "parameters",
        ),
    ],
)
def test_a_number_that_is_none_leaves_its_claim_untested_and_the_others_judged(claim, how, said):
    other = {"id": "D", "kind": "bound", "metric": "peak_parameters", "at_most": 3, "arm": "lora", "reference": "glora"}
    planned = plan(claim, other if said != "parameters" else {"id": "D"})
    found, sound = judged(planned, **how)
    assert found.word == "not tested"
    assert f" of 20 runs have no {said} (" in found.settle
    assert sound.word == "supported"
