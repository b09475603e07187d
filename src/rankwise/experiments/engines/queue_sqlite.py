"""The queue in a SQLite file: for several workers on one machine, with nothing to install."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from rankwise.errors import StoreError
from rankwise.experiments.engines.queue_contract import RunQueue

_WAIT_SECONDS = 60.0


class SqliteQueue(RunQueue):
    """Opens the queue at `path`, creating it where it is missing. One writer at a time; the others wait."""

    bytes_type = "BLOB"
    now = "((julianday('now') - 2440587.5) * 86400.0)"
    skip_locked = ""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
            tables = {row[0] for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and "rankwise_queue" not in tables:
                self._connection.close()
                raise StoreError(f"{path}: a SQLite file that is no queue (a results store?); choose another path")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
        self.create()

    def again(self) -> Self:
        """The same queue over a connection of its own, for another thread."""
        return type(self)(self._path)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; waits until no other process writes."""
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def execute(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query with `?` for values."""
        with self._explained():
            return self._connection.execute(query, values).fetchall()

    def execute_many(self, query: str, values: Sequence[Sequence[object]]) -> None:
        """One change with many values."""
        with self._explained():
            self._connection.executemany(query, values)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"queue {self._path}: cannot be used: {error}") from error
