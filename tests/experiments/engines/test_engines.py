"""Engines on one machine: every run once, none missing, failures named, lost workers replaced; same bits everywhere."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import engine_runs
import pytest
from engine_runs import configs

from rankwise.errors import ConfigError, TrainingError, UnknownNameError
from rankwise.experiments.commands import CompareOptions, plan_of
from rankwise.experiments.engines import EngineOptions, Resources, run_with
from rankwise.experiments.progress import Silent
from rankwise.experiments.store import Store

TESTS = Path(engine_runs.__file__).parent


def needs(package):
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"{package} is not installed: pip install 'rankwise[scale]'")


ENGINES = [
    pytest.param("local", None, id="local"),
    pytest.param("ray", None, id="ray", marks=needs("ray")),
    pytest.param("slurm", "local", id="slurm", marks=needs("submitit")),
]
everywhere = pytest.mark.parametrize(("engine", "address"), ENGINES)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Workers find the functions of `engine_runs` by name."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


class Told(Silent):
    def __init__(self):
        self.ended = []

    def end(self, record, *, reused):
        self.ended.append((record.run_id, reused))


def go(engine, address, wanted, output, function, **options):
    told = Told()
    given = EngineOptions(workers=2, address=address, function=function, **options)
    with Store(output / "store.sqlite") as store:
        try:
            run_with(engine, wanted, store, output, told, given)
        finally:
            told.records = {record.run_id: record for record in store.runs()}
    return told


@pytest.mark.slow
@everywhere
def test_failures_are_named_and_lost_workers_replaced(engine, address, tmp_path):
    wanted = configs(7)
    ids = [config.run_id for config in wanted]
    output = tmp_path / "out"
    with pytest.raises(TrainingError) as caught:
        go(engine, address, wanted, output, engine_runs.troubled, retries=1)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 of 7 runs failed")
    said = {line.strip().partition(": ")[0]: line.partition(": ")[2] for line in lines[1:]}
    assert said[ids[1]] == "its data is wrong"
    assert said[ids[2]] == "ZeroDivisionError: by nothing"
    assert said[ids[4]].startswith("its worker was lost 2 times (")
    with Store(output / "store.sqlite") as store:
        assert store.completed() == {ids[seed] for seed in (0, 3, 5, 6)}
        assert (store.get(ids[1]).status, store.get(ids[1]).error) == ("failed", "its data is wrong")
    tries = {seed: len((tmp_path / f"tries-{seed}").read_text().split()) for seed in range(7)}
    assert tries == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2, 5: 1, 6: 1}
    told = go(engine, address, wanted, output, engine_runs.noop)  # the same command again: only what is missing
    assert {run_id for run_id, _ in told.ended} == {ids[seed] for seed in (1, 2, 4)}
    assert len([record for record in told.records.values() if record.status == "completed"]) == 7
    assert [path.name for path in output.iterdir() if not path.name.startswith("store")] in ([], ["shards"])


def tiny_runs(model_folder, data_file, **changes):
    given = {"methods": "lora,glora", "text": "sentence", "label": "verdict", "budget": "r=2", "seeds": "2"}
    options = given | {"model": str(model_folder), "task": str(data_file), "steps": 60, "batch_size": 4} | changes
    return plan_of(CompareOptions(**options)).configs()


def saving(config):
    return config.model_copy(update={"training": config.training.model_copy(update={"save_every": 20})})


@pytest.mark.slow
@everywhere
def test_same_bits_as_in_process_also_after_kill_9(engine, address, tmp_path, model_folder, data_file):
    """Seed 0 is killed at step 45 and goes on from the state of step 40; all is as if nothing had happened."""
    wanted = [saving(config) for config in tiny_runs(model_folder, data_file)]
    here, there = tmp_path / "here/out", tmp_path / "there/out"
    here.mkdir(parents=True)
    there.mkdir(parents=True)
    with Store(here / "store.sqlite") as store:
        run_with(None, wanted, store, here, Silent())
    go(engine, address, wanted, there, engine_runs.killed_in_training)
    resumed = sorted(path.read_text() for path in there.parent.glob("killed-*"))
    assert len(resumed) == 4
    assert [bool(text) for text in resumed] == [False, False, True, True]  # seed 1, seed 0
    assert all("checkpoint-40" in text.split() for text in resumed[2:])
    with Store(here / "store.sqlite") as one, Store(there / "store.sqlite") as other:
        assert one.completed() == other.completed() == {config.run_id for config in wanted}
        for config in wanted:
            run_id = config.run_id
            assert one.get(run_id).metrics == other.get(run_id).metrics
            assert one.get(run_id).checkpoint == other.get(run_id).checkpoint
            assert one.steps(run_id, "train_loss") == other.steps(run_id, "train_loss")
            assert one.rank_trace(run_id) == other.rank_trace(run_id)
            weights = [place / "checkpoints" / run_id / "adapter_model.safetensors" for place in (here, there)]
            assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not (there / "unfinished").exists()


@pytest.mark.slow
@everywhere
def test_run_that_takes_too_long_is_ended(engine, address, tmp_path):
    wanted = configs(2)
    with pytest.raises(TrainingError, match="1 of 2 runs failed") as caught:
        go(engine, address, wanted, tmp_path / "out", engine_runs.endless, retries=0, resources=Resources(minutes=0.1))
    if engine == "local":
        assert f"{wanted[1].run_id}: its worker was lost 1 times (it took longer than 0.1 minutes)" in str(caught.value)


STARTED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import engine_runs
from rankwise.experiments.engines import EngineOptions, run_with
from rankwise.experiments.progress import Silent
from rankwise.experiments.store import Store
from rankwise.interrupts import interruptible
if __name__ == "__main__":
    output = Path({output!r})
    options = EngineOptions(workers=2, address={address!r}, function=engine_runs.endless)
    with interruptible(), Store(output / "store.sqlite") as store:
        run_with({engine!r}, engine_runs.configs(3), store, output, Silent(), options)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.slow
@pytest.mark.timeout(1200)
@everywhere
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_stopped_command_takes_its_workers_along(engine, address, sent, tmp_path):
    if (engine, sent) == ("slurm", signal.SIGKILL):
        pytest.skip("Slurm jobs outlive the command on purpose; their results are taken by the next one")
    script, output = tmp_path / "start.py", tmp_path / "out"
    script.write_text(STARTED.format(tests=str(TESTS), output=str(output), address=address, engine=engine))
    process = subprocess.Popen(
        [sys.executable, script],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell passes it on as ignored
    )
    deadline = time.monotonic() + 400
    marks = [tmp_path / "tries-1", tmp_path / "tries-2"]
    try:
        while not all(mark.exists() and mark.read_text().strip() for mark in marks):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(sent)
        process.communicate(timeout=300)
    finally:
        process.kill()  # or a failure here fails other tests too
        process.wait()
        process.stderr.close()
    workers = [int(mark.read_text()) for mark in marks]
    deadline = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.1)
    told = go(engine, address, configs(3), output, engine_runs.noop)
    assert all(record.status == "completed" for record in told.records.values())
    assert len(told.records) == 3
    assert (configs(1)[0].run_id, False) not in told.ended  # it was in the store, or in a shard, before


def test_wrong_use_is_explained(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown engine 'lokal', did you mean 'local'\? Known: local"):
        go("lokal", None, configs(1), tmp_path, engine_runs.noop)
    with pytest.raises(ConfigError) as caught:
        EngineOptions(workers=0, retries=-1, resources=Resources(cpus=0, minutes=0)).check()
    assert [finding.path for finding in caught.value.findings] == ["--workers", "--retries", "--cpus", "--minutes"]
    with pytest.raises(ConfigError, match=r"more than there is: --cpus 9999: \d+ cores here"):
        go("local", None, configs(1), tmp_path, engine_runs.noop, resources=Resources(cpus=9999))


@needs("submitit")
def test_slurm_settings_are_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot read gpu; write 'local', or Slurm's settings"):
        go("slurm", "gpu", configs(1), tmp_path, engine_runs.noop)


def test_engine_under_torchrun_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="starts its own workers; leave out `torchrun`"):
        go("local", None, configs(1), tmp_path, engine_runs.noop)
