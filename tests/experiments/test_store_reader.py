"""Looking at a store neither changes it nor gets in the way of those who write."""

import os
import sqlite3

import pytest

from rankwise.errors import StoreError
from rankwise.experiments.records import RunRecord
from rankwise.experiments.store import Store
from rankwise.experiments.store_reader import StoreReader
from rankwise.tasks.base import MetricValue


def record(name="a", **changes):
    values = {"metrics": {"accuracy": MetricValue(0.5, 0.1, 10)}, **changes}
    return RunRecord(run_id=name, method="lora", task="t", model="m", seed=0, budget="r=4", **values)


def test_reads_what_the_store_reads(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store.begin(record())
        store.add_steps("a", [(1, "train_loss", 0.5)])
        store.add_predictions("a", "validation", [0, 1], [1, 1])
        store.finish(record())
        with StoreReader(tmp_path / "s.sqlite") as reader:
            assert reader.runs() == store.runs()
            assert reader.steps("a", "train_loss") == [(1, 0.5)]
            assert reader.splits("a") == ["validation"]
            assert [part.tolist() for part in reader.predictions("a", "validation")] == [[0, 1], [1, 1]]


def test_every_write_is_refused_by_sqlite_itself(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        store.begin(record())
    before = path.read_bytes()
    with StoreReader(path) as reader:
        for write in (
            lambda: reader.begin(record("b")),
            lambda: reader.add_steps("a", [(1, "x", 1.0)]),
            lambda: reader.fail("a", "failed", "why"),
            lambda: reader.finish(record()),
        ):
            with pytest.raises(StoreError, match="read-only"):
                write()
    assert path.read_bytes() == before


def test_writers_go_on_while_a_reader_is_in_the_middle_of_reading(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store(path) as store, StoreReader(path) as reader, reader._db.transaction("DEFERRED"):
        assert reader._db.read("SELECT count(*) FROM runs")[0][0] == 0
        store.begin(record())
        store.finish(record())
        assert reader._db.read("SELECT count(*) FROM runs")[0][0] == 0  # one state for the whole reading
    with StoreReader(path) as reader:
        assert [run.status for run in reader.runs()] == ["completed"]


def test_nothing_is_created_and_foreign_or_old_files_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no such results store"):
        StoreReader(tmp_path / "none.sqlite")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "text.sqlite").write_text("not a database at all, but long enough to be looked at")
    with pytest.raises(StoreError, match="damaged"):
        StoreReader(tmp_path / "text.sqlite")
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE x (y)")
    other.close()
    with pytest.raises(StoreError, match="of another program"):
        StoreReader(tmp_path / "other.sqlite")
    old = sqlite3.connect(tmp_path / "old.sqlite")
    old.execute("CREATE TABLE rankwise_migrations (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)")
    old.close()
    with pytest.raises(StoreError, match=r"older Rankwise; `rankwise report`"):
        StoreReader(tmp_path / "old.sqlite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_enough(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store.begin(record())
    tmp_path.chmod(0o555)
    try:
        with StoreReader(tmp_path / "s.sqlite") as reader:
            assert len(reader.runs()) == 1
    finally:
        tmp_path.chmod(0o755)
