"""The results store opened for looking only: nothing is created, changed, migrated or kept from being written."""

import os
import sqlite3
from pathlib import Path

from rankwise.errors import StoreError
from rankwise.experiments.database import Database
from rankwise.experiments.migrations import MIGRATIONS
from rankwise.experiments.store import Store

_WAIT_SECONDS = 5.0


class StoreReader(Store):
    """The store at `path` as it stands; use it as a context manager, and not for long: a reader keeps the log growing.

    SQLite itself refuses every write. Writers go on meanwhile.

    Raises:
        StoreError: there is no such file, it is no store, or one of an older or newer Rankwise. Every method may raise
            it; those that write always do.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._db = _ReadOnly(self.path)


class _ReadOnly(Database):
    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise StoreError(f"{path}: no such results store; nothing has been run there yet")
        with self.explained():
            self.connection = sqlite3.connect(_address(path), uri=True, timeout=_WAIT_SECONDS, isolation_level=None)
        try:
            with self.explained():
                self.connection.row_factory = sqlite3.Row
                if len(self._applied()) < len(MIGRATIONS):
                    raise StoreError(
                        f"{path}: written by an older Rankwise; `rankwise report` on its folder brings it up to date"
                    )
        except BaseException:
            self.connection.close()
            raise


def _address(path: Path) -> str:
    """Read-only; and where not even the log's index could be made beside the file, as a file that nobody writes."""
    log = path.with_name(f"{path.name}-wal")
    alone = not log.exists() and not os.access(path.parent, os.W_OK)
    return f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
