"""Locks on files: they tell at once that a process on this machine has died, however it died."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rankwise.errors import OutputError
from rankwise.interrupts import check_interrupt

_POLL_SECONDS = 0.2
_MOST_GONE = 100
"""Times that a folder may be taken away between making it and locking it; it takes microseconds."""
_GONE = (FileNotFoundError, FileExistsError)
"""What that looks like: it was made for another command, which is done and has left nothing in it."""


def locks_of(store: Path) -> Path:
    """Folder of the locks of all commands that share a results store."""
    return store.parent / f".{store.name}.locks"


@contextmanager
def locked(folder: Path, name: str, *, busy: Callable[[], None] | None = None, tidy: bool = False) -> Iterator[None]:
    """Hold the lock `name` in `folder`, waiting for whoever has it; a process that dies lets go of it.

    `busy` is called once if somebody else has it. `tidy`: neither the lock nor a folder that was made for it and stays
    empty is left behind.

    Raises:
        OutputError: the folder cannot be written.
    """
    gone = 0
    lock = FileLock(folder / f"{name}.lock")
    with _seen(folder) as seen:
        while True:
            check_interrupt()
            try:
                lock.acquire(timeout=_POLL_SECONDS)  # makes the folder
                break
            except Timeout:
                if busy is not None:
                    busy()
                    busy = None
            except OSError as error:
                gone += 1
                if gone > _MOST_GONE or not isinstance(error, _GONE):
                    raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
        try:
            yield
        finally:
            if tidy:
                with suppress(OSError):
                    _tidied(folder, f"{name}.lock", made=not _is(folder, seen))
            lock.release()


@contextmanager
def cleared(folder: Path) -> Iterator[None]:
    """Afterwards a folder of nothing but locks goes, if there is none left in it."""
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def alive(folder: Path) -> Iterator[Path]:
    """A file of this worker's own, locked as long as it lives; `is_dead` asks about it.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = folder.resolve() / f"worker-{uuid.uuid4().hex}.lock"
    with cleared(folder), locked(path.parent, path.stem, tidy=True):
        yield path


def is_dead(worker: Path) -> bool:
    """Whether the worker with this file has died. False where that cannot be told: on other machines."""
    if not worker.is_file():
        return False
    lock = FileLock(worker)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError):
        return False
    lock.release()
    return True


@contextmanager
def _seen(folder: Path) -> Iterator[int | None]:
    """The folder as it is now, to be known again; None: there is none. While it is open, no other gets its number."""
    try:
        seen = os.open(folder, os.O_RDONLY)
    except OSError:
        yield None
        return
    try:
        yield seen
    finally:
        os.close(seen)


def _is(folder: Path, seen: int | None) -> bool:
    """Whether it is the folder that was `seen`, and not another one made in its place."""
    return seen is not None and os.path.samestat(os.fstat(seen), folder.stat())


def _tidied(folder: Path, name: str, *, made: bool) -> None:
    """Remove a lock that is held, and its folder if that was `made` for it.

    Whoever waits sees that the lock is gone, and makes a new one. Between the removal of the lock and that of the
    folder they could do so, and the folder would stay; therefore it is moved out of their reach first.
    """
    if not made or any(path.name != name for path in folder.iterdir()):
        (folder / name).unlink()
        return
    aside = folder.rename(folder.with_name(f".{folder.name}-{uuid.uuid4().hex}"))
    (aside / name).unlink()
    try:
        aside.rmdir()
    except OSError:  # there is something in it after all
        aside.rename(folder)
