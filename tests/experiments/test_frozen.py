"""What is frozen when the first run begins, what counts as a claim of its own, and what was there before."""

import json
import subprocess
import sys

import pytest

from rankwise.errors import OutputError
from rankwise.experiments.compare import Comparing
from rankwise.experiments.frozen import FROZEN, digest_of, freeze, read_frozen, to_judge
from rankwise.experiments.plan_runs import load_plan, plan_of
from rankwise.experiments.plan_text import plan_text
from rankwise.experiments.schema import TrainingConfig
from rankwise.tasks.families import parse_task_spec

CLAIM = {"id": "C", "text": "a claim", "kind": "superiority", "arm": "glora", "reference": "lora"}
PLAN = {
    "name": "p",
    "arms": {"lora": "lora", "glora": "glora", "random": "random"},
    "tasks": ["glue/rte", "glue/cola"],
    "budgets": ["r=2", "r=4"],
    "seeds": 3,
    "claims": [CLAIM, CLAIM | {"id": "D", "tasks": ["rte"], "budgets": ["r=4"], "margin": 0.01}],
    "profiles": {"smoke": {"tasks": ["glue/cola"], "seeds": 2}},
}


def plan(profile=None, **changes):
    return plan_of(PLAN | changes, "plan.yaml", profile)


def digest(number=0, **changes):
    config = plan(**changes).config
    return digest_of(config.claims[number], config)


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": 4},
        {"budgets": ["r=2", "r=8"]},
        {"training": {"learning_rate": 1e-4}},
        {"protocol": {"alpha": 0.01}},
        {"model": "some/model"},
        {"arms": PLAN["arms"] | {"glora": {"method": {"name": "glora", "warmup": 0.3}}}},
        {"claims": [CLAIM | {"margin": 0.001}, PLAN["claims"][1]]},
        {"claims": [CLAIM | {"arm": "random"}, PLAN["claims"][1]]},
    ],
)
def test_what_decides_a_verdict_makes_another_claim(changes):
    changes = {"claims": [CLAIM], **changes} if "budgets" in changes else changes
    assert digest(**changes) != digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"claims": [CLAIM | {"text": "other words", "source": "a paper"}, PLAN["claims"][1]]},
        {"question": "another"},
        {"arms": PLAN["arms"] | {"heuristic": "heuristic"}},
        {"profiles": {}},
        {"claims": [PLAN["claims"][1], CLAIM][::-1]},
    ],
)
def test_wording_and_what_a_claim_is_not_about_do_not(changes):
    assert digest(**changes) == digest()


def test_a_claim_about_one_task_and_budget_does_not_mind_the_others():
    more = {"tasks": ["glue/rte", "glue/mrpc"], "budgets": ["r=4", "r=8"]}
    assert digest(1, **more) == digest(1)


def test_frozen_plans_come_back_whole(tmp_path):
    for name in (None, "smoke"):
        folder = tmp_path / str(name)
        folder.mkdir()
        made = freeze(folder, plan(name, profiles={"smoke": PLAN["profiles"]["smoke"]} if name else {}), ())
        again = read_frozen(folder)
        assert (again.plan.config, again.plan.profile, again.late) == (made.plan.config, name, ())
        assert [vars(r) | {"config": r.config.canonical()} for r in again.plan.runs] == [
            vars(r) | {"config": r.config.canonical()} for r in made.plan.runs
        ]


def test_a_second_freeze_changes_nothing(tmp_path):
    freeze(tmp_path, plan(), ())
    before = (tmp_path / FROZEN).read_bytes()
    found = freeze(tmp_path, plan(seeds=5), ())
    assert len(found.plan.config.seeds) == 3
    assert (tmp_path / FROZEN).read_bytes() == before


def test_another_plan_or_profile_is_refused(tmp_path):
    freeze(tmp_path, plan(), ())
    with pytest.raises(OutputError, match=r"holds plan 'p', this is 'q'; choose another --output"):
        freeze(tmp_path, plan(name="q"), ())
    with pytest.raises(OutputError, match="holds profile 'None', this is 'smoke'"):
        freeze(tmp_path, plan("smoke"), ())


