"""Locks on files: they tell at once that a process on this machine has died, however it died."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rankwise.errors import OutputError
from rankwise.interrupts import check_interrupt

_POLL_SECONDS = 0.2


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` in `folder`, waiting for whoever has it; a process that dies lets go of it.

    Raises:
        OutputError: the folder cannot be written.
    """
    lock = FileLock(_made(folder) / f"{name}.lock")
    while True:
        check_interrupt()
        try:
            lock.acquire(timeout=_POLL_SECONDS)
            break
        except Timeout:
            continue
    try:
        yield
    finally:
        lock.release()


@contextmanager
def alive(folder: Path) -> Iterator[Path]:
    """A file of this worker's own, locked as long as it lives; `is_dead` asks about it."""
    path = (_made(folder) / f"worker-{uuid.uuid4().hex}.lock").resolve()
    lock = FileLock(path)
    lock.acquire()
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


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another --output") from error
    return folder
