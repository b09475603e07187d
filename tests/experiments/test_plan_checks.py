"""What is refused or said about a plan before anything is run, and the plans that are shipped."""

from pathlib import Path

import pytest

from rankwise.experiments.plan_checks import TaskFacts, check_plan
from rankwise.experiments.plan_runs import load_plan, plan_of

CLAIM = {"id": "C", "text": "a claim", "kind": "superiority", "arm": "glora", "reference": "lora"}
RTE = TaskFacts("glue/rte", "classification", 2, 2490, 277, ("accuracy",))
STSB = TaskFacts("glue/stsb", "regression", 1, 5749, 1500, ("pearson", "spearman"))
BIG = TaskFacts("glue/qqp", "classification", 2, 300_000, 40_000, ("accuracy", "f1"))
PLANS = Path(__file__).parents[2] / "plans"


def found(*claims, profile=None, tasks=(RTE,), **changes):
    data = {
        "name": "p",
        "arms": {"lora": "lora", "glora": "glora"},
        "tasks": [task.name for task in tasks],
        "seeds": 5,
        "claims": [CLAIM | claim for claim in claims or ({},)],
        "profiles": {"smoke": {}},
    }
    plan = plan_of(data | changes, "plan.yaml", profile)
    return [(one.level, str(one)) for one in check_plan(plan, {task.name: task for task in tasks})]


def said(findings, level, words):
    return [text for one, text in findings if one == level and words in text]


def test_a_plan_without_a_problem_has_no_error_or_warning():
    assert [one for one in found() if one[0] != "note"] == []


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"claims": []}, "warning", "makes no claims"),
        ({"arms": {"glora": "glora", "o": "adalora"}, "claims": [CLAIM | {"reference": "o"}]}, "warning", "no arm is"),
        ({"arms": {"lora": "lora", "glora": "glora", "eva": "eva"}}, "note", "arms.eva: no claim is about it"),
        ({"claims": [CLAIM | {"metric": "pearson"}]}, "error", "glue/rte: metric 'pearson' does not exist"),
        ({"claims": [CLAIM | {"metric": "f1"}]}, "error", "add it to evaluation.metrics"),
        ({"training": {"max_steps": 20, "warmup": 30}}, "error", "30 steps; glue/rte has 20 steps in all"),
        ({"training": {"max_steps": 20}}, "note", "20 steps see 13% of its 2,490 training examples"),
        ({"budgets": ["r=1"]}, "warning", "arms.glora.method.floor: 1 at the budget r=1: nothing is left to allocate"),
        ({"seeds": 1}, "error", "one seed says nothing about seeds"),
        ({"claims": [CLAIM | {"kind": "equivalence", "margin": 0.005}]}, "error", "examples are too few"),
        ({"claims": [CLAIM | {"metric": "train_seconds"}]}, "note", "C compare time or memory"),
        ({"claims": [CLAIM | {"kind": "not-testable", "reason": "so"}]}, "note", "not testable: so"),
        ({}, "note", "nothing is tuned: verdicts are about a learning rate of 0.001"),
    ],
)  # fmt: skip
def test_each_rule(changes, level, words):
    assert said(found(**changes), level, words), found(**changes)


def test_a_small_profile_may_see_less():
    assert said(found(seeds=1), "error", "one seed")
    assert said(found(seeds=1, profile="smoke"), "warning", "one seed")
    assert not said(found(seeds=1, profile="smoke"), "error", "")


def test_an_effect_that_enough_examples_and_seeds_can_find_is_no_problem():
    claim = {"effect": 0.01}
    assert said(found(claim, tasks=(BIG,), seeds=3), "error", "seeds would")
    needed = int(said(found(claim, tasks=(BIG,), seeds=3), "error", "seeds would")[0].split("; ")[1].split()[0])
    assert said(found(claim, tasks=(BIG,), seeds=needed - 1), "error", "seeds would")
    assert not said(found(claim, tasks=(BIG,), seeds=needed), "error", "")


def test_an_arm_that_trains_otherwise_is_named_and_not_tuned_apart():
    arms = {"lora": "lora", "glora": {"method": "glora", "training": {"learning_rate": 1e-4}, "reason": "its paper"}}
    tuning = {"protocol": {"tuning": {"learning_rates": [1e-4, 1e-3]}}}
    assert said(found(arms=arms), "warning", "trains otherwise (learning_rate 0.0001): its paper")
    assert said(found(arms=arms, **tuning), "error", "is fixed here and searched for every other arm")
    assert not said(found(**tuning), "note", "nothing is tuned")


def test_margins_in_points_of_different_metrics_are_noted():
    margin = {"kind": "non-inferiority", "margin": 0.2}
    assert said(found(margin, tasks=(RTE, STSB)), "note", "points of different metrics: accuracy, pearson")


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_plans_load_at_every_profile(path):
    for profile in (None, "smoke", "pilot", "full"):
        plan = load_plan(path, profile)
        assert plan.config.name == path.stem
        assert len(plan.config.seeds) >= 2
        assert (plan.minutes is None) == (profile in (None, "full"))


def test_shipped_plans_ask_every_claim_of_the_records():
    """A3, the importance score against the loss of removal, is no comparison of runs."""
    asked = {claim.id for path in PLANS.glob("*.yaml") for claim in load_plan(path).config.claims}
    records = {
        "G1",
        "G2",
        "G3",
        "G4",
        "G5",
        "G6",
        "A1",
        "A2",
        "L1",
        "L2",
        "L3",
        "C1",
        "C2",
        "C3",
        "R1",
        "R2",
        "R3",
        "R4",
    }
    assert records <= asked
