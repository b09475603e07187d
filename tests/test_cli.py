"""The command line as a person meets it: exit codes, one clear message, no traceback, JSON that parses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rankwise import cli
from rankwise.experiments.store import Store

PROGRAM = [sys.executable, "-m", "rankwise"]


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
def tiny(model_folder, data_file):
    return [
        *("--task", data_file, "--text", "sentence", "--label", "verdict", "--model", model_folder),
        *("--steps", 4, "--batch-size", 4, "--seeds", "1", "--methods", "lora,glora", "--budget", "r=2"),
    ]


def test_version_and_help(call):
    assert call("--version")[1].startswith("rankwise ")
    code, out, _ = call("compare", "--help")
    assert code == 0
    assert "--budget" in out


def test_list(call):
    names = json.loads(call("list", "--json")[1])
    assert {"lora", "glora", "peft_adalora", "full"} <= set(names["methods"])
    assert {"record", "estimate", "norm_of_mean", "exact"} <= set(names["signals"])
    assert all(what for entries in names.values() for what in entries.values())
    assert "docstrings" in call("list")[1]


def test_compare_report_and_rerun(call, tiny, tmp_path):
    code, out, _ = call("compare", *tiny, "--output", tmp_path / "out")
    assert code == 0
    assert "glora" in out
    assert "results.json" in out
    code, out, err = call("compare", *tiny, "--output", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "out/results.json").read_text())
    assert err.count("from the store") == 2
    code, out, _ = call("report", tmp_path / "out", "--markdown")
    assert out.startswith("| method |")
    code, out, _ = call("report", tmp_path / "out")
    assert "accuracy" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "lots"], "cannot read budget 'lots'"),
        (["--methods", "lorra"], "unknown method 'lorra', did you mean 'lora'"),
        (["--task", "glue/rtee"], "did you mean 'glue/rte'"),
        (["--task", "missing.csv"], "missing.csv"),
        (["--model", "no/such-model"], "cannot load model 'no/such-model'"),
        (["--model", "/nowhere/model"], "model folder /nowhere/model does not exist"),
        (["--steps", "0"], "--steps"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_use_of_compare(call, tmp_path, words, message):
    code, out, err = call("compare", "--output", tmp_path / "out", *words)
    assert code == 2
    assert message in " ".join(err.split())
    assert out == ""


def test_output_folder_that_cannot_be_written(call, tiny, tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    code, _, err = call("compare", *tiny, "--output", tmp_path / "out")
    assert code == 2
    assert f"cannot write {tmp_path / 'out'}: Permission denied; choose another --output" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write to read-only folders")
def test_read_only_output_folder(call, tiny, tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    code, _, err = call("compare", *tiny, "--output", tmp_path / "out")
    assert code == 2
    assert "cannot write" in err


def test_run_check_and_overrides(call, tmp_path, model_folder, data_file):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {model_folder}\n"
        f"task: {{name: files, path: {data_file}, text: [sentence], label: verdict}}\n"
        "method: {name: glora, budget: r=2, warmup: 2}\n"
        "training: {max_steps: 4, batch_size: 4, learning_rate: '1e-3'}\n"
    )
    code, out, _ = call("config", "check", config, "--json")
    assert code == 0
    assert json.loads(out)[0]["canonical"]
    code, out, _ = call("run", config, "training.max_steps=3", "--output", tmp_path / "out", "--json")
    assert code == 0
    (run,) = json.loads(out)["runs"]
    with Store(tmp_path / "out/store.sqlite") as store:
        assert store.get(run["run_id"]).steps == 3
    code, out, err = call("run", config, "training.batch_size=0", "method.warmupp=3", "--output", tmp_path / "x")
    assert code == 2
    assert "training.batch_size" in err
    assert "method.warmupp" in err
    assert "did you mean" in err
    assert not (tmp_path / "x").exists()
    code, out, _ = call("config", "check", config, "training.max_steps=2", "method.warmup=2")
    assert code == 2
    assert "method.warmup" in out


def test_import_of_a_record(call, tmp_path):
    record = Path(__file__).parent / "data/record.txt"
    code, out, _ = call("config", "import", record, "--output", tmp_path)
    assert code == 0
    files = [Path(line) for line in out.split()]
    assert len(files) == 2
    code, out, _ = call("config", "check", *files)
    assert code == 0
    assert "[34]" in out
    assert "[32]" in out
    code, _, err = call("config", "import", tmp_path / "none.txt")
    assert code == 2
    assert "none.txt" in err


def test_report_of_no_run_folder(call, tmp_path):
    code, _, err = call("report", tmp_path)
    assert code == 2
    assert "is no run folder" in err


def test_export_inspect_and_truncate(call, tiny, tmp_path, model_folder):
    code, _, _ = call("compare", *tiny, "--output", tmp_path / "out")
    assert code == 0
    code, out, err = call("export", tmp_path / "out", "--output", tmp_path / "no")
    assert (code, out) == (2, "")
    assert "holds 2 runs, 2 fit" in err
    assert not (tmp_path / "no").exists()
    chosen = ["--method", "glora", "--seed", 0]
    for form in ("compact", "uniform", "merged"):
        code, out, _ = call("export", tmp_path / "out", *chosen, "--form", form, "--output", tmp_path / form, "--json")
        assert code == 0
        assert json.loads(out)["form"] == form
        assert "glora" in (tmp_path / form / "README.md").read_text()
    code, out, _ = call("inspect", tmp_path / "uniform", "--json")
    assert code == 0
    assert {module["rank"] for module in json.loads(out)["modules"].values()} == {8}
    code, out, _ = call("inspect", tmp_path / "out", *chosen, "--plot", tmp_path / "ranks.png")
    assert code == 0
    assert "bert.encoder.layer.1.output.dense" in out
    assert "SGLang: " in out
    assert (tmp_path / "ranks.png").is_file()
    code, out, _ = call("truncate", tmp_path / "compact", "--keep", "50%", "--output", tmp_path / "cut")
    assert code == 0
    assert "parameters 1,792 -> " in out
    code, out, err = call("truncate", tmp_path / "compact", "--keep", "50%", "--output", tmp_path / "cut")
    assert (code, out) == (2, "")
    assert "exists and is not empty" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "nowhere", "--output", "out"], "checkpoint nowhere does not exist"),
        (
            ["export", "nowhere", "--form", "tiny", "--output", "out"],
            "--form: 'tiny' is none of compact, uniform, merged",
        ),
        (["export", "nowhere"], "Missing option '--output'"),
        (["inspect", "nowhere"], "checkpoint nowhere does not exist"),
        (["inspect", "nowhere", "--plot", "a.gif"], "cannot draw a '.gif' file"),
        (["truncate", "no/where", "--keep", "4%", "--output", "out"], "nor to be had from the Hugging Face hub"),
    ],
)
def test_wrong_use_of_the_adapter_commands(call, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*words)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_push_without_a_token_writes_nothing(call, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    code, out, err = call("export", tmp_path, "--push", "me/adapter", "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "no Hugging Face token" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_interrupt_keeps_finished_runs_and_the_same_command_goes_on(tiny, tmp_path):
    """A real SIGINT in the middle; then the same command does the rest."""
    words = [*PROGRAM, "compare", *map(str, tiny), "--seeds", "4", "--steps", "60", "--output", str(tmp_path / "out")]
    with subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell passes it on as ignored
    ) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("[2/8]"):
            assert process.poll() is None
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130
    assert "the same command goes on" in rest
    assert "Traceback" not in rest
    with Store(tmp_path / "out/store.sqlite") as store:
        done = {record.run_id for record in store.runs("completed")}
        assert len(done) >= 2
        assert not store.runs("running")
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert again.stderr.count("from the store") == len(done)
    with Store(tmp_path / "out/store.sqlite") as store:
        assert len(store.runs("completed")) == 8
        assert done <= {record.run_id for record in store.runs("completed")}


@pytest.mark.slow
def test_killed_run_goes_on_from_its_last_state(tmp_path, model_folder, data_file):
    """kill -9 in the middle of a run that saves its state: afterwards the losses are those of a run never killed."""
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {model_folder}\n"
        f"task: {{name: files, path: {data_file}, text: [sentence], label: verdict}}\n"
        "method: {name: glora, budget: r=2, warmup: 30}\n"
        "training: {max_steps: 400, batch_size: 4, save_every: 20}\n"
    )
    words = [*PROGRAM, "run", str(config), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob("out/unfinished/*/checkpoint-4[0-9]/trainer_state.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    subprocess.run(words, capture_output=True, check=True)
    subprocess.run([*words[:-1], str(tmp_path / "whole")], capture_output=True, check=True)
    curves = []
    for name in ("out", "whole"):
        with Store(tmp_path / name / "store.sqlite") as store:
            (record,) = store.runs("completed")
            trace = [(row.step, row.event, row.module, row.rank) for row in store.rank_trace(record.run_id)]
            curves.append((store.steps(record.run_id, "train_loss"), record.metrics, trace))
    assert curves[0] == curves[1]
    assert len(curves[0][0]) == 400


def test_no_cell_speaks_to_the_terminal(capsys):
    """Classes and texts of a user's data, and claims that a model wrote, stand in tables."""
    from rich.table import Table

    from rankwise.cli_options import print_answer, show
    from rankwise.experiments.adapter_commands import Answer
    from rankwise.experiments.shown import Shown

    said = "yes\x1b]0;owned\x07\u202e\x9b2J [b]no"
    table = Table("class")
    table.add_row(said.replace("[", "\\["))
    show(Shown((table,), (said,), {}), False)
    print_answer(Answer((said,), {}, (table,)), False)
    out = capsys.readouterr().out
    assert out.count("2J [b]no") == 4
    assert not any(sign in out for sign in "\x1b\x07\u202e\x9b")


def test_what_a_file_says_cannot_move_the_terminals_cursor(call, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text('{"model": "minilm", "metod\\e[2Jx\\u202e": 3}')
    code, _, err = call("run", file)
    assert code == 2
    assert "metod" in err
    assert not any(sign in err for sign in "\x1b\u202e")
