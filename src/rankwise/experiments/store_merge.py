"""Shards: the small store that one run fills on its own, until its rows are moved into the one store.

Every run of an engine writes `<output>/shards/<run_id>.sqlite` and nobody else touches that file, because SQLite is not
safe to share over network file systems and because a worker may be killed at any moment. One process, the one that
opened the one store, merges a shard when its run has ended: all rows of a run or none, and once.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from rankwise.errors import OutputError, StoreError
from rankwise.experiments.records import RunRecord
from rankwise.experiments.results import write_atomically
from rankwise.experiments.runner import CHECKPOINTS
from rankwise.experiments.store import Store
from rankwise.interrupts import check_interrupt

try:
    import fcntl
except ImportError:  # Windows: one guard less against doing a run twice at the same time
    fcntl = None  # type: ignore[assignment]

SHARDS = "shards"

Inputs = Callable[[], Mapping[str, object]]


@dataclass(frozen=True)
class Shard:
    """The files of one run between its worker and the one store; they go when the run is completed there."""

    output: Path
    run_id: str

    @property
    def path(self) -> Path:
        """The shard's store."""
        return self.output / SHARDS / f"{self.run_id}.sqlite"

    @property
    def error(self) -> Path:
        """Text file that says why the run failed; absent while it has not."""
        return self.path.with_suffix(".error")

    @property
    def lock(self) -> Path:
        """File that the process at work on the run keeps locked; the lock goes with the process, however it ends."""
        return self.path.with_suffix(".lock")

    @contextmanager
    def locked(self, busy: Callable[[], None] | None = None) -> Iterator[bool]:
        """Wait until no other process works on the run; `busy` is called if that takes a while.

        Gives False if it was settled meanwhile, so that there is nothing to do.

        Raises:
            OutputError: the run folder cannot be written.
        """
        with self._opened() as file:
            if fcntl is not None:
                _wait_for(file, busy)
            yield self._still_there(file)

    def _opened(self) -> IO[str]:
        while True:
            check_interrupt()
            try:
                self.lock.parent.mkdir(parents=True, exist_ok=True)
                return self.lock.open("a")
            except FileNotFoundError:  # a process that is through took the empty folder away just now
                continue
            except OSError as error:
                raise OutputError(f"cannot write {self.lock.parent}: {error.strerror or error}") from error

    def _still_there(self, file: IO[str]) -> bool:
        try:
            return os.fstat(file.fileno()).st_ino == self.lock.stat().st_ino
        except FileNotFoundError:
            return False

    def fail(self, message: str) -> None:
        """Note why the run failed."""
        write_atomically(self.error, message.encode())

    def why_failed(self) -> str | None:
        """What `fail` noted."""
        return self.error.read_text(encoding="utf-8") if self.error.exists() else None

    def remove(self) -> None:
        """Remove the files, and the folder with the last of them."""
        for path in (self.path, *(Path(f"{self.path}{end}") for end in ("-wal", "-shm")), self.error, self.lock):
            path.unlink(missing_ok=True)

    def remove_folder(self) -> None:
        """Remove the folder of all shards if it is empty."""
        with suppress(OSError):
            self.path.parent.rmdir()


def _wait_for(file: IO[str], busy: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if busy is not None:
            busy()
        fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def no_worker(shard: Shard, store: Store, inputs: Inputs, busy: Callable[[], None]) -> Iterator[None]:
    """Keep the workers of engines in this run folder from a run that is done here, without one.

    What a worker has finished already comes into the store first, and the run is found there.
    """
    done = False
    while not done:
        with shard.locked(busy) as ours:
            if ours:
                settle(store, shard, inputs)
                done = True
                try:
                    yield
                finally:
                    shard.remove()
                    shard.remove_folder()


@dataclass(frozen=True)
class Settled:
    """What became of a run whose worker is through with it: `lost` means that nobody knows, so it has to go on."""

    outcome: Literal["completed", "failed", "lost"]
    reason: str = ""


def settle(store: Store, shard: Shard, inputs: Inputs | None = None) -> Settled:
    """Move what a worker left in a shard into the store. Doing it twice changes nothing.

    Args:
        inputs: finds the hashes of data and model as this process sees them; a run made with others has failed.

    Raises:
        StoreError: `store` cannot be written. (A shard that cannot be read is a failed run.)
    """
    found, trouble = _read(store, shard, inputs)
    if trouble is None and found is not None and found.status == "completed":
        shard.remove()
        return Settled("completed")
    reason = trouble or shard.why_failed()
    return Settled("lost") if reason is None else Settled("failed", reason)


def _read(store: Store, shard: Shard, inputs: Inputs | None) -> tuple[RunRecord | None, str | None]:
    """The shard's record, after its rows were copied, or what is wrong with it."""
    if not shard.path.exists():
        return None, None
    try:
        source = Store(shard.path)
    except StoreError as error:
        return None, str(error)
    with source:
        record = source.get(shard.run_id)
        if record is None or record.status == "running":
            return record, None
        if record.status == "completed" and (wrong := _foreign(record, shard, inputs)):
            return record, wrong
        store.take(source, record.run_id, _checkpoint(record, store, shard))
        return record, None


def _foreign(record: RunRecord, shard: Shard, inputs: Inputs | None) -> str | None:
    """Why a completed run of a worker is not the one that was asked for."""
    there = record.environment.get("inputs")
    if inputs is not None and there is not None and there != (here := inputs()):
        return (
            f"its worker had other data or another model under the same names ({there} there, {here} here); give "
            "every worker the same files"
        )
    if record.checkpoint is not None and not (shard.output / CHECKPOINTS / record.run_id).is_dir():
        return f"its checkpoint is not in {shard.output / CHECKPOINTS}; workers must share the run folder"
    return None


def _checkpoint(record: RunRecord, store: Store, shard: Shard) -> str | None:
    """Where the checkpoint lies as the one store says it: relative to its own folder, or absolute."""
    if record.checkpoint is None:
        return None
    place = Path(CHECKPOINTS) / record.run_id
    same = store.path.parent.resolve() == shard.output.resolve()
    return str(place) if same else str((shard.output / place).resolve())
