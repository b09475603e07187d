"""Locks on files: they tell at once that a process on this machine has died, however it died."""

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
    there, gone = True, 0
    lock = FileLock(folder / f"{name}.lock")
    while True:
        check_interrupt()
        there = there and folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=_POLL_SECONDS)
            break
        except Timeout:
            if busy is not None:
                busy()
                busy = None
        except OSError as error:
            gone += 1  # a folder that was made for another command, which is done and has left nothing in it
            if gone > _MOST_GONE or not isinstance(error, FileNotFoundError | FileExistsError):
                raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        if tidy:
            _tidied(folder, name, there)
        lock.release()


@contextmanager
def alive(folder: Path) -> Iterator[Path]:
    """A file of this worker's own, locked as long as it lives; `is_dead` asks about it."""
    path = folder.resolve() / f"worker-{uuid.uuid4().hex}.lock"
    lock = FileLock(path)
    for _ in range(_MOST_GONE):
        _made(folder)
        with suppress(FileNotFoundError):  # a command that is done took its empty folder away just now
            lock.acquire()
            break
    else:
        raise OutputError(f"cannot write {folder}: it is taken away again and again")
    try:
        yield path
    finally:
        lock.release()
        path.unlink(missing_ok=True)


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


def _tidied(folder: Path, name: str, there: bool) -> None:
    with suppress(OSError):
        (folder / f"{name}.lock").unlink()  # whoever waits sees that it is gone, and makes a new one
        if not there:
            folder.rmdir()  # unless there is something in it


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another --output") from error
    return folder