def test_a_frozen_file_that_was_changed_is_refused(tmp_path):
    freeze(tmp_path, plan(), ())
    content = json.loads((tmp_path / FROZEN).read_text())
    content["plan"]["claims"][0]["margin"] = 0.5
    (tmp_path / FROZEN).write_text(json.dumps(content))
    with pytest.raises(OutputError, match=r"changed after it was frozen \(claims C\)"):
        read_frozen(tmp_path)
    for broken in (
        "",
        "[]",
        "{}",
        '{"digests": {}, "late": [], "plan": {"name": 3, "tasks": [], "budgets": [], "claims": []}}',
    ):
        (tmp_path / FROZEN).write_text(broken)
        with pytest.raises(OutputError, match="cannot read"):
            read_frozen(tmp_path)
    (tmp_path / FROZEN).unlink()
    with pytest.raises(OutputError, match="no plan was run there"):
        read_frozen(tmp_path)


def test_claims_whose_runs_are_known_are_late(tmp_path):
    planned = plan()
    lora = [run.config.run_id for run in planned.runs if run.arm == "lora"]
    pair = [run for run in planned.runs if run.config.task.name == "glue/cola" and run.config.seed == 0]
    both = [run.config.run_id for run in pair if run.budget == "r=2" and run.arm in ("lora", "glora")]
    for name, known, late in (("a", lora, ()), ("b", both, ("C",)), ("c", [*lora, *both], ("C",))):
        (tmp_path / name).mkdir()
        assert freeze(tmp_path / name, planned, known).late == late
        assert read_frozen(tmp_path / name).late == late
    parts = to_judge(read_frozen(tmp_path / "b"), None)
    assert [([claim.id for claim in part.config.claims], late) for part, late in parts] == [
        (["D"], False),
        (["C"], True),
    ]


def test_an_edited_claim_is_judged_beside_the_frozen_one(tmp_path):
    frozen = freeze(tmp_path, plan(), ())
    now = plan(claims=[CLAIM | {"margin": 0.002}, PLAN["claims"][1]])
    parts = to_judge(frozen, now)
    found = [([(claim.id, claim.margin) for claim in part.config.claims], late) for part, late in parts]
    assert found == [([("C", 0.0), ("D", 0.01)], False), ([("C", 0.002)], True)]


def test_a_comparison_from_flags_is_a_plan_with_the_same_runs(tmp_path):
    task = parse_task_spec("docstrings", validation_examples=240)
    training = TrainingConfig(max_steps=20, batch_size=8, learning_rate=3e-3)
    flags = Comparing(("lora", "full", "glora"), task, "minilm", "0.5%", (0, 5), training)
    (tmp_path / "plan.yaml").write_text(plan_text(flags, "a-name"))
    made = load_plan(tmp_path / "plan.yaml")
    assert {run.config.run_id for run in made.runs} == {config.run_id for config in flags.configs()}
    assert [(claim.arm, claim.reference) for claim in made.config.claims] == [("full", "lora"), ("glora", "lora")]


def test_a_frozen_plan_is_read_without_torch_and_has_the_runs_it_had(tmp_path):
    arms = {
        "lora": "lora",
        "glora": {"method": {"name": "glora", "warmup": 0.3}, "training": {"epochs": 1}, "reason": "a test"},
        "full": "full",
        "block": {"method": {"name": "radlora", "depth": "block"}},
        "twin": "lora",
    }
    tuning = {"learning_rates": [1e-4, 1e-3]}
    settings = {"protocol": {"tuning": tuning}, "evaluation": {"metrics": ["accuracy", "f1"]}}
    frozen = plan(arms=arms, tasks=["glue/rte"], claims=[CLAIM], **settings)
    freeze(tmp_path, frozen, ())
    wanted = [(run.arm, run.budget, run.config.run_id) for run in frozen.runs]
    assert [(r.arm, r.budget, r.config.run_id) for r in read_frozen(tmp_path).plan.runs] == wanted
    code = (
        "import sys, pathlib; from rankwise.experiments.frozen import read_frozen; from rankwise.experiments.tuning "
        "import tune; plan = read_frozen(pathlib.Path(sys.argv[1])).plan; print(len(plan.runs), "
        "[m for m in ('torch', 'transformers', 'peft', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == [str(len(wanted)), "[]\n"]
