"""The results store: one SQLite file that keeps every run, so that none is paid for twice.

A run is begun, written to while it trains, and finished or failed; a completed run never changes again. Several
processes may use one store at once: SQLite's write-ahead log lets readers go on while one process writes, and
writers wait for each other. Not-a-number is NULL in number columns; in JSON columns not-a-number and the infinities
are the strings "NaN", "Infinity" and "-Infinity".
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Row
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from rankwise.errors import DataError, StoreError
from rankwise.experiments.database import Database
from rankwise.experiments.records import RunRecord, Status
from rankwise.tasks.base import MetricValue

_JSON = ("rank_pattern", "config", "environment")


@dataclass(frozen=True)
class RankRow:
    """The rank of one module after one step, and the score that decided it (NaN: none)."""

    step: int
    event: str
    module: str
    rank: int
    score: float


class Store:
    """Opens the results store at `path`, creating it and its folders where missing; use it as a context manager.

    Raises:
        StoreError: the file is damaged, not a store, from a newer Rankwise, cannot be written or stays locked, or the
            disk is full. Every method may raise it; the message names the path and says what to do.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._db = Database(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was written is kept."""
        self._db.close()

    def schema(self) -> str:
        """The store's tables as commented SQL."""
        return self._db.schema()

    def begin(self, record: RunRecord) -> None:
        """Note that a run starts, replacing an unfinished attempt of the same `run_id` with all its rows.

        Raises:
            StoreError: that run is completed already.
        """
        values = {**_columns(replace(record, status="running", error=None)), "created_at": _now()}
        names, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
        with self._db.transaction() as db:
            if self._status(record.run_id) == "completed":
                raise StoreError(f"{self.path}: run {record.run_id} is completed already and cannot be begun again")
            db.execute("DELETE FROM runs WHERE run_id = ?", (record.run_id,))
            db.execute(f"INSERT INTO runs ({names}) VALUES ({marks})", values)

    def add_steps(self, run_id: str, rows: Sequence[tuple[int, str, float]]) -> None:
        """Add `(step, name, value)` rows (losses, learning rates, …); a repeated step replaces the earlier value."""
        values = [(run_id, int(step), name, float(value)) for step, name, value in rows]
        with self._db.transaction() as db:
            self._check_running(run_id)
            db.executemany("INSERT OR REPLACE INTO steps (run_id, step, name, value) VALUES (?, ?, ?, ?)", values)

    def add_ranks(
        self, run_id: str, step: int, event: str, ranks: Mapping[str, int], scores: Mapping[str, float]
    ) -> None:
        """Add the rank of every module after `step`; a module with a score but no rank has rank 0."""
        values = [
            (run_id, int(step), event, module, int(ranks.get(module, 0)), float(scores.get(module, math.nan)))
            for module in {**ranks, **scores}
        ]
        query = "INSERT OR REPLACE INTO rank_trace (run_id, step, event, module, rank, score) VALUES (?, ?, ?, ?, ?, ?)"
        with self._db.transaction() as db:
            self._check_running(run_id)
            db.executemany(query, values)

    def add_predictions(self, run_id: str, split: str, predictions: ArrayLike, references: ArrayLike) -> None:
        """Set what a run predicted on a split: class indices, or values for regression; both `(examples,)`.

        Raises:
            DataError: the two are not one-dimensional arrays of one length.
        """
        predicted, right = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
        if predicted.ndim != 1 or predicted.shape != right.shape:
            raise DataError(
                f"run {run_id}, split '{split}': predictions have shape {predicted.shape}, references {right.shape}; "
                f"both must be (examples,)"
            )
        pairs = zip(predicted.tolist(), right.tolist(), strict=True)
        values = [(run_id, split, example, *pair) for example, pair in enumerate(pairs)]
        query = "INSERT INTO predictions (run_id, split, example, prediction, reference) VALUES (?, ?, ?, ?, ?)"
        with self._db.transaction() as db:
            self._check_running(run_id)
            db.execute("INSERT OR IGNORE INTO splits (run_id, split) VALUES (?, ?)", (run_id, split))
            db.execute("DELETE FROM predictions WHERE run_id = ? AND split = ?", (run_id, split))
            db.executemany(query, values)

    def finish(self, record: RunRecord) -> None:
        """Write a run's results and its metrics, all or nothing; from here on it is `completed` and never changes."""
        values = {**_columns(replace(record, status="completed", error=None)), "finished_at": _now()}
        changes = ", ".join(f"{name} = :{name}" for name in values)
        metrics = [(record.run_id, name, float(m.value), float(m.se), int(m.n)) for name, m in record.metrics.items()]
        with self._db.transaction() as db:
            self._check_running(record.run_id)
            db.execute(f"UPDATE runs SET {changes} WHERE run_id = :run_id", values)
            db.executemany("INSERT INTO metrics (run_id, name, value, se, n) VALUES (?, ?, ?, ?, ?)", metrics)
            costs = [(record.run_id, name, float(value)) for name, value in record.costs.items()]
            db.executemany("INSERT INTO costs (run_id, name, value) VALUES (?, ?, ?)", costs)

    def fail(self, run_id: str, status: Literal["failed", "interrupted"], error: str) -> None:
        """Note why a run stopped; what it had written stays until the run is begun again."""
        query = "UPDATE runs SET status = ?, error = ?, finished_at = ? WHERE run_id = ?"
        with self._db.transaction() as db:
            self._check_running(run_id)
            db.execute(query, (status, error, _now(), run_id))

    def take(self, other: "Store", run_id: str, checkpoint: str | None) -> bool:
        """Copy a run with all its rows from another store, all or nothing, in place of an unfinished attempt here.

        `checkpoint` is where the run's checkpoint lies, seen from this store. False: it is completed here already, and
        nothing changes.

        Raises:
            StoreError: the other store does not hold that run.
        """
        rows = other._rows_of(run_id)
        if not rows.get("runs"):
            raise StoreError(f"{other.path}: holds no run {run_id}")
        with self._db.transaction() as db:
            if self._status(run_id) == "completed":
                return False
            db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))
            for table, found in rows.items():
                names = found[0].keys()
                query = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
                db.executemany(query, [tuple(row) for row in found])
            db.execute("UPDATE runs SET checkpoint = ? WHERE run_id = ?", (checkpoint, run_id))
        return True

    def _rows_of(self, run_id: str) -> dict[str, list[Row]]:
        """Every row of a run by table, those with none left out; `runs` first, since the others refer to it."""
        tables = (
            "SELECT t.name, t.sql LIKE '%WITHOUT ROWID%' AS bare FROM sqlite_master t, pragma_table_info(t.name) c "
            "WHERE t.type = 'table' AND c.name = 'run_id' ORDER BY t.rowid"
        )
        with self._db.transaction("DEFERRED"):
            found = {
                table["name"]: self._db.read(
                    f"SELECT * FROM {table['name']} WHERE run_id = ? {'' if table['bare'] else 'ORDER BY rowid'}",
                    (run_id,),
                )
                for table in self._db.read(tables)
            }
        return {name: rows for name, rows in found.items() if rows}

    def get(self, run_id: str) -> RunRecord | None:
        """The run of that id, or None."""
        found = self._records("WHERE run_id = ?", (run_id,))
        return found[0] if found else None

    def runs(self, status: Status | None = None) -> list[RunRecord]:
        """All runs, or those of one status, in the order they were begun.

        `running` are the runs that a process works on now, or that died with it: begin them again.
        """
        return self._records("", ()) if status is None else self._records("WHERE status = ?", (status,))

    def completed(self) -> set[str]:
        """Ids of all completed runs; quick also where there are many thousands."""
        return {row["run_id"] for row in self._db.read("SELECT run_id FROM runs WHERE status = 'completed'")}

    def steps(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """`(step, value)` of one curve of a run, by step."""
        query = "SELECT step, value FROM steps WHERE run_id = ? AND name = ? ORDER BY step"
        return [(row["step"], _number(row["value"])) for row in self._db.read(query, (run_id, name))]

    def rank_trace(self, run_id: str) -> list[RankRow]:
        """Every rank that was noted for a run, by step, event and module."""
        query = "SELECT step, event, module, rank, score FROM rank_trace WHERE run_id = ? ORDER BY step, event, module"
        return [RankRow(**{**dict(row), "score": _number(row["score"])}) for row in self._db.read(query, (run_id,))]

    def scores(self, run_id: str) -> dict[str, float]:
        """The last score that was noted for each module of a run, by module."""
        return {row.module: row.score for row in self.rank_trace(run_id) if math.isfinite(row.score)}

    def predictions(self, run_id: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and references of a run on a split, each float64 `(examples,)`; empty if none were stored."""
        query = "SELECT prediction, reference FROM predictions WHERE run_id = ? AND split = ? ORDER BY example"
        rows = [tuple(row) for row in self._db.read(query, (run_id, split))]
        pairs = np.array(rows, dtype=float).reshape(-1, 2)  # NULL, read as None, becomes NaN
        return pairs[:, 0].copy(), pairs[:, 1].copy()

    def splits(self, run_id: str) -> list[str]:
        """The splits that a run has predictions on, in the order they were added: the main one first."""
        query = "SELECT split FROM splits WHERE run_id = ? ORDER BY rowid"
        return [row["split"] for row in self._db.read(query, (run_id,))]

    def _status(self, run_id: str) -> str | None:
        rows = self._db.read("SELECT status FROM runs WHERE run_id = ?", (run_id,))
        return rows[0]["status"] if rows else None

    def _check_running(self, run_id: str) -> None:
        status = self._status(run_id)
        if status is None:
            raise StoreError(f"{self.path}: run {run_id} was never begun in this store")
        if status != "running":
            raise StoreError(f"{self.path}: run {run_id} is {status} already, so it cannot change")

    def _records(self, where: str, values: Sequence[str]) -> list[RunRecord]:
        with self._db.transaction("DEFERRED"):
            rows = self._db.read(f"SELECT * FROM runs {where} ORDER BY created_at, rowid", values)
            chosen = f"SELECT run_id FROM runs {where}"
            found = self._db.read(f"SELECT * FROM metrics WHERE run_id IN ({chosen}) ORDER BY rowid", values)
            counted = self._db.read(f"SELECT * FROM costs WHERE run_id IN ({chosen}) ORDER BY name", values)
        metrics: dict[str, dict[str, MetricValue]] = {row["run_id"]: {} for row in rows}
        costs: dict[str, dict[str, float]] = {row["run_id"]: {} for row in rows}
        for row in counted:
            costs[row["run_id"]][row["name"]] = _number(row["value"])
        for row in found:
            metrics[row["run_id"]][row["name"]] = MetricValue(_number(row["value"]), _number(row["se"]), row["n"])
        return [_record(row, metrics[row["run_id"]], costs[row["run_id"]]) for row in rows]


def _columns(record: RunRecord) -> dict[str, object]:
    """The record as columns of the table `runs`; numbers are made plain, because SQLite stores NumPy's as bytes."""
    return {
        "run_id": record.run_id,
        "status": record.status,
        "method": record.method,
        "task": record.task,
        "model": record.model,
        "seed": int(record.seed),
        "budget": record.budget,
        "parameters": int(record.parameters),
        "peak_parameters": int(record.peak_parameters),
        "train_seconds": float(record.train_seconds),
        "steps": int(record.steps),
        "checkpoint": record.checkpoint,
        "error": record.error,
        **{name: json.dumps(_finite(getattr(record, name)), allow_nan=False, default=str) for name in _JSON},
    }


def _record(row: Row, metrics: dict[str, MetricValue], costs: dict[str, float]) -> RunRecord:
    values = dict(row)
    del values["created_at"], values["finished_at"]
    values |= {name: json.loads(values[name]) for name in _JSON}
    values["train_seconds"] = _number(values["train_seconds"])
    return RunRecord(**values, metrics=metrics, costs=costs)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _finite(value: object) -> object:
    """`value` as standard JSON can say it: NumPy numbers plain, NaN and infinities as strings."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
