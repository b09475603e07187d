"""A plain worker process: takes runs from a queue, one after another, until there are none."""

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rankwise.errors import RankwiseError, StoreError
from rankwise.experiments.engines.parcel import forget, pack
from rankwise.experiments.engines.queue_contract import Claim, RunQueue, patiently
from rankwise.experiments.engines.work import Job, Resources, RunFunction, do, one_run
from rankwise.experiments.progress import Relay, Reporter, Silent
from rankwise.experiments.store_merge import Shard
from rankwise.interrupts import check_interrupt

BEATS_PER_LEASE = 4


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker works.

    Attributes:
        output: folder for states and results on their way; workers that share it go on with each other's lost runs.
        lease_seconds: silence after which a worker counts as lost.
        stay: wait for more runs when all are done.
    """

    output: Path
    resources: Resources = field(default_factory=Resources)
    lease_seconds: float = 60.0
    poll_seconds: float = 1.0
    stay: bool = False
    function: RunFunction = one_run


@dataclass
class Worked:
    """What a worker has done: the runs it completed and those that failed."""

    completed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def work_on(queue: RunQueue, options: WorkerOptions, reporter: Reporter | None = None) -> Worked:
    """Do runs until none is left, neither waiting nor with another worker who might be lost.

    Raises:
        StoreError: the queue cannot be used any more.
        KeyboardInterrupt: the present run went back into the queue.
    """
    done, name = Worked(), f"{platform.node()}:{os.getpid()}"
    while True:
        check_interrupt()
        claim = patiently(lambda: queue.claim(name, options.lease_seconds))
        if claim is not None:
            _carry_out(queue, claim, options, reporter or Silent(), done)
            continue
        counts = patiently(queue.counts)
        if not (options.stay or counts["waiting"] or counts["running"]):
            return done
        time.sleep(options.poll_seconds)


class _Guard(Relay):
    """Stops a run that was given to another worker."""

    def __init__(self, inner: Reporter) -> None:
        super().__init__(inner)
        self.lost = threading.Event()

    def step(self, step: int, loss: float | None) -> None:
        """Pass it on, unless the run is no longer ours."""
        if self.lost.is_set():
            raise StoreError("this worker was silent for too long, and the run was given to another one")
        super().step(step, loss)


def _carry_out(queue: RunQueue, claim: Claim, options: WorkerOptions, reporter: Reporter, done: Worked) -> None:
    output = options.output.resolve()
    job = Job(claim.run_id, claim.config, str(output), options.resources, options.function)
    shard, guard = Shard(output, claim.run_id), _Guard(reporter)

    def settle() -> None:
        if not guard.lost.is_set():
            _hand_in(queue, claim, shard, done)

    with _beating(queue, claim, options.lease_seconds, guard):
        try:
            # Another plan's run with this id, in this folder, came first and took its files along: ours is still to do.
            while not (guard.lost.is_set() or do(job, guard, settle=settle)):
                continue
        except KeyboardInterrupt:
            queue.give_back(claim)
            raise


def _hand_in(queue: RunQueue, claim: Claim, shard: Shard, done: Worked) -> None:
    """Put what a run left into the queue, and remove it here once it is there."""
    error = shard.why_failed()
    parcel = pack(shard) if error is None or shard.path.exists() else None
    if error is not None:
        if patiently(lambda: queue.fail(claim, error, parcel)):
            done.failed.append(claim.run_id)
            shard.error.unlink(missing_ok=True)
    elif parcel is not None and patiently(lambda: queue.complete(claim, parcel)):
        done.completed.append(claim.run_id)
        forget(shard, parcel)


@contextmanager
def _beating(queue: RunQueue, claim: Claim, seconds: float, guard: _Guard) -> Iterator[None]:
    """Say every quarter of a lease that the run is still in work, from a thread and connection of its own."""
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(queue, claim, seconds, guard, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _beat(queue: RunQueue, claim: Claim, seconds: float, guard: _Guard, over: threading.Event) -> None:
    while not over.wait(seconds / BEATS_PER_LEASE):
        try:
            with queue.again() as own:
                if not own.keep(claim, seconds):
                    guard.lost.set()
                    return
        except RankwiseError:  # the database is away: it may be back before the lease is over
            continue
