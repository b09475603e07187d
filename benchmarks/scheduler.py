"""What the engines and the store cost themselves, per run: 100, 1,000 and 10,000 runs that do nothing.

    python benchmarks/scheduler.py --output benchmarks/results/scheduler.json
    python benchmarks/scheduler.py --sizes 100,1000 --engines store,local

A run here is its rows: 20 losses, 10 ranks, 100 predictions, 2 metrics. The clock starts when the first run comes back,
so that starting workers (they import torch) is reported apart. `ms_last_tenth` against `ms_first_tenth` shows whether
the cost grows with the number of runs. Engine `slurm` is left out: it starts a process per run, and what that costs is
importing torch. The queue in PostgreSQL needs `--postgres URL` of an empty database.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from rankwise.experiments.engines import EngineOptions, run_with
from rankwise.experiments.engines.queue import open_queue
from rankwise.experiments.engines.worker import WorkerOptions, work_on
from rankwise.experiments.environment import machine, versions
from rankwise.experiments.progress import Reporter, Silent
from rankwise.experiments.records import RunRecord
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.store import Store
from rankwise.tasks.base import MetricValue

WORKERS = 2
STEPS, MODULES, EXAMPLES = 20, 10, 100
LIMIT_MS = 50.0
IDLE = 0.5
"""Load average above which the numbers are about the neighbours."""


def nothing(config: RunConfig, store: Store, output: Path, reporter: Reporter | None = None) -> None:
    """A run that is nothing but its rows."""
    values = config.model_dump(mode="json")
    names = (config.method.name, config.task.name, config.model.name)
    record = RunRecord(config.run_id, *names, config.seed, None, config=values)
    store.begin(record)
    store.add_steps(record.run_id, [(step, "train_loss", 1 / step) for step in range(1, STEPS + 1)])
    store.add_ranks(record.run_id, 0, "start", {f"layer.{i}": 4 for i in range(MODULES)}, {})
    store.add_predictions(record.run_id, "validation", [1.0] * EXAMPLES, [1.0] * EXAMPLES)
    metrics = {name: MetricValue(0.5, 0.1, EXAMPLES) for name in ("accuracy", "loss")}
    store.finish(replace(record, metrics=metrics, steps=STEPS, train_seconds=1.0))


class Clock(Silent):
    """When each run came back."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def end(self, record: RunRecord, *, reused: bool) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def store_alone(runs: Sequence[RunConfig], output: Path, clock: Clock, address: str | None) -> None:
    """Every run written straight into one store, in one process."""
    with Store(output / "store.sqlite") as store:
        for config in runs:
            nothing(config, store, output)
            clock.times.append(time.perf_counter())


def with_engine(engine: str) -> Callable[[Sequence[RunConfig], Path, Clock, str | None], None]:
    """Every run through an engine, with `WORKERS` workers."""

    def measure(runs: Sequence[RunConfig], output: Path, clock: Clock, address: str | None) -> None:
        with Store(output / "store.sqlite") as store:
            run_with(engine, runs, store, output, clock, EngineOptions(WORKERS, address=address, function=nothing))

    return measure


def with_queue(runs: Sequence[RunConfig], output: Path, clock: Clock, address: str | None) -> None:
    """Every run through a queue and `WORKERS` worker processes."""
    where = address or str(output / "queue.sqlite")
    open_queue(where).close()
    spawn = get_context("spawn")
    workers = [spawn.Process(target=work, args=(where, str(output / f"work{i}"))) for i in range(WORKERS)]
    for worker in workers:
        worker.start()
    with_engine("queue")(runs, output, clock, where)
    for worker in workers:
        worker.join()


def work(where: str, folder: str) -> None:
    """A worker process; waits for the first run."""
    with open_queue(where) as queue:
        while not sum(queue.counts().values()):
            time.sleep(0.05)
        work_on(queue, WorkerOptions(Path(folder), function=nothing))


ENGINES: dict[str, Callable[[Sequence[RunConfig], Path, Clock, str | None], None]] = {
    "store": store_alone,
    "local": with_engine("local"),
    "ray": with_engine("ray"),
    "queue-sqlite": with_queue,
    "queue-postgres": with_queue,
}


def measure(engine: str, runs: Sequence[RunConfig], address: str | None) -> dict[str, object]:
    """One row of the table.

    Raises:
        SystemExit: a run is missing, or was done twice.
    """
    output, clock = Path(tempfile.mkdtemp(prefix="rankwise-scheduler-")), Clock()
    try:
        start = time.perf_counter()
        ENGINES[engine](runs, output, clock, address)
        with Store(output / "store.sqlite") as store:
            if len(clock.times) != len(runs) or len(store.completed()) != len(runs):
                raise SystemExit(f"{engine}: {len(runs)} runs wanted, {len(clock.times)} came back")
        size = (output / "store.sqlite").stat().st_size
    finally:
        shutil.rmtree(output, ignore_errors=True)
    times, tenth = clock.times, max(1, len(runs) // 10)
    return {
        "engine": engine,
        "runs": len(runs),
        "ms_per_run": _ms(times),
        "ms_first_tenth": _ms(times[: tenth + 1]),
        "ms_last_tenth": _ms(times[-tenth - 1 :]),
        "start_seconds": round(times[0] - start, 2),
        "store_bytes_per_run": round(size / len(runs)),
    }


def _ms(times: Sequence[float]) -> float:
    return round((times[-1] - times[0]) / (len(times) - 1) * 1000, 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100,1000,10000", help="numbers of runs, with commas")
    parser.add_argument("--engines", default="store,local,ray,queue-sqlite", help=f"of {'; '.join(ENGINES)}")
    parser.add_argument("--postgres", help="URL of an empty database: measure the queue in PostgreSQL too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", type=Path, help="also write the JSON here; refused on a busy machine")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if options.output and load > IDLE:
        raise SystemExit(f"load average {load:.1f}: the machine is busy, and the numbers would be about that; wait")
    engines = [name for name in ENGINES if name in options.engines.split(",")]
    if options.postgres:
        engines.append("queue-postgres")
    sizes = [int(size) for size in options.sizes.split(",")]
    configs = [RunConfig.model_validate({"seed": seed}) for seed in range(max(sizes))]
    rows = []
    for engine in engines:
        for size in sizes:
            rows.append(measure(engine, configs[:size], options.postgres if engine == "queue-postgres" else None))
            if not options.json:
                print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    result = {
        "rows": rows,
        "limit_ms": LIMIT_MS,
        "workers": WORKERS,
        "load_average": round(load, 2),
        "machine": machine(),
        "versions": versions(),
    }
    text = json.dumps(result, indent=1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    if options.json:
        print(text)


if __name__ == "__main__":
    main()
