"""`compare PLAN`, `verdict` and `plan check`, as they are typed."""

import io
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from rankwise.cli import app
from rankwise.errors import AllocationError, DivergedError, RankwiseError, TrainingError
from rankwise.experiments import compare as comparing
from rankwise.experiments import plan_model, store_merge
from rankwise.experiments.engines.work import Job, do
from rankwise.experiments.frozen import freeze
from rankwise.experiments.judgement import completed
from rankwise.experiments.plan_commands import compare_plan
from rankwise.experiments.plan_runs import load_plan
from rankwise.experiments.progress import Silent
from rankwise.experiments.records import RunRecord
from rankwise.experiments.runner import data_of
from rankwise.experiments.spreading import How
from rankwise.experiments.store import Store
from rankwise.experiments.store_merge import Shard
from rankwise.experiments.sweep_locks import locks_of
from rankwise.experiments.tuning import trials
from rankwise.experiments.verdicts import verdicts
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


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "peft", "datasets"):
            raise ModuleNotFoundError(f"no module named {name}", name=name)
sys.meta_path.insert(0, Absent())
from rankwise.cli import main
sys.argv = ["rankwise", "report", sys.argv[1]]
main()
"""


def test_a_plans_report_is_rebuilt_where_there_is_no_torch(file, tmp_path):
    fill(file, tmp_path / "out")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "supported" in done.stdout
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize("metric", ["train_seconds", "peak_memory_bytes"])
def test_times_and_memory_from_two_machines_are_not_compared(file, tmp_path, metric):
    write(tmp_path, claims=[CLAIM | {"id": "T", "metric": metric}])
    plan = fill(file, tmp_path / "out")
    with Store(tmp_path / "out" / "store.sqlite") as store:
        found = completed([run.config.run_id for run in plan.runs], store)
    held = {"peak_memory_bytes": 9e8}
    found = {name: replace(record, costs=held) for name, record in found.items()}
    (claim,) = verdicts(plan.config, plan.runs, found)
    assert claim.word != "not tested"
    last = plan.runs[-1].config.run_id
    moved = found | {last: replace(found[last], environment={"machine": "another one"})}
    (claim,) = verdicts(plan.config, plan.runs, moved)
    assert claim.word == "not tested"
    assert claim.settle.startswith("its runs were measured on 2 different machines")


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


def test_what_is_done_is_judged_although_a_run_failed(file, tmp_path, monkeypatch):
    plan = fill(file, tmp_path / "out", without=1)

    def fails(self, configs, store, output, reporter):
        raise TrainingError("1 of 6 runs failed")

    monkeypatch.setattr(How, "carry_out", fails)
    code, text = rankwise("compare", file, "--output", "out")
    assert (code, text.splitlines()[0]) == (2, "1 of 6 runs failed")
    assert text.endswith("What is done is judged in out/verdicts.json")
    found = json.loads((tmp_path / "out" / "verdicts.json").read_text())["verdicts"][0]
    assert found["missing"] == [plan.runs[-1].config.run_id]


def invented(monkeypatch, fails, kind=DivergedError):
    """Runs that take no time: each is recorded with an accuracy of its own, but those that `fails` says fail."""

    def run(config, store, output, reporter):
        if config.run_id in store.completed():
            return
        name = config.method.name
        record = RunRecord(run_id=config.run_id, method=name, task="docstrings", model="m", seed=config.seed,
                           budget="r=4", parameters=1000, train_seconds=1.0)  # fmt: skip
        store.begin(record)
        if fails(config):
            store.fail(record.run_id, "failed", f"{DivergedError.MARK}the loss is nan at step 3")
            raise kind(f"{DivergedError.MARK}the loss is nan at step 3")
        value = 0.5 + 0.1 * (name == "glora") + 0.001 * config.seed - abs(config.training.learning_rate - 0.003)
        store.finish(replace(record, status="completed", metrics={"accuracy": MetricValue(value, 0.05, 60)}))

    monkeypatch.setattr(comparing, "run", run)


TUNED = {"protocol": {"tuning": {"learning_rates": [1e-3, 3e-3, 9e-3, 1e3]}}}


def test_a_trial_that_diverges_counts_as_worst_and_does_not_end_the_plan(file, tmp_path, monkeypatch, capsys):
    write(tmp_path, **TUNED)
    invented(monkeypatch, lambda config: config.training.learning_rate > 1)
    made = compare_plan(file, profile=None, output=tmp_path / "out", store=None, command="c", how=How())
    assert "2 of 8 trials failed, and count as the worst:\n  " in capsys.readouterr().err
    assert {row["learning_rate"] for row in made.content["runs"]} == {3e-3}
    assert [row["seeds"] for row in made.content["runs"]] == [3, 3]
    assert any("lora on docstrings at r=4: the run at learning rate 1000 failed" in line for line in made.lines)
    invented(monkeypatch, pytest.fail)  # the same command does nothing again, not even what diverged
    again = compare_plan(file, profile=None, output=tmp_path / "out", store=None, command="c", how=How())
    assert "failed" not in capsys.readouterr().err
    assert (again.content, again.lines) == (made.content, made.lines)


def test_a_lone_trial_that_cannot_be_allocated_counts_as_worst(file, tmp_path, monkeypatch, capsys):
    """The one that extends the grid of a plan with one arm: a single run raises its own error."""
    tuning = {"tuning": {"learning_rates": [1e-3, 3e-3]}}
    write(tmp_path, arms={"lora": "lora"}, claims=[], protocol=tuning)
    invented(monkeypatch, lambda config: config.training.learning_rate > 3e-3, kind=AllocationError)
    made = compare_plan(file, profile=None, output=tmp_path / "out", store=None, command="c", how=How())
    assert "the loss is nan" in capsys.readouterr().err
    assert {row["learning_rate"] for row in made.content["runs"]} == {3e-3}


@pytest.mark.parametrize(
    ("words", "workers", "said"),
    [
        ([], 1, "one run after the other in this process; --engine spreads them"),
        (["--workers", "3"], 3, "as --workers says"),
        (["--engine", "local", "--cpus", str(os.cpu_count())], 1, "as --engine local does it without --workers"),
        (["--engine", "slurm", "--workers", "2", "--address", "local"], 2, "as --workers says"),
        (["--engine", "slurm"], 500, "as --engine slurm does it without --workers"),
        (["--engine", "ray", "--address", "auto"], 1, "so one is assumed; --workers says more"),
        (["--engine", "queue", "--address", "q"], 1, "so one is assumed; --workers says more"),
    ],
)
def test_dry_run_says_how_many_workers_it_counts_with(file, tmp_path, words, workers, said):
    fill(file, tmp_path / "out", without=2)
    code, text = rankwise("compare", file, "--output", "out", "--dry-run", *words)
    assert code == 0, text
    assert text.startswith(f"6 runs: 4 are in the store, 2 would be done by {workers} worker")
    assert said in text.splitlines()[1]
    assert len(list((tmp_path / "out").iterdir())) == len({"comparison.json", "plan.json", "store.sqlite"})


@pytest.mark.parametrize(("first", "left"), [(1e-3, 4), (1e3, 1)])
def test_a_search_that_is_not_over_is_shown_as_far_as_it_is(file, tmp_path, monkeypatch, first, left):
    write(tmp_path, **TUNED)

    def stops(config):
        if config.method.name == "lora" and config.training.learning_rate >= first:
            raise KeyboardInterrupt
        return False

    invented(monkeypatch, stops)
    with pytest.raises(KeyboardInterrupt):
        compare_plan(file, profile=None, output=tmp_path / "out", store=None, command="c", how=How())
    code, text = rankwise("verdict", "out", "--json")
    assert code == 0, text
    found = json.loads(text)
    assert found["notes"][0] == f"note: {left} trials of the tuning are missing; the learning rates may change"
    assert [row["arm"] for row in found["tuning"] if row["value"] is None] == ["lora"] * left
    assert not any(row["chosen"] for row in found["tuning"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No learning rate was searched" not in page
    assert "docstrings, r=4: accuracy by learning rate" in page


def test_dry_run_knows_the_tuned_runs_that_are_done(file, tmp_path, monkeypatch):
    write(tmp_path, **TUNED)
    invented(monkeypatch, lambda config: False)
    compare_plan(file, profile=None, output=tmp_path / "out", store=None, command="c", how=How())
    assert rankwise("compare", file, "--output", "out", "--dry-run")[1].startswith("14 runs: 14 are in the store")


def test_dry_run_counts_what_does_not_depend_on_the_budget_once(file, tmp_path):
    write(tmp_path, arms=PLAN["arms"] | {"full": "full"}, budgets=["r=2", "r=4"])
    assert rankwise("compare", file, "--output", "out", "--dry-run")[1].startswith("15 runs: 0 are in the store")


def test_options_of_engines_need_an_engine(file, tmp_path):
    code, text = rankwise("compare", file, "--workers", "4", "--address", "auto", "--output", "out")
    assert code == 2
    assert "2 problems" in text
    assert "--workers: is for an engine; name one with --engine (local, ray, slurm or queue)" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "queue"], "--address: is missing; name the queue"),
        (["--engine", "cluster"], "cluster"),
        (["--engine", "slurm", "--address", "gpu"], "cannot read gpu"),
        (["--engine", "local", "--cpus", "9999"], "one run needs more than there is"),
        (["--engine", "local", "--minutes", "-1"], "--minutes: -1.0 given"),
    ],
)
def test_an_engine_that_cannot_work_is_refused_before_the_plan_is_frozen(file, tmp_path, words, message):
    code, text = rankwise("compare", file, "--output", "out", *words)
    assert code == 2
    assert message in text
    assert not (tmp_path / "out").exists()


def test_a_trial_whose_worker_is_lost_is_not_taken_for_a_bad_rate(file, tmp_path, monkeypatch):
    def lost(self, configs, store, output, reporter):
        raise TrainingError("1 of 8 runs failed: its worker was lost 3 times")

    write(tmp_path, **TUNED)
    monkeypatch.setattr(How, "carry_out", lost)
    with pytest.raises(TrainingError, match=r"^1 of 8 runs failed: its worker was lost"):
        compare_plan(file, profile=None, output=tmp_path / "out", store=None, command="c", how=How())


def listener(monkeypatch):
    """An event: a command said that it waits."""
    heard = threading.Event()

    class Listening(io.StringIO):
        def write(self, text):
            made = super().write(text)
            if "this one waits for it" in text:
                heard.set()
            return made

    monkeypatch.setattr(sys, "stderr", Listening())
    return heard


def test_two_commands_at_once_do_every_run_once(file, tmp_path, monkeypatch):
    begun, start, heard = [], threading.Barrier(2), listener(monkeypatch)
    invented(monkeypatch, lambda config: begun.append(config.run_id) or (len(begun) == 1 and not heard.wait(60)))
    configs = [run.config for run in load_plan(file).runs[:2]]

    def command():
        with Store(tmp_path / "store.sqlite") as store:
            start.wait()
            return comparing.run_all(configs, store, tmp_path, Silent())

    with ThreadPoolExecutor(2) as pool:
        found = [future.result() for future in [pool.submit(command) for _ in range(2)]]
    assert found == [begun, begun] == [[config.run_id for config in configs]] * 2
    assert f"another command is doing {begun[0]}; this one waits for it" in sys.stderr.getvalue()
    assert not locks_of(tmp_path / "store.sqlite").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_the_last_of_several_commands_takes_the_folder_of_locks_away(file, tmp_path, monkeypatch, fails):
    invented(monkeypatch, lambda config: fails)
    locks_of(tmp_path / "store.sqlite").mkdir()  # as the first command made it, which could not take it away
    with Store(tmp_path / "store.sqlite") as store, pytest.raises(DivergedError) if fails else nullcontext():
        comparing.run_all([load_plan(file).runs[0].config], store, tmp_path, Silent())
    assert not locks_of(tmp_path / "store.sqlite").exists()


def test_a_command_waits_for_the_worker_of_an_engine_and_takes_what_it_made(file, tmp_path, monkeypatch):
    begun, working, heard = [], threading.Event(), listener(monkeypatch)
    invented(monkeypatch, lambda config: begun.append(config.run_id))
    config = load_plan(file).runs[0].config
    shard = Shard(tmp_path, config.run_id)

    def worker():
        with shard.locked():
            working.set()
            assert heard.wait(60)
            with Store(shard.path) as store:
                comparing.run(config, store, tmp_path, Silent())

    with Store(tmp_path / "store.sqlite") as store, ThreadPoolExecutor(1) as pool:
        made = pool.submit(worker)
        assert working.wait(30)
        comparing.run_all([config], store, tmp_path, Silent())
        made.result()
        assert begun == [config.run_id]
        assert store.completed() == {config.run_id}
    assert f"another command is doing {config.run_id}; this one waits for it" in sys.stderr.getvalue()
    assert not shard.path.parent.exists()


def test_the_worker_of_an_engine_leaves_a_run_that_a_command_did_meanwhile(file, tmp_path, monkeypatch):
    begun, working, arrived = [], threading.Event(), threading.Event()

    def wait_for(file, busy):
        if busy is None:  # the worker, which has no message: its lock file is open, so it will see what becomes of it
            arrived.set()
        really(file, busy)

    really = store_merge._wait_for
    monkeypatch.setattr(store_merge, "_wait_for", wait_for)
    monkeypatch.setattr("rankwise.experiments.engines.work.limit_threads", lambda cpus: None)
    invented(monkeypatch, lambda config: begun.append(config.run_id) or working.set() or not arrived.wait(60))
    config = load_plan(file).runs[0].config
    job = Job(config.run_id, config.canonical(), str(tmp_path), function=unwanted)

    def command():
        with Store(tmp_path / "store.sqlite") as store:
            return comparing.run_all([config], store, tmp_path, Silent())

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(command)
        assert working.wait(30)
        assert do(job) is False
        assert made.result() == begun == [config.run_id]
    assert not (tmp_path / "shards").exists()


def unwanted(config, store, output, reporter=None):
    raise AssertionError("the run is done already")


def test_a_run_that_fails_does_not_keep_the_others_from_being_done(file, tmp_path, monkeypatch):
    invented(monkeypatch, lambda config: (config.method.name, config.seed) == ("lora", 0))
    code, text = rankwise("compare", file, "--output", "out", "--json")
    assert code == 2
    assert text.startswith("1 of 6 runs failed; the others are kept")
    with Store(tmp_path / "out" / "store.sqlite") as store:
        assert len(store.runs("completed")) == 5


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


def test_what_a_plan_costs_is_that_of_its_trials_and_its_passes_without_a_module_too(file, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_model, "pace_of", lambda config: plan_model.Pace(step=10.0, batch=1.0, modules=72))
    write(tmp_path, evaluation={"batch_size": 16})
    runs = 6 * (2 * 10.0 + 4)  # 2 arms, 3 seeds; 2 steps, 60 examples in 4 batches
    assert plan_model.seconds_of(load_plan(file, None)) == {"docstrings": runs}
    write(tmp_path, evaluation={"batch_size": 16, "premise": True})
    assert plan_model.seconds_of(load_plan(file, None)) == {"docstrings": runs + 6 * 4 * 73}
    write(tmp_path, evaluation={"batch_size": 16}, **TUNED)
    plan = load_plan(file, None)
    held = len(next(iter(data_of(trials(plan)[0].config).validation.values())))
    assert plan_model.seconds_of(plan) == {"docstrings": runs + 2 * 4 * (2 * 10.0 + -(-held // 16))}


@pytest.mark.slow
def test_check_prints_runs_parameters_and_cost(file):
    code, text = rankwise("plan", "check", "plan.yaml", "--profile", "smoke")
    assert code == 0, text
    assert "p, profile smoke: 4 runs = 2 arms × 1 tasks × 1 budgets × 2 seeds" in text
    assert "glora at r=4: 165,888 parameters" in text
    assert "at most 5)" in text
    data = json.loads(rankwise("plan", "check", "plan.yaml", "--no-probe", "--json")[1])
    assert (data["runs"], data["estimated_seconds"]) == (6, None)
    write(file.parent, arms=PLAN["arms"] | {"full": "full"}, budgets=["r=2", "r=4"], **TUNED)
    text = rankwise("plan", "check", "plan.yaml", "--no-probe")[1]
    runs = "15 runs = 3 arms × 1 tasks × 2 budgets × 3 seeds (what does not depend on the budget once)"
    assert f"p: {runs}, after 20 trials of learning rates" in text


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
