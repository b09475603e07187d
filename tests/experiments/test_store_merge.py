"""Shards: merged whole or not at all, and once; and a store whose writers are killed."""

import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import store_killing
from engine_runs import noop, stubs

from rankwise.errors import StoreError
from rankwise.experiments.records import RunRecord
from rankwise.experiments.store import Store
from rankwise.experiments.store_merge import Shard, settle

BARE = RunRecord("a1", "glora", "docstrings", "minilm", 3, "r=4", environment={"inputs": {"data": "x"}})


def content(path):
    """Every row of a store but the times."""
    database = sqlite3.connect(path)
    tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid")]
    rows = {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
    database.close()
    del rows["rankwise_migrations"]
    return rows


def filled(output, count=1):
    for config in stubs(count):
        with Store(Shard(output, config.run_id).path) as store:
            noop(config, store, output)
    return [Shard(output, config.run_id) for config in stubs(count)]


def test_every_row_arrives_once(tmp_path):
    shards = filled(tmp_path, 3)
    made = [content(shard.path) for shard in shards]
    together = {table: [row for one in made for row in one[table]] for table in made[0]}
    with Store(tmp_path / "store.sqlite") as store:
        assert [settle(store, shard).outcome for shard in shards] == ["completed"] * 3
        assert list(store.get(shards[0].run_id).metrics) == ["zeta", "alpha"]  # the primary metric stays first
        assert store.splits(shards[0].run_id) == ["validation", "extra"]
    there = content(tmp_path / "store.sqlite")
    assert {table: sorted(map(repr, rows)) for table, rows in there.items()} == {
        table: sorted(map(repr, rows)) for table, rows in together.items()
    }
    assert all(there.values())
    assert list((tmp_path / "shards").iterdir()) == []
    shards[0].remove_folder()
    assert not (tmp_path / "shards").exists()


def test_merging_twice_changes_nothing(tmp_path):
    (shard,) = filled(tmp_path)
    copy = shard.path.read_bytes()
    with Store(tmp_path / "store.sqlite") as store:
        settle(store, shard)
        before = content(store.path)
        shard.path.parent.mkdir(exist_ok=True)
        shard.path.write_bytes(copy)  # the process was killed between the merge and the removal
        with Store(shard.path) as source:
            assert not store.take(source, shard.run_id, "elsewhere")
        assert settle(store, shard).outcome == "completed"
        assert content(store.path) == before
        assert not shard.path.exists()


def test_merge_is_all_or_nothing_and_can_be_done_again(tmp_path):
    (shard,) = filled(tmp_path)
    with Store(tmp_path / "store.sqlite") as store:
        connection = store._db.connection
        connection.execute("CREATE TEMP TRIGGER t BEFORE INSERT ON predictions BEGIN SELECT RAISE(ABORT, 'no'); END")
        with pytest.raises(StoreError):
            settle(store, shard)
        assert store.runs() == []
        connection.execute("DROP TRIGGER t")
        assert settle(store, shard).outcome == "completed"


def test_unfinished_attempt_in_the_store_gives_way(tmp_path):
    (shard,) = filled(tmp_path)
    with Store(tmp_path / "store.sqlite") as store:
        store.begin(replace(BARE, run_id=shard.run_id))
        store.add_steps(shard.run_id, [(77, "train_loss", 1.0)])
        settle(store, shard)
        assert [step for step, _ in store.steps(shard.run_id, "train_loss")] == [1, 2, 3]


@pytest.mark.parametrize("begun", [False, True])
def test_run_without_an_end_is_lost(tmp_path, begun):
    shard = Shard(tmp_path, "a1")
    with Store(tmp_path / "store.sqlite") as store:
        if begun:
            with Store(shard.path) as source:
                source.begin(BARE)
        assert settle(store, shard).outcome == "lost"
        assert store.runs() == []
        assert shard.path.exists() == begun  # it may go on from there


def test_failed_run_is_kept_with_its_reason(tmp_path):
    shard = Shard(tmp_path, "a1")
    with Store(shard.path) as source:
        source.begin(BARE)
        source.fail("a1", "failed", "loss is NaN")
    shard.fail("loss is NaN")
    with Store(tmp_path / "store.sqlite") as store:
        settled = settle(store, shard)
        assert (settled.outcome, settled.reason) == ("failed", "loss is NaN")
        assert store.get("a1").error == "loss is NaN"


def test_damaged_shard_is_a_failed_run_and_named(tmp_path):
    (shard,) = filled(tmp_path)
    shard.path.write_bytes(b"x" * 5000)
    with Store(tmp_path / "store.sqlite") as store:
        settled = settle(store, shard)
    assert settled.outcome == "failed"
    assert str(shard.path) in settled.reason


@pytest.mark.parametrize(("where", "shown"), [("out", "checkpoints/a1"), ("elsewhere", "{output}/checkpoints/a1")])
def test_checkpoint_is_found_from_the_store(tmp_path, where, shown):
    output = tmp_path / "out"
    (output / "checkpoints/a1").mkdir(parents=True)
    with Store(Shard(output, "a1").path) as source:
        source.begin(BARE)
        source.finish(replace(BARE, checkpoint="/on/another/machine/checkpoints/a1"))
    with Store(tmp_path / where / "store.sqlite") as store:
        assert settle(store, Shard(output, "a1"), lambda: {"data": "x"}).outcome == "completed"
        assert store.get("a1").checkpoint == shown.format(output=output)


@pytest.mark.parametrize(
    ("data", "checkpoint", "message"),
    [("y", True, "its worker had other data or another model"), ("x", False, "workers must share the run folder")],
)
def test_run_of_another_world_is_refused(tmp_path, data, checkpoint, message):
    if checkpoint:
        (tmp_path / "checkpoints/a1").mkdir(parents=True)
    shard = Shard(tmp_path, "a1")
    with Store(shard.path) as source:
        source.begin(BARE)
        source.finish(replace(BARE, checkpoint="checkpoints/a1"))
    with Store(tmp_path / "store.sqlite") as store:
        settled = settle(store, shard, lambda: {"data": data})
        assert settled.outcome == "failed"
        assert message in settled.reason
        assert store.runs() == []


def test_lock_tells_whether_the_run_was_settled_meanwhile(tmp_path):
    shard, seen = Shard(tmp_path, "a1"), []

    def wait():
        with shard.locked() as mine:
            seen.append(mine)

    with shard.locked() as mine:
        assert mine
        second = threading.Thread(target=wait)
        second.start()
        time.sleep(0.2)
        assert seen == []  # it waits for the first
        shard.remove()  # the first is through, and its run was merged
    second.join()
    wait()
    assert seen == [False, True]


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_store_survives_kill_9_of_its_writers(tmp_path, kills):
    path = tmp_path / "store.sqlite"
    words = [sys.executable, store_killing.__file__, path, kills, kills]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    runs = int(done.stdout)
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    database.close()
    said = Path(f"{path}.said").read_text().split()
    assert len(said) == len(set(said))  # no run was completed twice
    assert len(set(range(runs)) - set(map(int, said))) <= kills  # a process may die between its last write and its word
    with Store(path) as store:
        records = {record.seed: record for record in store.runs()}
        assert set(range(runs)) <= set(records)
        assert set(map(int, said)) <= set(records)
        for number, record in records.items():
            assert record == replace(store_killing.record_of(number), status="completed")
            assert store.steps(record.run_id, "train_loss") == [(s, v) for s, _, v in store_killing.steps_of(number)]
            assert {row.module: row.rank for row in store.rank_trace(record.run_id)} == store_killing.ranks_of(number)
            found = store.predictions(record.run_id, "validation")
            assert [values.tolist() for values in found] == list(store_killing.predictions_of(number))
