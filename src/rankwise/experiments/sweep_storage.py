"""Where a sweep's study is kept: an SQLite file, or a PostgreSQL database that many machines reach.

Optuna's tables hold the trials; the runs behind them are in the results store. A password in a URL never leaves this
module: not in messages, not in files.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from rankwise.errors import ConfigError, Finding, MissingPackageError, StoreError
from rankwise.experiments.redact import without_passwords
from rankwise.experiments.sweep_locks import locked

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

STUDY = "study.sqlite"
HEARTBEAT_SECONDS = 30
"""How often a worker says that it lives."""
GRACE_SECONDS = 180
"""How long a worker may be silent before its trial is given to another."""
_WAIT_SECONDS = 60
_ATTEMPTS = 8

_POSTGRESQL = ("postgresql", "postgresql+psycopg", "postgres")


def storage_url(text: str | None, folder: Path) -> str:
    """The URL of a study's storage: the SQLite file in `folder` by default, a path, or a database URL.

    Raises:
        ConfigError: a kind of database that is not supported.
    """
    if not text:
        return f"sqlite:///{(folder / STUDY).resolve()}"
    scheme, mark, rest = text.partition("://")
    if not mark:
        return f"sqlite:///{Path(text).resolve()}"
    if scheme in _POSTGRESQL:
        name, password, host = _login(rest)
        login = "" if name is None else name if password is None else f"{name}:{quote(unquote(password), safe='')}"
        return f"postgresql+psycopg://{login}{'@' if login else ''}{host}"
    if scheme == "sqlite":
        return text
    raise ConfigError(
        "sweep",
        [
            Finding(
                "--storage",
                f"'{without_passwords(text)}' is of a kind that is not supported; give a path, sqlite:///PATH or "
                "postgresql+psycopg://USER@HOST/DATABASE",
            )
        ],
    )


def shown_url(url: str) -> str:
    """The URL for people and files: without its password, however odd the password's characters are."""
    scheme, mark, rest = url.partition("://")
    name, password, host = _login(rest)
    return without_passwords(url if password is None else f"{scheme}{mark}{name}:***@{host}")


def _login(rest: str) -> tuple[str | None, str | None, str]:
    """User, password and what follows, of a URL without its scheme; people paste passwords with `@` and `/` in them."""
    before, mark, query = rest.partition("?")
    if "@" not in before:
        before, mark, query = rest, "", ""
    login, at, host = before.rpartition("@")
    if not at:
        return None, None, rest
    name, colon, password = login.partition(":")
    return name, password if colon else None, f"{host}{mark}{query}"


def open_storage(
    url: str, heartbeat_seconds: int = HEARTBEAT_SECONDS, grace_seconds: int = GRACE_SECONDS
) -> "RDBStorage":
    """Optuna's storage at a URL of `storage_url`, its tables made where missing.

    Raises:
        MissingPackageError: the driver of PostgreSQL is not installed.
        StoreError: the database cannot be reached or used.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    is_file = url.startswith("sqlite")
    if is_file:
        _make_folder(url)
    settings = {"connect_args": {"timeout": _WAIT_SECONDS}} if is_file else {"pool_pre_ping": True}
    for attempt in range(_ATTEMPTS):
        try:
            with explained(url), quiet_optuna():
                return optuna.storages.RDBStorage(
                    url, engine_kwargs=settings, heartbeat_interval=heartbeat_seconds, grace_period=grace_seconds
                )
        except ImportError:
            raise MissingPackageError(
                "a study in PostgreSQL needs the package psycopg: pip install 'rankwise[postgres]'"
            ) from None
        except (ValueError, RuntimeError) as error:  # a URL that cannot be read, tables of another version of Optuna
            raise StoreError(f"{shown_url(url)}: the study cannot be used: {_reason(error, url)}") from None
        except StoreError as error:
            # Workers that start together make the tables together, and all but one of them fail; the next try works.
            if not _is_race(error) or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def one_at_a_time(storage: "RDBStorage") -> AbstractContextManager[None]:
    """Keeps other workers of a study in an SQLite file waiting, by a lock beside the file.

    Optuna reads a trial's state and writes it later. PostgreSQL locks the row in between, SQLite cannot: two workers
    would both find a trial waiting, and both take it.

    Raises:
        OutputError: the lock cannot be written.
    """
    file = storage.engine.url.database
    if storage.engine.name != "sqlite" or not file or ":memory:" in file:
        return nullcontext()
    return locked(Path(file).parent, Path(file).name, tidy=True)


@contextmanager
def storage_at(url: str) -> "Iterator[RDBStorage]":
    """The storage for a while; its connections to the database are closed at the end.

    Raises:
        MissingPackageError, StoreError: as `open_storage`.
    """
    storage = open_storage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _make_folder(url: str) -> None:
    folder = Path(url.removeprefix("sqlite:///")).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: the study cannot be kept there: {error.strerror or error}") from None


def _is_race(error: StoreError) -> bool:
    return any(word in str(error) for word in ("UNIQUE constraint", "already exists", "duplicate key", "locked"))


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what SQLAlchemy, the drivers and Optuna raise about a database into one message without a password."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        if isinstance(error, ArgumentError):
            raise ValueError("the URL cannot be read") from None
        raise StoreError(f"{shown_url(url)}: the study cannot be used: {_reason(error, url)}") from None


def _reason(error: BaseException, url: str) -> str:
    """The innermost reason in one line, without the password even where the database itself repeats it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = without_passwords(str(getattr(error, "orig", None) or error))
    written = _login(url.partition("://")[2])[1] or ""
    for password in filter(None, {written, unquote(written)}):
        text = text.replace(password, "***")
    return " ".join(text.split())[:500] or type(error).__name__


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna marks heartbeats as experimental; that is known and tested here."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
