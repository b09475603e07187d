"""A dry run: how many runs would go to how many workers, how long that takes and what it costs. Nothing is trained."""

import heapq
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.experiments.records import RunRecord
from rankwise.experiments.runner import data_of, total_steps
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.store import Store

ASSUMED_SECONDS_PER_STEP = 0.5
"""Where no stored run says better: about what a step of the embedded model takes on one core."""

HOUR = 3600.0

# From the nearest to the farthest: what a stored run must share with a run to tell how long its steps take.
_NEAR: tuple[tuple[str, Callable[[str, str, str], tuple[str, ...]]], ...] = (
    ("stored runs of this method, model and task", lambda method, model, task: (method, model, task)),
    ("stored runs of this method and model on other tasks", lambda method, model, task: (method, model)),
    ("stored runs of other methods on this model", lambda method, model, task: (model,)),
)


@dataclass(frozen=True)
class Estimate:
    """How long a run takes in seconds, and where that is known from."""

    seconds: float
    source: str


@dataclass(frozen=True)
class Group:
    """Runs of one method on one task that are estimated alike."""

    method: str
    task: str
    runs: int
    seconds: float
    source: str


@dataclass(frozen=True)
class Schedule:
    """What would happen.

    Attributes:
        total: runs that were asked for.
        done: of these, in the store already.
        loads: seconds of work of each worker, longest first.
        groups: what is left to do.
        price_per_hour: of one worker, in whatever currency.
        workers_from: where the number of workers is known from, in words.
    """

    total: int
    done: int
    workers: int
    loads: tuple[float, ...]
    groups: tuple[Group, ...]
    price_per_hour: float | None = None
    workers_from: str = ""

    @property
    def wall_hours(self) -> float:
        """Until the last worker is done."""
        return max(self.loads, default=0.0) / HOUR

    @property
    def worker_hours(self) -> float:
        """Work of all workers together."""
        return sum(self.loads) / HOUR

    @property
    def cost(self) -> float | None:
        """Every worker is paid until the last one is done."""
        return None if self.price_per_hour is None else self.wall_hours * self.workers * self.price_per_hour

    def data(self) -> dict[str, Any]:
        """The same for machines."""
        return {
            "runs": self.total,
            "in_the_store": self.done,
            "to_do": self.total - self.done,
            "workers": self.workers,
            "workers_from": self.workers_from,
            "waves": math.ceil((self.total - self.done) / self.workers),
            "wall_hours": self.wall_hours,
            "worker_hours": self.worker_hours,
            "load_hours": {
                "least": min(self.loads, default=0.0) / HOUR,
                "median": statistics.median(self.loads or [0.0]) / HOUR,
                "most": self.wall_hours,
            },
            "price_per_hour": self.price_per_hour,
            "cost": self.cost,
            "groups": [vars(group) for group in self.groups],
        }

    def text(self) -> str:
        """For people."""
        data = self.data()
        load = data["load_hours"]
        lines = [
            f"{self.total:,} runs: {self.done:,} are in the store, {data['to_do']:,} would be done by "
            f"{_count(self.workers, 'worker')} in {_count(data['waves'], 'wave')}",
            f"wall clock {self.wall_hours:,.2f} h, work {self.worker_hours:,.2f} worker-hours",
            "load per worker: " + ", ".join(f"{which} {hours:,.2f} h" for which, hours in load.items()),
        ]
        if self.workers_from:
            lines.insert(1, f"workers: {self.workers_from}")
        if self.cost is not None:
            lines.append(
                f"cost {self.cost:,.2f}: {_count(self.workers, 'worker')} for {self.wall_hours:,.2f} h at "
                f"{self.price_per_hour:,.2f} an hour"
            )
        if self.groups:
            lines += ["", f"{'method':<14}{'task':<24}{'runs':>8}{'s per run':>11}{'hours':>10}  known from"]
        lines += [
            f"{g.method:<14}{g.task:<24}{g.runs:>8,}{g.seconds:>11,.1f}{g.runs * g.seconds / HOUR:>10,.2f}  {g.source}"
            for g in self.groups
        ]
        return "\n".join([*lines, "", "starting workers, loading models and evaluating come on top"])


def dry_run(
    configs: Sequence[RunConfig], store: Store | None, workers: int, price_per_hour: float | None = None
) -> Schedule:
    """What the missing ones of these runs would take.

    Args:
        store: where finished runs are; None, if there is none yet.
        workers: runs at the same time.
        price_per_hour: of one worker.
    """
    done = store.completed() if store else set()
    missing = [config for config in configs if config.run_id not in done]
    return schedule(missing, workers, estimates(missing, store), price_per_hour, done=len(configs) - len(missing))


def schedule(
    configs: Sequence[RunConfig],
    workers: int,
    seconds_per_run: Mapping[str, Estimate],
    price_per_hour: float | None = None,
    *,
    done: int = 0,
) -> Schedule:
    """Runs in their order, each to the worker that is free first, as the engines do it.

    Args:
        configs: what is to be done.
        workers: 1 or more.
        seconds_per_run: by run id.
        price_per_hour: of one worker.
        done: runs that were asked for too, and are in the store.
    """
    seconds = [seconds_per_run[config.run_id] for config in configs]
    groups: dict[tuple[str, str, Estimate], int] = defaultdict(int)
    for config, estimate in zip(configs, seconds, strict=True):
        groups[config.method.name, config.task.name, estimate] += 1
    listed = tuple(Group(method, task, n, e.seconds, e.source) for (method, task, e), n in groups.items())
    loads = tuple(sorted(_loads((e.seconds for e in seconds), workers), reverse=True))
    return Schedule(len(configs) + done, done, workers, loads, listed, price_per_hour)


def estimates(configs: Iterable[RunConfig], store: Store | None) -> dict[str, Estimate]:
    """How long each run will take, by its id: steps times what a step of the most similar stored runs took."""
    known = _seconds_per_step(store.runs("completed") if store else [])
    return {config.run_id: _estimate(config, known) for config in configs}


def _estimate(config: RunConfig, known: Mapping[tuple[str, ...], Sequence[float]]) -> Estimate:
    epochs = config.training.max_steps is None  # only then the number of examples matters
    steps = total_steps(config, len(data_of(config).train) if epochs else 0)
    for source, key_of in _NEAR:
        if times := known.get(key_of(config.method.name, config.model.name, config.task.name)):
            per_step = statistics.median(times)
            return Estimate(steps * per_step, f"{len(times)} {source}, {per_step:.3g} s a step")
    return Estimate(steps * ASSUMED_SECONDS_PER_STEP, f"assumed: {ASSUMED_SECONDS_PER_STEP:g} s a step, no stored run")


def _seconds_per_step(records: Iterable[RunRecord]) -> dict[tuple[str, ...], list[float]]:
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for record in records:
        if record.steps and math.isfinite(record.train_seconds):
            for _, key_of in _NEAR:
                key = key_of(record.method, record.model, record.task)
                found[key].append(record.train_seconds / record.steps)
    return found


def _loads(seconds: Iterable[float], workers: int) -> list[float]:
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return free


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"
