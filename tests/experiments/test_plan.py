"""Plans: what a file may say, which runs it means, and what is refused."""

import copy

import pytest

from rankwise.errors import ConfigError
from rankwise.experiments.plan import PlanConfig
from rankwise.experiments.plan_runs import load_plan, plan_of

PLAN = {
    "name": "settle-glora",
    "arms": {"lora": "lora", "glora": {"method": {"name": "glora", "warmup": 0.2}}, "whole": "full"},
    "tasks": ["rte", "GLUE SST-2"],
    "budgets": ["r=2", "r=4"],
    "seeds": 2,
    "training": {"max_steps": 40, "batch_size": 8},
    "claims": [
        {"id": "G2", "text": "better", "kind": "superiority", "arm": "glora", "reference": "lora", "tasks": "glue/rte"},
        {"id": "G3", "text": "most of the gain", "kind": "not-testable", "reason": "a ratio of two small differences"},
    ],
    "profiles": {"smoke": {"tasks": "glue/sst2", "seeds": [5], "training": {"epochs": 0.5}}},
}


def changed(path="", value=None, **fields):
    """The plan with one value changed at a dotted path, or some at the top."""
    data = copy.deepcopy(PLAN) | fields
    if path:
        *parents, last = path.split(".")
        place = data
        for part in parents:
            place = place[int(part) if part.isdigit() else part]
        place[last] = value
    return data


def refused(data, profile=None):
    with pytest.raises(ConfigError) as caught:
        plan_of(data, "plan.yaml", profile)
    assert str(caught.value).startswith("plan.yaml: ")
    return [str(finding) for finding in caught.value.findings]


def test_runs_are_the_product_seed_by_seed():
    runs = plan_of(PLAN, "plan.yaml").runs
    assert len(runs) == 3 * 2 * 2 * 2
    assert [run.config.seed for run in runs] == [0] * 12 + [1] * 12
    assert [run.arm for run in runs[:3]] == ["lora", "glora", "whole"]
    assert {run.config.task.name for run in runs} == {"glue/rte", "glue/sst2"}
    by_budget = {budget: {r.config.method.budget for r in runs if r.budget == budget and r.arm != "whole"}
                 for budget in ("r=2", "r=4")}  # fmt: skip
    assert by_budget == {"r=2": {"r=2"}, "r=4": {"r=4"}}
    assert all(run.config.training.max_steps == 40 for run in runs)
    whole = [run for run in runs if run.arm == "whole"]
    assert len({run.config.run_id for run in whole}) == len(whole) / 2  # no budget: the same run at both


def test_a_profile_replaces_what_it_names_and_claims_stay():
    plan = plan_of(PLAN, "plan.yaml", "smoke")
    assert [task.name for task in plan.config.tasks] == ["glue/sst2"]
    assert plan.config.seeds == (5,)
    assert (plan.config.training.max_steps, plan.config.training.epochs) == (None, 0.5)
    assert plan.config.training.batch_size == 8
    assert plan.config.claims == PlanConfig.model_validate(PLAN).claims
    assert len(plan.runs) == 3 * 2


def test_a_file_is_read_with_its_lines(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("name: p\narms: {lora: lora, glora: glora}\ntasks: docstrings\ntraining: {learning_rate: 2e-4}\n")
    plan = load_plan(path)
    assert (plan.source, len(plan.runs)) == (str(path), 6)
    assert {run.config.training.learning_rate for run in plan.runs} == {2e-4}
    path.write_text("name: p\nname: q\n")
    with pytest.raises(ConfigError, match="there twice"):
        load_plan(path)


def test_an_arm_that_trains_otherwise_says_why():
    arm = {"method": "glora", "training": {"learning_rate": 0.01}}
    assert refused(changed("arms.glora", arm)) == ["arms.glora: trains otherwise (learning_rate) and gives no `reason`"]
    plan = plan_of(changed("arms.glora", arm | {"reason": "tuned"}), "plan.yaml")
    assert {(r.arm, r.config.training.learning_rate) for r in plan.runs} == {
        ("lora", 0.001), ("whole", 0.001), ("glora", 0.01),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("name", "two words", "name: "),
        ("arms", {}, "arms: "),
        ("arms.lora", "lorra", "arms.lora.method: "),
        ("arms.glora.method.warmpu", 3, "arms.glora.method.warmpu: unknown key, did you mean 'warmup'?"),
        ("arms.glora.method.budget", "r=3", "comes from the plan's `budgets`"),
        ("tasks", ["glue/rtee"], "glue/rte"),
        ("tasks", ["rte", "glue/rte"], "named twice"),
        ("budgets", ["96 ranks"], "counts ranks"),
        ("budgets", ["much"], "budgets: "),
        ("seeds", 0, "seeds: "),
        ("seeds", [1, 1], "named twice: 1"),
        ("seedz", 3, "seedz: unknown key, did you mean 'seeds'?"),
        ("training.max_step", 3, "unknown key, did you mean 'max_steps'?"),
        ("claims.0.arm", "glora2", "claim G2: no arm 'glora2' in the plan, did you mean 'glora'?"),
        ("claims.0.reference", "glora", "arm and reference are both 'glora'"),
        ("claims.0.reference", None, "`reference` is missing"),
        ("claims.0.tasks", ["glue/cola"], "claim G2: no task 'glue/cola' in the plan"),
        ("claims.0.budgets", ["r=8"], "claim G2: no budget 'r=8' in the plan"),
        ("claims.0.metric", "accurracy", "no metric 'accurracy', did you mean 'accuracy'?"),
        ("claims.0.kind", "superior", "must be one of superiority"),
        ("claims.0.kind", "equivalence", "equivalence needs a `margin` above 0"),
        ("claims.0.kind", "non-inferiority", "needs a `margin` above 0"),
        ("claims.0.kind", "bound", "a bound has one of `at_most` and `at_least`"),
        ("claims.0.at_most", 1.0, "belong to kind `bound`"),
        ("claims.0.id", "G3", "claim G3 is there twice"),
        ("claims.1.reason", "", "a claim that is not testable needs a `reason`"),
        ("protocol", {"alpha": 0.7}, "protocol.alpha: "),
        ("protocol", {"tuning": {"learning_rates": [3e-3, 1e-3]}}, "must increase"),
        ("profiles.smoke.seed", 1, "unknown key, did you mean 'seeds'?"),
        ("profiles.tiny", {}, "profiles.tiny"),
    ],
)
def test_bad_plans_are_refused_with_the_place_and_what_is_allowed(path, value, message):
    found = refused(changed(path, value))
    assert any(message in finding for finding in found), found


def test_every_problem_of_the_runs_is_said_once():
    found = refused(changed("arms.lora", {"method": {"name": "lora", "scaling": -1, "dropout": 2}}))
    assert len(found) == 2
    assert all(finding.startswith("arms.lora.method.") for finding in found)


def test_a_profile_that_is_not_there_is_named():
    assert refused(PLAN, "smoek") == ["--profile: no profile 'smoek', did you mean 'smoke'? The plan has: smoke"]
    data = {key: value for key, value in PLAN.items() if key != "profiles"}
    assert refused(data, "full") == ["--profile: no profile 'full'. The plan has: none"]


def test_a_profile_that_makes_no_plan_is_refused():
    found = refused(changed("profiles.smoke", {"training": {"max_steps": 0}}), "smoke")
    assert any("max_steps" in finding for finding in found)
