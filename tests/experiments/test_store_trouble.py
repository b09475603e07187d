"""What the store does when its file, disk, neighbours or version are not as they should be."""

import multiprocessing
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rankwise.errors import StoreError
from rankwise.experiments import database, migrations
from rankwise.experiments.records import RunRecord
from rankwise.experiments.store import Store
from rankwise.tasks.base import MetricValue

BARE = RunRecord("a1", "glora", "docstrings", "minilm", 3, "r=4")
RECORD = replace(BARE, metrics={"accuracy": MetricValue(0.8, 0.01, 500)}, rank_pattern={"query": 7}, parameters=9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "er" / "store.sqlite"


def only_message(caught: pytest.ExceptionInfo[StoreError], path: Path) -> None:
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


@pytest.mark.parametrize("size", [4, 4096, 9000])
def test_file_that_is_not_sqlite_is_left_alone(tmp_path, size):
    path = tmp_path / "results.txt"
    path.write_bytes(b"x" * size)
    with pytest.raises(StoreError, match="not a results store") as caught:
        Store(path)
    only_message(caught, path)
    assert path.read_bytes() == b"x" * size
    assert list(tmp_path.iterdir()) == [path]


def test_sqlite_file_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "study.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE trials (number INTEGER)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="of another program") as caught:
        Store(path)
    only_message(caught, path)
    assert path.read_bytes() == before


def filled(path: Path) -> bytes:
    with Store(path) as store:
        store.begin(BARE)
        store.add_predictions("a1", "validation", np.arange(3000), np.arange(3000))
    return path.read_bytes()


def open_and_read(path: Path) -> None:
    with Store(path) as store:
        store.runs()


@pytest.mark.parametrize("damage", ["truncated", "pages", "header"])
@pytest.mark.parametrize("check_bytes", [0, 2**20])
def test_damaged_store_is_named_and_left_alone(path, damage, check_bytes, monkeypatch):
    content = bytearray(filled(path))
    if damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "pages":
        content[4096:] = b"\xa5" * (len(content) - 4096)
    else:
        content[20:80] = b"\xa5" * 60
    path.write_bytes(content)
    monkeypatch.setattr(database, "_CHECK_BYTES", check_bytes)
    with pytest.raises(StoreError, match="damaged") as caught:
        open_and_read(path)
    only_message(caught, path)
    assert path.read_bytes() == bytes(content)


def test_damage_deep_inside_is_found_when_opening(path):
    content = bytearray(filled(path))
    content[-4096:] = b"\xa5" * 4096
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        Store(path)
    assert path.read_bytes() == bytes(content)


def test_full_disk_is_explained_and_keeps_what_was_there(path):
    with Store(path) as store:
        store.begin(BARE)
        store.finish(RECORD)
        store.begin(replace(BARE, run_id="b2"))
        pages = store._db.connection.execute("PRAGMA page_count").fetchone()[0]
        store._db.connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match=r"the disk is full\. Free some space") as caught:
            store.add_predictions("b2", "validation", np.arange(9000), np.arange(9000))
        only_message(caught, path)
        assert store.get("a1") == replace(RECORD, status="completed")
        assert store.predictions("b2", "validation")[0].size == 0


def test_error_without_a_code_is_recognised_by_its_text(path):
    with (
        Store(path) as store,
        pytest.raises(StoreError, match=r"the disk is full\. Free some space"),
        store._db.transaction(),
    ):
        raise sqlite3.OperationalError("database or disk is full")


def test_store_that_turns_read_only_is_explained(path):
    with Store(path) as store:
        store._db.connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="read-only") as caught:
            store.begin(BARE)
        only_message(caught, path)


@pytest.mark.parametrize("which", ["file", "folder"])
def test_read_only_place_is_refused_when_opening(path, which, monkeypatch):
    Store(path).close()
    blocked = path if which == "file" else path.parent
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != blocked)  # root may write anywhere
    with pytest.raises(StoreError, match=f"the {which} is read-only") as caught:
        Store(path)
    only_message(caught, path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    for path in (tmp_path / "store.sqlite", tmp_path / "new" / "store.sqlite"):
        with pytest.raises(StoreError) as caught:
            Store(path)
        only_message(caught, path)


def test_path_that_cannot_be_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path, "folder"), (tmp_path / "file" / "store.sqlite", "cannot be opened")):
        with pytest.raises(StoreError, match=reason) as caught:
            Store(path)
        only_message(caught, path)


