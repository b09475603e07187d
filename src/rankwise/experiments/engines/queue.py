"""Engine `queue`: the runs wait in a database, and `rankwise worker` processes on any machine do them.

This process puts the runs in, waits and collects. It may be stopped: the workers go on, and the same command collects
what they have done.
"""

import os
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rankwise.errors import ConfigError, DataError, Finding, OutputError
from rankwise.experiments.engines.contract import ENGINES, PATIENCE_SECONDS, Ended, Engine, EngineOptions
from rankwise.experiments.engines.parcel import unpack
from rankwise.experiments.engines.queue_contract import RunQueue, Through, patiently
from rankwise.experiments.engines.queue_postgres import PostgresQueue, is_url
from rankwise.experiments.engines.queue_sqlite import SqliteQueue
from rankwise.experiments.engines.work import Job
from rankwise.experiments.redact import without_passwords
from rankwise.experiments.store_merge import Shard

AT_ONCE = 50
FOLDER_ID = "queue.id"
"""File in a run folder that names its runs in queues."""
LOOK_SECONDS = 60.0
"""How often to look whether somebody has taken runs out of the queue: they would be waited for in vain."""


def open_queue(where: str) -> RunQueue:
    """The queue in PostgreSQL (a URL), or in a SQLite file (a path).

    Raises:
        StoreError: it cannot be reached or used.
        MissingPackageError: the driver is not installed.
    """
    return PostgresQueue(where) if is_url(where) else SqliteQueue(Path(where))


def folder_id(folder: Path) -> str:
    """What names a run folder's runs in a queue, made up once. A path would not do: other machines have it as well.

    Raises:
        OutputError: the folder cannot be written.
    """
    file = folder / FOLDER_ID
    if not file.is_file():
        mine = folder / f".{FOLDER_ID}-{uuid.uuid4().hex}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mine.write_text(f"{folder.name}-{uuid.uuid4().hex}", encoding="utf-8")
            with suppress(FileExistsError):  # another command in the same folder was first
                os.link(mine, file)
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror}") from error
        finally:
            mine.unlink(missing_ok=True)
    return file.read_text(encoding="utf-8")


@ENGINES.register("queue")
class QueueEngine(Engine):
    """Plain `rankwise worker` processes; `address` is the queue: `postgresql://…`, or a SQLite file on one machine."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self.at_once(options)
        self._queue = open_queue(options.address or "")
        self._jobs: dict[str, Job] = {}
        self._collected: list[str] = []
        self._plan, self._looked = "", time.monotonic()

    @classmethod
    def at_once(cls, options: EngineOptions) -> int | None:
        """Only the workers know; but they need a queue."""
        if not options.address:
            message = "is missing; name the queue: postgresql://USER@HOST/DATABASE, or a SQLite file on this machine"
            raise ConfigError("engine 'queue'", [Finding("--address", message)])
        return options.workers

    def room(self) -> int:
        """No limit: waiting is what a queue is for."""
        return 10**9

    def start(self, jobs: Sequence[Job]) -> None:
        """Put the runs into the queue, those left by an earlier command excepted."""
        self._plan = folder_id(Path(jobs[0].output))
        self._jobs.update((job.run_id, job) for job in jobs)
        self._forget()
        pairs = [(job.run_id, job.config) for job in jobs]
        patiently(lambda: self._queue.add(self._plan, pairs, self.options.retries))
        where = without_passwords(self.options.address or "")
        print(
            f"{len(jobs)} runs wait in the queue; `rankwise worker {where}` does them, here or elsewhere",
            file=sys.stderr,
        )

    def ended(self) -> list[Ended]:
        """Runs that came back; their shards and checkpoints are put where a local worker would have put them."""
        self._forget()  # the store has what the last call returned
        patiently(self._queue.free_lost)
        found = patiently(lambda: self._queue.through(self._plan, AT_ONCE))
        ended = [self._receive(one) for one in found if one.run_id in self._jobs]
        self._collected += [one.run_id for one in found]
        if not found:
            time.sleep(PATIENCE_SECONDS)
            ended = self._vanished()
        return ended

    def close(self, *, stop: bool) -> None:
        """Leave the queue. What waits in it stays, and workers go on with it."""
        if not stop:
            self._forget()
        self._queue.close()

    def _receive(self, one: Through) -> Ended:
        shard = Shard(Path(self._jobs.pop(one.run_id).output), one.run_id)
        try:
            if one.result is not None:
                unpack(one.result, shard)
            if one.error is not None:
                shard.fail(one.error)
        except DataError as error:
            shard.fail(str(error))
        return Ended(one.run_id)

    def _forget(self) -> None:
        if self._collected:
            patiently(lambda: self._queue.remove(self._plan, self._collected))
            self._collected.clear()

    def _vanished(self) -> list[Ended]:
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return []
        self._looked = time.monotonic()
        there = patiently(lambda: self._queue.known(self._plan))
        gone = [run_id for run_id in self._jobs if run_id not in there]
        for run_id in gone:
            del self._jobs[run_id]
        return [Ended(run_id, "taken out of the queue by somebody else") for run_id in gone]
