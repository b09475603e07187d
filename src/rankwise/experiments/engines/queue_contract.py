"""A queue of runs in a database, for plain worker processes on any number of machines. SQL that both databases speak.

A row is one run of one plan. A worker *claims* it for some seconds (a lease) and says again and again that it is still
at work; if it falls silent, the lease runs out and another worker takes the run. What it made comes back as bytes. Rows
go when the plan's command has collected them, so what is in the queue is what is left to do.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from rankwise.errors import StoreError

T = TypeVar("T")

TRIES = 6
"""Attempts to use a database that may be away for a moment; the pauses double, from one second."""

STATES = ("waiting", "running", "completed", "failed")

_TABLE = """CREATE TABLE IF NOT EXISTS rankwise_queue (
    plan TEXT NOT NULL,                  -- names the run folder of the command that wants the run
    run_id TEXT NOT NULL,
    position INTEGER NOT NULL,           -- order in which runs are taken
    config TEXT NOT NULL,                -- canonical JSON of the run config
    state TEXT NOT NULL CHECK (state IN ('waiting', 'running', 'completed', 'failed')),
    attempts INTEGER NOT NULL,           -- times a worker has taken it; with `run_id` it names the claim
    retries INTEGER NOT NULL,            -- lost workers that are forgiven
    worker TEXT,                         -- who has it, or had it last
    expires DOUBLE PRECISION,            -- end of the lease, seconds since 1970 by the database's clock
    error TEXT,                          -- why it failed
    result {bytes},                      -- a parcel: the run's shard and checkpoint
    PRIMARY KEY (plan, run_id)
)"""
_INDICES = (
    "CREATE INDEX IF NOT EXISTS rankwise_queue_waiting ON rankwise_queue (position) WHERE state = 'waiting'",
    "CREATE INDEX IF NOT EXISTS rankwise_queue_running ON rankwise_queue (expires) WHERE state = 'running'",
    "CREATE INDEX IF NOT EXISTS rankwise_queue_through ON rankwise_queue (plan) WHERE state IN ('completed', 'failed')",
)
# A lease that ran out while nobody took the run does no harm: the next claim would have counted another attempt.
_MINE = "plan = ? AND run_id = ? AND attempts = ? AND state IN ('running', 'waiting')"


@dataclass(frozen=True)
class Claim:
    """A run that a worker has taken; `attempt` tells it from an earlier claim of the same run."""

    plan: str
    run_id: str
    config: str
    attempt: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What names the claim in the table."""
        return (self.plan, self.run_id, self.attempt)


@dataclass(frozen=True)
class Through:
    """A run that came back: its parcel, or why it failed."""

    run_id: str
    error: str | None
    result: bytes | None


def patiently(action: Callable[[], T]) -> T:
    """Do something with a queue; while its database is being restarted, for half a minute, try again.

    Raises:
        StoreError: it cannot be used, still.
    """
    for number in range(TRIES - 1):
        try:
            return action()
        except StoreError:
            time.sleep(2**number)
    return action()


