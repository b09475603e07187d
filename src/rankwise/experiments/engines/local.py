"""Engine `local`: processes on this machine, each of which does one run after another."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.engines.contract import ENGINES, PATIENCE_SECONDS, Ended, Engine, EngineOptions
from rankwise.experiments.engines.work import TOO_LONG, Job, Resources, do, thread_variables
from rankwise.experiments.environment import machine
from rankwise.interrupts import interruptible

GRACE_SECONDS = 30.0
"""How long a worker may take to stop after an interrupt before it is killed."""


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: "Connection[Job | None, str]"
    job: Job | None = None


@ENGINES.register("local")
class LocalEngine(Engine):
    """Processes on this machine; a worker that dies is replaced."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._places: list[_Worker | None] = [None] * self.at_once(options)

    @classmethod
    def at_once(cls, options: EngineOptions) -> int:
        """As many as were asked for, or as this machine carries."""
        return workers_here(options)

    def room(self) -> int:
        """Workers without a run."""
        return sum(worker is None or worker.job is None for worker in self._places)

    def start(self, jobs: Sequence[Job]) -> None:
        """Give each run to a worker that is free, starting those that are missing."""
        left = list(jobs)
        for place, worker in enumerate(self._places):
            if left and (worker is None or worker.job is None):
                self._give(place, left.pop(0))

    def ended(self) -> list[Ended]:
        """Runs whose worker said that it is through, or died."""
        busy = {place: worker for place, worker in enumerate(self._places) if worker is not None and worker.job}
        ears = [ear for worker in busy.values() for ear in (worker.pipe, worker.process.sentinel)]
        ready = connection.wait(ears, timeout=PATIENCE_SECONDS)
        return [
            self._ended(place, worker)
            for place, worker in busy.items()
            if worker.pipe in ready or worker.process.sentinel in ready
        ]

    def close(self, *, stop: bool) -> None:
        """End all workers; those at work are interrupted first, and killed if they do not listen."""
        workers = [worker for worker in self._places if worker is not None]
        for worker in workers:
            if worker.job is None or not stop:
                worker.pipe.close()
            elif worker.process.pid:
                with suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signal.SIGINT)
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._places = [None] * len(self._places)

    def _give(self, place: int, job: Job) -> None:
        worker = self._places[place]
        try:
            if worker is not None:
                worker.pipe.send(job)
        except OSError:  # it died while it had nothing to do
            worker = None
        if worker is None:
            worker = self._places[place] = _start(place, self.options.resources)
            with suppress(OSError):  # it died at once: `ended` hears that
                worker.pipe.send(job)
        worker.job = job

    def _ended(self, place: int, worker: _Worker) -> Ended:
        run_id = worker.job.run_id if worker.job else ""
        try:
            if worker.pipe.poll():
                worker.pipe.recv()
                worker.job = None
                return Ended(run_id)
        except (EOFError, OSError):
            pass
        worker.process.join()
        worker.pipe.close()
        self._places[place] = None
        return Ended(run_id, _how(worker.process.exitcode, self.options.resources))


def workers_here(options: EngineOptions) -> int:
    """How many runs this machine carries at once, by its cores, its memory and its GPUs.

    Raises:
        ConfigError: one run needs more than the machine has.
    """
    needs, here = options.resources, machine()
    cores, memory = int(str(here["cores"] or 1)), int(str(here["memory_bytes"] or 0))
    limits = {f"--cpus {needs.cpus}: {cores} cores here": cores // needs.cpus}
    if needs.memory_gib and memory:
        limits[f"--memory {needs.memory_gib:g}: {memory / 2**30:.1f} GiB here"] = int(memory / 2**30 / needs.memory_gib)
    if needs.gpus:
        gpus = len(gpus_here())
        limits[f"--gpus {needs.gpus:g}: {gpus} GPUs here"] = int(gpus / needs.gpus)
    if short := [what for what, count in limits.items() if not count]:
        raise ConfigError(
            "engine 'local'", [Finding("", f"one run needs more than there is: {what}") for what in short]
        )
    return options.workers or min(limits.values())


def gpus_here() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def variables(place: int, resources: Resources) -> dict[str, str]:
    """Environment of the worker at a place: its threads, and its own GPUs or its share of one."""
    found = thread_variables(resources.cpus) | {"TOKENIZERS_PARALLELISM": "false"}
    if resources.gpus:
        here = gpus_here()
        if resources.gpus < 1:
            mine = [here[place // int(1 / resources.gpus) % len(here)]]
        else:
            count = int(resources.gpus)
            mine = [here[(place * count + i) % len(here)] for i in range(count)]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return found


def _start(place: int, resources: Resources) -> _Worker:
    """A new worker. Its variables are set here, since libraries read them while they are imported."""
    spawn = get_context("spawn")
    here, there = spawn.Pipe()
    new = variables(place, resources)
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        process = spawn.Process(target=_work, args=(there,), name=f"rankwise-worker-{place}")
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    there.close()  # the worker's end is open only there, so that its death is heard here
    return _Worker(process, here)


def _work(pipe: "Connection[str, Job | None]") -> None:
    """What a worker is: it takes runs until there are no more."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Ctrl-C goes to the command alone, which passes it on once
    threading.Thread(target=_follow, daemon=True).start()
    with suppress(EOFError, KeyboardInterrupt, BrokenPipeError), interruptible():
        while job := pipe.recv():
            do(job)
            pipe.send(job.run_id)


def _follow() -> None:
    """Go when the command is gone: a run that goes on without it would be done again by the next command."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _how(exit_code: int | None, resources: Resources) -> str:
    if exit_code == TOO_LONG:
        return f"it took longer than {resources.minutes:g} minutes"
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"
