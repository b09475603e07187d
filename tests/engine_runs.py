"""Runs for the tests of engines: some cost nothing, some die with their worker. Workers import them by name."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from rankwise.errors import DataError
from rankwise.experiments.progress import Silent
from rankwise.experiments.records import RunRecord
from rankwise.experiments.runner import run
from rankwise.experiments.schema import RunConfig
from rankwise.tasks.base import MetricValue

KILLED_AT = 45


def configs(count, method="lora"):
    return [RunConfig.model_validate({"method": method, "seed": seed}) for seed in range(count)]


def stubs(count):
    """What `noop` needs of configs, without the methods: they would bring torch."""
    named = [SimpleNamespace(name=name) for name in ("lora", "task", "model")]
    method, task, model = named
    return [SimpleNamespace(run_id=f"run-s{i}", method=method, task=task, model=model, seed=i) for i in range(count)]


def record_of(config):
    return RunRecord(config.run_id, config.method.name, config.task.name, config.model.name, config.seed, None)


def noop(config, store, output, reporter=None):
    """A run that is nothing but its rows."""
    seed = config.seed
    record = record_of(config)
    store.begin(record)
    store.add_steps(record.run_id, [(step, "train_loss", seed + step / 8) for step in range(1, 4)])
    store.add_ranks(record.run_id, 1, "start", {"query": seed % 5, "value": 2}, {"query": 0.5})
    store.add_predictions(record.run_id, "validation", [0, 1, seed % 2], [0, 1, 1])
    store.add_predictions(record.run_id, "extra", [1.0], [float("nan")])
    metrics = {"zeta": MetricValue(seed / 7, 0.1, 3), "alpha": MetricValue(float("nan"), 0.2, 3)}
    store.finish(
        replace(record, metrics=metrics, steps=3, train_seconds=0.3, parameters=seed, costs={"total_rank": seed / 3})
    )


def _tries(output, config):
    """How often this run was begun, this time included; counted in a file, because the process may die."""
    path = Path(output).parent / f"tries-{config.seed}"
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(path.read_text().split())


def once_each(config, store, output, reporter=None):
    """Costs nothing, and counts how often it was done."""
    _tries(output, config)
    noop(config, store, output, reporter)


def unhurried(config, store, output, reporter=None):
    """Takes long enough for another worker to come by."""
    time.sleep(0.3)
    noop(config, store, output, reporter)


def troubled(config, store, output, reporter=None):
    """Seed 1 is wrong, seed 2 a fault of the program, seed 3 loses its first worker, seed 4 every one."""
    tries = _tries(output, config)
    if config.seed == 1:
        store.begin(record_of(config))
        store.fail(config.run_id, "failed", "its data is wrong")
        raise DataError("its data is wrong")
    if config.seed == 2:
        raise ZeroDivisionError("by nothing")
    if (config.seed == 3 and tries == 1) or config.seed == 4:
        store.begin(record_of(config))
        os.kill(os.getpid(), signal.SIGKILL)
    noop(config, store, output, reporter)


def endless(config, store, output, reporter=None):
    """Seed 0 costs nothing, the others go on until somebody ends them."""
    if config.seed:
        _tries(output, config)
        store.begin(record_of(config))
        while True:
            time.sleep(0.05)
    noop(config, store, output, reporter)


class _KilledOnce(Silent):
    def __init__(self, mark):
        self._mark = mark

    def step(self, step, loss):
        if step == KILLED_AT and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def killed_in_training(config, store, output, reporter=None):
    """A real run whose first worker is killed -9 in the middle; seed 1 is left in peace."""
    mark = Path(output).parent / f"killed-{config.run_id}"
    if config.seed == 1:
        mark.touch()
    elif mark.exists():
        states = (Path(output) / "unfinished" / config.run_id).glob("checkpoint-*")
        mark.write_text(" ".join(sorted(path.name for path in states)))
    run(config, store, output, _KilledOnce(mark))
