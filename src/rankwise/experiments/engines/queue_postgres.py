"""The queue in PostgreSQL: for workers on any number of machines."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from rankwise.errors import MissingPackageError, StoreError
from rankwise.experiments.engines.queue_contract import RunQueue
from rankwise.experiments.redact import HIDDEN, passwords, without_passwords

SCHEMES = ("postgresql://", "postgres://")
_CONNECT_SECONDS = 10
_LOCK = 0x72616E6B
"""Number of the lock under which the table is made: two workers that start together must not both make it."""


class PostgresQueue(RunQueue):
    """Connects to the database that a URL names."""

    bytes_type = "BYTEA"
    now = "extract(epoch FROM clock_timestamp())"
    skip_locked = "FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str, *, create: bool = True) -> None:
        self._url, self._psycopg = url, _package()
        self._deep = 0
        with self._explained():
            self._connection = self._connect()
        if create:
            with self.transaction():
                self.execute("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
                self.create()

    def again(self) -> Self:
        """The same queue over a connection of its own, for another thread."""
        return type(self)(self._url, create=False)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; one inside another is part of it."""
        with self._explained():
            self._revive()
        with self._explained(), self._connection.transaction():
            self._deep += 1
            try:
                yield
            finally:
                self._deep -= 1

    def execute(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query with `?` for values."""
        with self._explained():
            self._revive()
            cursor = self._connection.execute(_marked(query), values or None)
            return list(cursor.fetchall()) if cursor.description else []

    def execute_many(self, query: str, values: Sequence[Sequence[object]]) -> None:
        """One change with many values."""
        with self._explained(), self._connection.cursor() as cursor:
            cursor.executemany(_marked(query), values)

    def _connect(self) -> Any:  # noqa: ANN401 - a psycopg connection
        connection = self._psycopg.connect(self._url, autocommit=True, connect_timeout=_CONNECT_SECONDS)
        weakref.finalize(self, connection.close)  # a queue that is forgotten leaves none open on the server
        return connection

    def _revive(self) -> None:
        """Connect anew if the connection was lost, unless a transaction went with it."""
        if self._connection.closed and not self._deep:
            self._connection = self._connect()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the driver's errors into ours, without the password and without the error that may hold it."""
        message = None
        try:
            yield
        except self._psycopg.Error as error:
            message = " ".join(str(error).split())
        if message is not None:
            for secret in passwords(self._url):
                message = message.replace(secret, HIDDEN)
            raise StoreError(
                f"queue {without_passwords(self._url)}: cannot be used: {without_passwords(message)}"
            ) from None


def is_url(where: str) -> bool:
    """Whether a queue is named by a URL."""
    return where.startswith(SCHEMES)


def _marked(query: str) -> str:
    """`?` as this driver writes it."""
    return query.replace("?", "%s")


def _package() -> Any:  # noqa: ANN401 - the module
    try:
        import psycopg
    except ImportError as error:
        raise MissingPackageError(
            "a queue in PostgreSQL needs psycopg; install it with: pip install 'rankwise[postgres]'"
        ) from error
    return psycopg
