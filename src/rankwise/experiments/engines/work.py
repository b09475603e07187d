"""What a worker does with one run: the same for every engine, on whatever machine it is."""

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rankwise.errors import RankwiseError
from rankwise.experiments.progress import Reporter
from rankwise.experiments.runner import run
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.store import Store
from rankwise.experiments.store_merge import Shard

RunFunction = Callable[[RunConfig, Store, Path, "Reporter | None"], object]
"""Does a run and writes it into a store; `runner.run`, or something that costs nothing, to measure what the rest does.

Must be a module-level function: it is named to the workers, not sent.
"""

TOO_LONG = 124
"""Exit code of a worker whose run took more than its minutes; `timeout` uses the same."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Resources:
    """What one run may use. `gpus` below 1: several runs share one; `minutes`: a run that takes longer is ended."""

    cpus: int = 1
    gpus: float = 0
    memory_gib: float | None = None
    minutes: float | None = None


def one_run(config: RunConfig, store: Store, output: Path, reporter: Reporter | None = None) -> object:
    """A real run."""
    return run(config, store, output, reporter)


@dataclass(frozen=True)
class Job:
    """One run as it travels: plain values, and a function by its name."""

    run_id: str
    config: str
    output: str
    resources: Resources = field(default_factory=Resources)
    function: RunFunction = one_run


def do(job: Job, reporter: Reporter | None = None, *, settle: Callable[[], None] | None = None) -> bool:
    """Do a run into its shard. A run that fails has not failed its worker: why is in the shard's error file.

    Args:
        settle: what to do with the shard while nobody else in this folder can work on the run.

    Returns:
        Whether it was done; False: another process settled and removed it while this one waited for it.
    """
    limit_threads(job.resources.cpus)
    shard = Shard(Path(job.output), job.run_id)
    with shard.locked() as wanted:
        if wanted:
            with _failures_noted(shard):
                shard.error.unlink(missing_ok=True)
                config = RunConfig.model_validate_json(job.config)  # imports the methods: not the run's own time
                with _time_limit(job.resources.minutes), Store(shard.path) as store:
                    job.function(config, store, shard.output, reporter)
            if settle is not None:
                settle()
    return wanted


@contextmanager
def _failures_noted(shard: Shard) -> Iterator[None]:
    try:
        yield
    except RankwiseError as error:
        shard.fail(str(error))
    except Exception as error:
        traceback.print_exc()  # a fault of the program: where it is, into the worker's own log
        shard.fail(f"{type(error).__name__}: {error}")


def thread_variables(cpus: int) -> dict[str, str]:
    """Environment variables that keep a process to so many threads, if they are set before it starts."""
    return dict.fromkeys(_THREADS, str(cpus))


def limit_threads(cpus: int) -> None:
    """Keep this process to so many threads: workers that take more than their part slow all of them down."""
    os.environ.update(thread_variables(cpus))
    if torch := sys.modules.get("torch"):  # it has read the variables already
        torch.set_num_threads(cpus)


@contextmanager
def _time_limit(minutes: float | None) -> Iterator[None]:
    """End this process when the time is over; the run is retried from its last saved state, like any lost run."""
    if minutes is None:
        yield
        return
    timer = threading.Timer(minutes * 60, os._exit, (TOO_LONG,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