class RunQueue(ABC):
    """The queue; a subclass brings the connection and the few words in which its database differs.

    Raises:
        StoreError: the database cannot be reached or used; no message holds a password. Every method may raise it.
    """

    bytes_type: str
    now: str
    skip_locked: str

    @abstractmethod
    def again(self) -> Self:
        """The same queue over a connection of its own, for another thread."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    @abstractmethod
    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""

    @abstractmethod
    def execute(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query with `?` for values; of a change, those it says it returns."""

    @abstractmethod
    def execute_many(self, query: str, values: Sequence[Sequence[object]]) -> None:
        """One change with many values."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def create(self) -> None:
        """Make the table where it is missing."""
        with self.transaction():
            self.execute(_TABLE.format(bytes=self.bytes_type))
            for index in _INDICES:
                self.execute(index)

    def add(self, plan: str, runs: Sequence[tuple[str, str]], retries: int) -> None:
        """Put `(run_id, config)` pairs at the end. Those that are there stay as they are; failed ones wait again."""
        with self.transaction():
            ((last,),) = self.execute("SELECT coalesce(max(position), 0) FROM rankwise_queue")
            self.execute_many(
                "INSERT INTO rankwise_queue (plan, run_id, position, config, state, attempts, retries) "
                "VALUES (?, ?, ?, ?, 'waiting', 0, ?) ON CONFLICT (plan, run_id) DO UPDATE SET "
                "state = 'waiting', attempts = 0, error = NULL, result = NULL WHERE rankwise_queue.state = 'failed'",
                [(plan, run_id, last + i, config, retries) for i, (run_id, config) in enumerate(runs, start=1)],
            )

    def claim(self, worker: str, seconds: float) -> Claim | None:
        """Take the first run that waits, or that a silent worker has lost; None if there is none now."""
        with self.transaction():
            self.free_lost()
            found = self.execute(
                f"UPDATE rankwise_queue SET state = 'running', attempts = attempts + 1, worker = ?, "
                f"expires = {self.now} + ? WHERE (plan, run_id) = (SELECT plan, run_id FROM rankwise_queue "
                f"WHERE state = 'waiting' ORDER BY position LIMIT 1 {self.skip_locked}) "
                f"RETURNING plan, run_id, config, attempts",
                (worker, seconds),
            )
        return Claim(*found[0]) if found else None

    def free_lost(self) -> None:
        """Runs whose lease has run out wait again; or have failed, if that happened too often."""
        self.execute(
            f"UPDATE rankwise_queue SET state = CASE WHEN attempts > retries THEN 'failed' ELSE 'waiting' END, "
            f"error = 'its worker was lost ' || attempts || ' times (the last one: ' || worker || ')' "
            f"WHERE (plan, run_id) IN (SELECT plan, run_id FROM rankwise_queue "
            f"WHERE state = 'running' AND expires < {self.now} {self.skip_locked})"
        )

    def keep(self, claim: Claim, seconds: float) -> bool:
        """Say that the worker is still at it. False: the run was given to another one."""
        query = f"UPDATE rankwise_queue SET state = 'running', expires = {self.now} + ? WHERE {_MINE} RETURNING 1"
        return bool(self.execute(query, (seconds, *claim.key)))

    def complete(self, claim: Claim, result: bytes) -> bool:
        """Hand in what a run made. False: it belongs to another worker now, nothing was taken."""
        query = f"UPDATE rankwise_queue SET state = 'completed', error = NULL, result = ? WHERE {_MINE} RETURNING 1"
        return bool(self.execute(query, (result, *claim.key)))

    def fail(self, claim: Claim, error: str, result: bytes | None = None) -> bool:
        """Say that the run itself failed, with what it left; it is not tried again by itself."""
        query = f"UPDATE rankwise_queue SET state = 'failed', error = ?, result = ? WHERE {_MINE} RETURNING 1"
        return bool(self.execute(query, (error, result, *claim.key)))

    def give_back(self, claim: Claim) -> bool:
        """Let another worker have the run, without counting this attempt."""
        query = f"UPDATE rankwise_queue SET state = 'waiting', attempts = attempts - 1 WHERE {_MINE} RETURNING 1"
        return bool(self.execute(query, claim.key))

    def through(self, plan: str, most: int) -> list[Through]:
        """Runs of a plan that came back and were not removed yet."""
        query = (
            "SELECT run_id, error, result FROM rankwise_queue WHERE plan = ? AND state IN ('completed', 'failed') "
            "ORDER BY run_id LIMIT ?"
        )
        found = self.execute(query, (plan, most))
        return [Through(run_id, error, None if result is None else bytes(result)) for run_id, error, result in found]

    def remove(self, plan: str, run_ids: Sequence[str]) -> None:
        """Forget runs that came back."""
        query = "DELETE FROM rankwise_queue WHERE plan = ? AND run_id = ? AND state IN ('completed', 'failed')"
        with self.transaction():
            self.execute_many(query, [(plan, run_id) for run_id in run_ids])

    def known(self, plan: str) -> set[str]:
        """All runs of a plan that are in the queue."""
        return {run_id for (run_id,) in self.execute("SELECT run_id FROM rankwise_queue WHERE plan = ?", (plan,))}

    def counts(self) -> dict[str, int]:
        """Runs by state."""
        found = self.execute("SELECT state, count(*) FROM rankwise_queue GROUP BY state")
        return dict.fromkeys(STATES, 0) | {state: int(count) for state, count in found}