def test_lock_that_another_process_keeps_is_explained(path, monkeypatch):
    monkeypatch.setattr(database, "_WAIT_SECONDS", 0.05)
    with Store(path) as first, Store(path) as second, first._db.transaction():
        assert second.runs() == []  # readers go on
        with pytest.raises(StoreError, match="another process has kept it locked") as caught:
            second.begin(BARE)
        only_message(caught, path)


def test_closed_store_says_so(path):
    store = Store(path)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.runs()


def test_newer_store_is_refused_unchanged(path, monkeypatch):
    def m999_future(connection):
        connection.execute("CREATE TABLE future (x)")

    monkeypatch.setattr(database, "MIGRATIONS", (*migrations.MIGRATIONS, m999_future))
    monkeypatch.setattr(migrations.migrate, "__defaults__", (database.MIGRATIONS,))
    Store(path).close()
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"newer Rankwise .*m999_future.* Upgrade") as caught:
        Store(path)
    only_message(caught, path)


def test_older_store_is_migrated_once_and_keeps_its_runs(path, monkeypatch):
    with Store(path) as store:
        store.begin(BARE)
        store.finish(RECORD)
    calls = []

    def m002_note(connection):
        calls.append(1)
        connection.execute("CREATE TABLE note (x)")

    newer = (*migrations.MIGRATIONS, m002_note)
    monkeypatch.setattr(database, "MIGRATIONS", newer)
    monkeypatch.setattr(migrations.migrate, "__defaults__", (newer,))
    for _ in range(2):
        with Store(path) as store:
            assert store.get("a1") == replace(RECORD, status="completed")
            assert "CREATE TABLE note" in store.schema()
    assert calls == [1]


def test_failing_migration_leaves_the_store_as_it_was(path, monkeypatch):
    with Store(path) as store:
        before = store.schema()

    def m002_broken(connection):
        connection.execute("CREATE TABLE half (x)")
        connection.execute("NONSENSE")

    newer = (*migrations.MIGRATIONS, m002_broken)
    monkeypatch.setattr(database, "MIGRATIONS", newer)
    monkeypatch.setattr(migrations.migrate, "__defaults__", (newer,))
    with pytest.raises(StoreError, match="syntax error"):
        Store(path)
    monkeypatch.undo()
    with Store(path) as store:
        assert store.schema() == before


def write_runs(path: Path, worker: int, start) -> None:
    start.wait(timeout=60)
    with Store(path) as store:
        for number in range(15):
            run_id = f"{worker}-{number}"
            store.begin(replace(BARE, run_id=run_id))
            for step in range(5):
                store.add_steps(run_id, [(step, "loss", float(worker))])
            store.finish(replace(RECORD, run_id=run_id))


def test_processes_create_and_write_one_store_at_once(path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    workers = [context.Process(target=write_runs, args=(path, worker, start)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with Store(path) as store:
        assert sorted(run.run_id for run in store.runs("completed")) == sorted(
            f"{worker}-{number}" for worker in range(3) for number in range(15)
        )
        assert store.steps("2-14", "loss") == [(step, 2.0) for step in range(5)]


KILLED = """
import os, signal, sys
from rankwise.experiments.records import RunRecord
from rankwise.experiments.store import Store
store = Store(sys.argv[1])
store.begin(RunRecord("a1", "glora", "docstrings", "minilm", 3, "r=4"))
store.add_steps("a1", [(1, "loss", 0.5)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_process_leaves_a_running_run(path):
    assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode == -9
    with Store(path) as store:
        assert [run.run_id for run in store.runs("running")] == ["a1"]
        assert store.steps("a1", "loss") == [(1, 0.5)]
        store.begin(BARE)
        store.finish(RECORD)
        assert [run.run_id for run in store.runs("completed")] == ["a1"]
