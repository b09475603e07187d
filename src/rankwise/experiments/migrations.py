"""The tables of the results store, and how an older store becomes a current one.

A migration is a function that changes the schema; its name is written down in the store once it has run. To
change the schema, append a function to `MIGRATIONS`; never edit or reorder one that was released. The comments
inside the SQL stay in the store (`sqlite3 store.sqlite .schema` shows them) and are the documentation of the columns.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

Migration = Callable[["sqlite3.Connection"], None]

APPLIED = "rankwise_migrations"
"""Table of applied migrations; a SQLite file with tables but without this one is not a Rankwise store."""

_RUNS = """CREATE TABLE runs (
    run_id TEXT PRIMARY KEY,             -- hash of the canonical config and the seed
    status TEXT NOT NULL
        CHECK (status IN ('running', 'completed', 'failed', 'interrupted')), -- a killed process leaves 'running'
    method TEXT NOT NULL,                -- as `rankwise list` prints it
    task TEXT NOT NULL,                  -- as `rankwise list` prints it
    model TEXT NOT NULL,                 -- base model: Hugging Face id, local folder or embedded name
    seed INTEGER NOT NULL,
    budget TEXT,                         -- as given ('0.5%', 'r=4', '200k'); NULL for full fine-tuning
    parameters INTEGER NOT NULL,         -- adapter parameters in the checkpoint
    peak_parameters INTEGER NOT NULL,    -- most adapter parameters trained at once
    train_seconds REAL,                  -- wall-clock of training without evaluation, seconds
    steps INTEGER NOT NULL,              -- optimizer steps taken
    checkpoint TEXT,                     -- path, relative to the store's folder unless absolute
    error TEXT,                          -- why a run failed or was interrupted
    rank_pattern TEXT NOT NULL,          -- JSON object: module name -> rank
    config TEXT NOT NULL,                -- JSON object: the canonical run config
    environment TEXT NOT NULL,           -- JSON object: machine, versions, code state
    created_at TEXT NOT NULL,            -- UTC, ISO 8601: when this attempt began
    finished_at TEXT                     -- UTC, ISO 8601: when it completed, failed or was interrupted
)"""

_METRICS = """CREATE TABLE metrics (
    run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE,
    name TEXT NOT NULL,                  -- in the order of the task, the primary metric first
    value REAL,                          -- NULL: not a number (undefined on these examples)
    se REAL,                             -- standard error over the evaluation examples; NULL: not a number
    n INTEGER NOT NULL,                  -- evaluation examples
    UNIQUE (run_id, name)
)"""

_STEPS = """CREATE TABLE steps (
    run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE,
    step INTEGER NOT NULL,               -- optimizer step, from 1
    name TEXT NOT NULL,                  -- train_loss, ...
    value REAL,                          -- NULL: not a number
    PRIMARY KEY (run_id, name, step)
) WITHOUT ROWID"""

_RANK_TRACE = """CREATE TABLE rank_trace (
    run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE,
    step INTEGER NOT NULL,               -- optimizer step after which the ranks held
    event TEXT NOT NULL,                 -- why this row was written: 'start', 'resize', 'end', ...
    module TEXT NOT NULL,                -- full module name in the base model
    rank INTEGER NOT NULL,               -- live rank; 0: the module has no adapter any more
    score REAL,                          -- what decided the rank; NULL: no score
    PRIMARY KEY (run_id, step, event, module)
) WITHOUT ROWID"""

_SPLITS = """CREATE TABLE splits (
    run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE,
    split TEXT NOT NULL,                 -- evaluation split, as the task names it; the main one first
    PRIMARY KEY (run_id, split)
)"""

_PREDICTIONS = """CREATE TABLE predictions (
    run_id TEXT NOT NULL,
    split TEXT NOT NULL,
    example INTEGER NOT NULL,            -- position in the split, from 0; the same example for every run
    prediction REAL,                     -- class index, or value (regression); NULL: not a number
    reference REAL,                      -- what was right, in the same form
    PRIMARY KEY (run_id, split, example),
    FOREIGN KEY (run_id, split) REFERENCES splits ON DELETE CASCADE
) WITHOUT ROWID"""


_COSTS = """CREATE TABLE costs (
    run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE,
    name TEXT NOT NULL,                  -- inference_flops, total_rank, ...; docs/plans.md says what each is
    value REAL,                          -- NULL: not a number
    PRIMARY KEY (run_id, name)
) WITHOUT ROWID"""


def m001_runs(connection: "sqlite3.Connection") -> None:
    """The first schema: runs with their metrics, training steps, rank trace and predictions."""
    for statement in (_RUNS, _METRICS, _STEPS, _RANK_TRACE, _SPLITS, _PREDICTIONS):
        connection.execute(statement)


def m002_costs(connection: "sqlite3.Connection") -> None:
    """What a run's inference costs, counted when it is done."""
    connection.execute(_COSTS)


MIGRATIONS: tuple[Migration, ...] = (m001_runs, m002_costs)


def applied(connection: "sqlite3.Connection") -> set[str] | None:
    """Names of the migrations that a store has had, empty for a new file; None if the file is not a Rankwise store."""
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if APPLIED in tables:
        return {row[0] for row in connection.execute(f"SELECT name FROM {APPLIED}")}
    return None if tables else set()


def migrate(connection: "sqlite3.Connection", done: set[str], migrations: tuple[Migration, ...] = MIGRATIONS) -> None:
    """Run the migrations that are not in `done`, in order; the caller holds the write transaction."""
    connection.execute(f"CREATE TABLE IF NOT EXISTS {APPLIED} (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)")
    for migration in migrations:
        if migration.__name__ not in done:
            migration(connection)
            connection.execute(f"INSERT INTO {APPLIED} VALUES (?, datetime('now'))", (migration.__name__,))


def schema(connection: "sqlite3.Connection") -> str:
    """The tables of an open store as SQL, comments included, in the order they were made."""
    query = "SELECT sql || ';' FROM sqlite_master WHERE type = 'table' AND name <> ? ORDER BY rowid"
    return "\n\n".join(row[0] for row in connection.execute(query, (APPLIED,)))
