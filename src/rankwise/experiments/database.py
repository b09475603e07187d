"""How the results store's file is opened, locked and explained: everything about SQLite that is not about runs.

Every trouble becomes one `StoreError` that names the file, says what is wrong and what to do. A file that is
damaged, or that another program wrote, is never changed.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rankwise.errors import StoreError
from rankwise.experiments.migrations import MIGRATIONS, applied, migrate, schema

_WAIT_SECONDS = 30.0
_CHECK_BYTES = 64 * 2**20
"""Files up to this size are checked for damage when opened (a fraction of a second), larger ones as they are read."""

_DAMAGED = "the file is damaged; it was left as it is. Restore a copy, or move it away and start anew"
_READ_ONLY = "{kind} is read-only. Give yourself write permission, or choose another folder"

# What SQLite says (start of the error's symbolic name, part of its text) -> what is wrong and what to do.
_TROUBLE = (
    ("SQLITE_FULL", "disk is full", "the disk is full. Free some space and run the same command again"),
    ("SQLITE_READONLY", "readonly", _READ_ONLY.format(kind="the file")),
    ("SQLITE_CANTOPEN", "unable to open", "the file cannot be opened. Check that its folder exists and can be written"),
    ("SQLITE_BUSY", "locked", f"another process has kept it locked for {_WAIT_SECONDS:.0f} s. Wait for it, or end it"),
    ("SQLITE_NOTADB", "not a database", _DAMAGED),
    ("SQLITE_CORRUPT", "malformed", _DAMAGED),
    ("SQLITE_IOERR", "I/O error", "the disk failed to read or write it. Check the disk, then run the command again"),
)


class Database:
    """The open file at `path`, created with its folders where missing and brought to the newest schema.

    Raises:
        StoreError: the file is damaged, of another program, of a newer Rankwise, or cannot be written. Every method
            may raise it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_file(path)
        with self.explained():
            self.connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
        try:
            with self.explained():
                self.connection.row_factory = sqlite3.Row
                self._check_content()
                self.connection.execute("PRAGMA foreign_keys = ON")
                self._use_write_ahead_log()
                self.connection.execute("PRAGMA synchronous = NORMAL")  # with the log: safe against a crash
                if len(self._applied()) < len(MIGRATIONS):
                    with self.transaction():
                        migrate(self.connection, self._applied())  # read again: another process may have been first
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        """Close the file; what was written is kept."""
        with self.explained():
            self.connection.close()

    def read(self, query: str, values: Sequence[str] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self.explained():
            return self.connection.execute(query, values).fetchall()

    def schema(self) -> str:
        """The tables as commented SQL."""
        with self.explained():
            return schema(self.connection)

    @contextmanager
    def transaction(self, mode: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """All or nothing: commits at the end, rolls back on any error; `DEFERRED` shows readers one state."""
        with self.explained():
            self.connection.execute(f"BEGIN {mode}")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # SQLite has rolled back already after some errors
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn SQLite's errors into a `StoreError`."""
        try:
            yield
        except sqlite3.Error as error:
            name, text = getattr(error, "sqlite_errorname", ""), str(error)
            known = (advice for start, part, advice in _TROUBLE if name.startswith(start) or part in text)
            advice = next(known, "the results store could not be used")
            raise StoreError(f"{self.path}: {advice} (SQLite: {text})") from error

    def _check_content(self) -> None:
        """Refuse damaged, foreign and newer files before anything in them changes."""
        if self.path.stat().st_size <= _CHECK_BYTES:
            verdict = self.connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise StoreError(f"{self.path}: {_DAMAGED} (SQLite: {verdict.splitlines()[-1].strip()})")
        self._applied()

    def _applied(self) -> set[str]:
        done = applied(self.connection)
        if done is None:
            raise StoreError(f"{self.path}: a SQLite file of another program, not a results store. Choose another path")
        if unknown := sorted(done - {migration.__name__ for migration in MIGRATIONS}):
            raise StoreError(
                f"{self.path}: written by a newer Rankwise (it has had '{', '.join(unknown)}', which this version does "
                f"not know). Upgrade Rankwise, or choose another path"
            )
        return done

    def _use_write_ahead_log(self) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                self.connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                # When several processes create one store, SQLite reports a lock here at once, without waiting.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def _check_file(path: Path) -> None:
    """Refuse what SQLite would notice only later, or say in other words."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise StoreError(f"{path}: this is a folder; the results store is a file")
        head = b""
        if path.exists():
            with path.open("rb") as file:
                head = file.read(16)
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"{path}: the store cannot be opened: {reason}. Choose a path you can write") from error
    if head and head != b"SQLite format 3\0":
        raise StoreError(f"{path}: not a results store (no SQLite file), or a damaged one; it was left as it is. "
                         f"Choose another path, restore a copy, or move it away")  # fmt: skip
    for needed, kind in ((path.parent, "the folder"), (path, "the file")):
        if needed.exists() and not os.access(needed, os.W_OK):
            raise StoreError(f"{path}: {_READ_ONLY.format(kind=kind)}")
