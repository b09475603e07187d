"""`compare PLAN`, `verdict` and `plan check`, as they are typed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from rankwise.cli import app
from rankwise.errors import RankwiseError
from rankwise.experiments import compare as comparing
from rankwise.experiments.frozen import freeze
from rankwise.experiments.plan_runs import load_plan
from rankwise.experiments.records import RunRecord
from rankwise.experiments.store import Store
from rankwise.tasks.base import MetricValue

CLAIM = {"id": "C", "text": "glora is better", "kind": "superiority", "arm": "glora", "reference": "lora"}
PLAN = {
    "name": "p",
    "arms": {"lora": "lora", "glora": "glora"},
    "tasks": [{"name": "docstrings", "validation_examples": 60}],
    "seeds": 3,
    "training": {"max_steps": 2, "batch_size": 4},
    "claims": [CLAIM, CLAIM | {"id": "P", "kind": "bound", "metric": "parameters", "at_most": 1}],
    "profiles": {"smoke": {"seeds": 2, "minutes": 5}},
}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(tmp_path)


def write(folder, **changes):
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN | changes))
    return path


def rankwise(*words):
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])
    if isinstance(found.exception, RankwiseError):
        return 2, str(found.exception)
    return found.exit_code, found.stdout if found.exit_code == 0 else found.output


def fill(file, folder, *, profile=None, without=0):
    """A run folder as `compare PLAN` leaves it, with invented predictions: glora is right on 20 to 22 of 60 more."""
    plan = load_plan(file, profile)
    folder.mkdir()
    comparing.claim(folder, [run.config for run in plan.runs], "rankwise compare plan.yaml", folder / "store.sqlite")
    freeze(folder, plan, ())
    with Store(folder / "store.sqlite") as store:
        for run in plan.runs[: len(plan.runs) - without]:
            record = RunRecord(
                run_id=run.config.run_id,
                method=run.config.method.name,
                task=run.config.task.name,
                model="minilm",
                seed=run.config.seed,
                budget=run.budget,
                parameters=1000,
                peak_parameters=1200,
                train_seconds=5.0,
                environment={"machine": "a machine", "versions": {}},
            )
            store.begin(record)
            rng = np.random.default_rng(run.config.seed)
            right = np.arange(60.0) % 4
            wrong = rng.permutation(60)[: 30 if run.arm == "lora" else 8 + run.config.seed]
            guess = right.copy()
            guess[wrong] = (guess[wrong] + 1) % 4
            store.add_predictions(record.run_id, "validation", guess, right)
            metrics = {"accuracy": MetricValue(float((guess == right).mean()), 0.05, 60)}
            store.finish(replace(record, status="completed", metrics=metrics))
    return plan


def test_verdicts_from_the_store_alone(file, tmp_path):
    fill(file, tmp_path / "out")
    code, text = rankwise("verdict", "out", "--json")
    assert code == 0, text
    content = json.loads(text)
    by_id = {each["id"]: each for each in content["verdicts"]}
    assert (by_id["C"]["verdict"], by_id["P"]["verdict"]) == ("supported", "supported")
    assert by_id["C"]["estimate"] == pytest.approx(21 / 60)
    assert by_id["C"]["seeds"] == [3]
    assert len(by_id["C"]["runs"]) == 6
    assert content == json.loads((tmp_path / "out" / "verdicts.json").read_text())
    rows = {row["arm"]: row for row in content["runs"]}
    assert rows["lora"]["value"] == pytest.approx(30 / 60)
    assert (rows["lora"]["seeds"], rows["lora"]["planned"], rows["lora"]["n"]) == (3, 3, 60)


def test_the_same_twice(file, tmp_path):
    fill(file, tmp_path / "out")
    one = rankwise("verdict", "out", "--json")
    assert one == rankwise("verdict", file, "--output", "out", "--json")


def test_the_table_says_what_was_found(file, tmp_path):
    fill(file, tmp_path / "out")
    code, text = rankwise("verdict", "out")
    assert code == 0
    for word in ("C: main: glora - lora", "supported", "+0.3500", "1×3", "0.500"):
        assert word in " ".join(text.split()), word


def test_a_later_claim_is_post_hoc_and_the_frozen_one_stays(file, tmp_path):
    fill(file, tmp_path / "out")
    write(tmp_path, claims=[CLAIM | {"margin": 0.1}, CLAIM | {"id": "N", "kind": "non-inferiority", "margin": 0.5}])
    code, text = rankwise("verdict", "plan.yaml", "--output", "out", "--json")
    assert code == 0
    found = [(each["id"], each["post_hoc"]) for each in json.loads(text)["verdicts"]]
    assert found == [("C", False), ("P", False), ("C", True), ("N", True)]
    assert "post hoc" in rankwise("verdict", "plan.yaml", "--output", "out")[1]


def test_missing_runs_are_said_and_nothing_is_judged_without_them(file, tmp_path):
    fill(file, tmp_path / "out", without=1)
    code, text = rankwise("verdict", "out", "--json")
    found = json.loads(text)["verdicts"][0]
    assert (code, found["verdict"], len(found["missing"])) == (0, "not tested", 1)
    assert found["settle"] == "1 of 6 runs are missing"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("verdict", "nowhere"), "nowhere"),
        (("verdict", "plan.yaml"), "run `rankwise compare plan.yaml` first"),
        (("verdict", "plan.yaml", "--profile", "smok"), "did you mean 'smoke'?"),
        (("verdict", "empty"), "empty is no run folder"),
        (("verdict", "empty", "--profile", "smoke"), "--profile: is for a plan's file; empty is a run folder"),
        (("compare", "plan.yaml", "--seeds", "4", "--quick"), "2 problems"),
        (("compare", "plan.yaml", "--seeds", "4"), "--seeds: is for a comparison without a plan"),
        (("compare", "--profile", "smoke"), "--profile: is for a plan; name the plan's file first"),
        (("plan", "check", "nowhere.yaml"), "nowhere.yaml"),
    ],
)  # fmt: skip
def test_used_wrongly(file, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    code, text = rankwise(*words)
    assert code == 2
    assert message in text


def test_a_plan_that_cannot_answer_its_claims_does_not_run(file, tmp_path):
    write(tmp_path, seeds=1)
    code, text = rankwise("compare", "plan.yaml", "--output", "out")
    assert code == 2
    assert "one seed says nothing about seeds" in text
    assert not (tmp_path / "out").exists()
    code, text = rankwise("plan", "check", "plan.yaml", "--no-probe")
    assert code == 2
    assert "error: seeds: one seed" in text


@pytest.mark.slow
def test_check_prints_runs_parameters_and_cost(file):
    code, text = rankwise("plan", "check", "plan.yaml", "--profile", "smoke")
    assert code == 0, text
    assert "p, profile smoke: 4 runs = 2 arms × 1 tasks × 1 budgets × 2 seeds" in text
    assert "glora at r=4: 165,888 parameters" in text
    assert "at most 5)" in text
    data = json.loads(rankwise("plan", "check", "plan.yaml", "--no-probe", "--json")[1])
    assert (data["runs"], data["estimated_seconds"]) == (6, None)


@pytest.mark.slow
def test_a_plan_runs_and_goes_on(file, tmp_path):
    code, text = rankwise("compare", "plan.yaml", "--profile", "smoke", "--output", "out", "--json")
    assert code == 0, text
    first = json.loads(text)
    assert {each["verdict"] for each in first["verdicts"]} <= {"supported", "refuted", "inconclusive"}
    assert [row["seeds"] for row in first["runs"]] == [2, 2]
    with Store(tmp_path / "out" / "store.sqlite") as store:
        begun = [record.run_id for record in store.runs()]
    again = json.loads(rankwise("compare", "plan.yaml", "--profile", "smoke", "--output", "out", "--json")[1])
    assert again["verdicts"] == first["verdicts"]
    more = PLAN | {
        "claims": [*PLAN["claims"], CLAIM | {"id": "R", "arm": "random"}],
        "arms": PLAN["arms"] | {"random": "random"},
    }
    file.write_text(yaml.safe_dump(more))
    grown = json.loads(rankwise("compare", "plan.yaml", "--profile", "smoke", "--output", "out", "--json")[1])
    assert [each["post_hoc"] for each in grown["verdicts"]] == [False, False, True]
    assert grown["verdicts"][:1] == first["verdicts"][:1]
    with Store(tmp_path / "out" / "store.sqlite") as store:
        assert [record.run_id for record in store.runs()][: len(begun)] == begun
        assert len(store.runs()) == 6


@pytest.mark.slow
def test_a_comparison_from_flags_can_be_judged_and_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--methods", "lora,glora", "--seeds", "2", "--steps", "2", "--batch-size", "4", "--output", "out")
    code, text = rankwise("compare", *flags)
    assert code == 0, text
    found = json.loads(rankwise("verdict", "out", "--json")[1])
    assert [(each["id"], each["post_hoc"]) for each in found["verdicts"]] == [("glora-beats-lora", False)]
    again = json.loads(rankwise("compare", "out/plan.yaml", "--output", "out", "--json")[1])
    assert again["verdicts"] == found["verdicts"]
