import math
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rankwise.errors import DataError, StoreError
from rankwise.experiments.records import RunRecord
from rankwise.experiments.store import RankRow, Store
from rankwise.tasks.base import MetricValue

RECORD = RunRecord(
    run_id="a1",
    method="glora",
    task="docstrings",
    model="minilm",
    seed=3,
    budget="r=4",
    parameters=147_456,
    peak_parameters=221_184,
    metrics={"matthews": MetricValue(0.61, 0.02, 500), "accuracy": MetricValue(0.8, 0.01, 500)},
    train_seconds=71.5,
    steps=400,
    rank_pattern={"encoder.layer.0.attention.self.query": 7, "encoder.layer.0.output.dense": 1},
    checkpoint="glora-3",
    config={"method": {"name": "glora", "warmup": 0.1}, "targets": ["query", "value"]},
    environment={"torch": "2.9"},
)
BARE = replace(RECORD, metrics={}, rank_pattern={}, parameters=0, train_seconds=0.0, steps=0, checkpoint=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "er" / "store.sqlite"


def only_message(caught: pytest.ExceptionInfo[StoreError], path: Path) -> str:
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_run_comes_back_as_it_was_finished(path):
    with Store(path) as store:
        store.begin(BARE)
        assert store.get("a1") == BARE
        store.finish(RECORD)
    with Store(path) as store:
        assert store.get("a1") == replace(RECORD, status="completed")
        assert list(store.get("a1").metrics) == ["matthews", "accuracy"]  # the primary metric stays first
        assert store.get("b2") is None


def test_runs_are_listed_in_order_and_by_status(path):
    with Store(path) as store:
        for run_id in ("c", "a", "b", "d"):
            store.begin(replace(BARE, run_id=run_id))
        store.finish(replace(RECORD, run_id="a"))
        store.fail("b", "interrupted", "Ctrl-C")
        store.fail("d", "failed", "loss is NaN")
        assert [run.run_id for run in store.runs()] == ["c", "a", "b", "d"]
        assert [run.run_id for run in store.runs("running")] == ["c"]
        assert [run.run_id for run in store.runs("completed")] == ["a"]
        assert [(run.run_id, run.error) for run in store.runs("interrupted")] == [("b", "Ctrl-C")]
        assert [(run.run_id, run.error) for run in store.runs("failed")] == [("d", "loss is NaN")]
        assert [run.metrics for run in store.runs()] == [{}, RECORD.metrics, {}, {}]


def test_everything_written_along_the_way_is_read_back(path):
    with Store(path) as store:
        store.begin(BARE)
        store.add_steps("a1", [(2, "loss", 0.5), (1, "loss", 0.75), (1, "learning_rate", 1e-3)])
        store.add_steps("a1", [(2, "loss", 0.25)])
        store.add_ranks("a1", 0, "start", {"q": 4, "v": 4}, {})
        store.add_ranks("a1", 40, "resize", {"q": 8}, {"q": 1.5, "v": 0.1})
        store.add_predictions("a1", "validation", [1, 0, 2], np.array([1, 1, 2]))
        assert store.steps("a1", "loss") == [(1, 0.75), (2, 0.25)]
        assert store.steps("a1", "unknown") == []
        trace = store.rank_trace("a1")
        assert trace[2:] == [RankRow(40, "resize", "q", 8, 1.5), RankRow(40, "resize", "v", 0, 0.1)]
        assert [(row.module, row.rank) for row in trace[:2]] == [("q", 4), ("v", 4)]
        assert all(math.isnan(row.score) for row in trace[:2])
        predictions, references = store.predictions("a1", "validation")
        assert predictions.tolist() == [1, 0, 2]
        assert references.tolist() == [1, 1, 2]
        assert [array.shape for array in store.predictions("a1", "test")] == [(0,), (0,)]


def test_not_a_number_and_infinity_survive(path):
    odd = replace(
        RECORD,
        metrics={"pearson": MetricValue(math.nan, math.nan, 10)},
        train_seconds=math.nan,
        config={"clip": math.inf, "low": [-math.inf], "x": np.float32(math.nan), "n": np.int64(3)},
    )
    with Store(path) as store:
        store.begin(BARE)
        store.add_steps("a1", [(1, "loss", math.nan), (2, "loss", math.inf), (3, "loss", -math.inf)])
        store.add_predictions("a1", "validation", [math.nan, math.inf], [0.5, 1.0])
        store.finish(odd)
        record = store.get("a1")
        np.testing.assert_equal(store.steps("a1", "loss"), [(1, math.nan), (2, math.inf), (3, -math.inf)])
        np.testing.assert_equal(store.predictions("a1", "validation")[0], [math.nan, math.inf])
    assert record.config == {"clip": "Infinity", "low": ["-Infinity"], "x": "NaN", "n": 3}
    assert math.isnan(record.train_seconds)
    assert math.isnan(record.metrics["pearson"].value)
    assert record.metrics["pearson"].n == 10
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM steps WHERE value IS NULL").fetchone() == (1,)
    assert database.execute("SELECT json_extract(config, '$.clip') FROM runs").fetchone() == ("Infinity",)
    database.close()


def test_numpy_numbers_are_stored_as_numbers(path):
    record = replace(RECORD, seed=np.int64(3), parameters=np.int64(9), rank_pattern={"q": np.int64(2)})
    with Store(path) as store:
        store.begin(record)
        store.add_steps("a1", [(np.int64(1), "loss", np.float32(0.5))])
        assert store.steps("a1", "loss") == [(1, 0.5)]
        assert store.get("a1").rank_pattern == {"q": 2}
        assert store.get("a1").parameters == 9


def test_splits_keep_their_order(path):
    with Store(path) as store:
        store.begin(BARE)
        for split in ("validation", "extra", "validation"):
            store.add_predictions("a1", split, [1], [0])
        assert store.splits("a1") == ["validation", "extra"]
        assert store.splits("b2") == []
        store.begin(BARE)
        assert store.splits("a1") == []


@pytest.mark.parametrize("stopped", [None, "failed", "interrupted"])
def test_unfinished_attempt_is_replaced_with_all_its_rows(path, stopped):
    with Store(path) as store:
        store.begin(BARE)
        store.add_steps("a1", [(1, "loss", 1.0)])
        store.add_ranks("a1", 1, "start", {"q": 1}, {})
        store.add_predictions("a1", "validation", [1], [1])
        if stopped:
            store.fail("a1", stopped, "why")
        store.begin(BARE)
        assert store.get("a1") == BARE
        assert store.steps("a1", "loss") == []
        assert store.rank_trace("a1") == []
        assert store.predictions("a1", "validation")[0].size == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.begin(BARE),
        lambda store: store.finish(RECORD),
        lambda store: store.fail("a1", "failed", "late"),
        lambda store: store.add_steps("a1", [(1, "loss", 1.0)]),
        lambda store: store.add_ranks("a1", 1, "end", {"q": 1}, {}),
        lambda store: store.add_predictions("a1", "validation", [1], [1]),
    ],
)
def test_completed_run_never_changes(path, change):
    with Store(path) as store:
        store.begin(BARE)
        store.finish(RECORD)
        with pytest.raises(StoreError, match="run a1 is completed already") as caught:
            change(store)
        only_message(caught, path)
        assert store.get("a1") == replace(RECORD, status="completed")
        assert store.steps("a1", "loss") == []


def test_run_that_was_never_begun_takes_nothing(path):
    with Store(path) as store:
        with pytest.raises(StoreError, match="run a1 was never begun"):
            store.add_steps("a1", [(1, "loss", 1.0)])
        with pytest.raises(StoreError, match="run a1 was never begun"):
            store.finish(RECORD)
        assert store.runs() == []


def test_finish_is_all_or_nothing(path):
    with Store(path) as store:
        store.begin(BARE)
        store._db.connection.execute(
            "CREATE TEMP TRIGGER t BEFORE INSERT ON metrics BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        with pytest.raises(StoreError, match="could not be used"):
            store.finish(RECORD)
        assert store.get("a1") == BARE


def test_predictions_must_match_references(path):
    with Store(path) as store:
        store.begin(BARE)
        with pytest.raises(DataError, match=r"split 'validation': predictions have shape \(2,\), references \(3,\)"):
            store.add_predictions("a1", "validation", [1, 2], [1, 2, 3])


def test_nothing_here_imports_torch():
    names = ("store", "statistics", "results", "plots", "table")
    imports = "\n".join(f"import rankwise.experiments.{name}" for name in names)
    check = f"import sys\n{imports}\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
