"""What `rankwise worker` does, from plain values to plain values."""

from pathlib import Path

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.engines.queue import open_queue
from rankwise.experiments.engines.work import Resources
from rankwise.experiments.engines.worker import WorkerOptions, work_on
from rankwise.experiments.progress import reporter
from rankwise.experiments.shown import Summary


def work(queue: str, *, output: Path, cpus: int, lease_seconds: float, stay: bool) -> Summary:
    """Do runs from a queue until none is left.

    Raises:
        StoreError: the queue cannot be used.
        ConfigError: a queue that is neither a database's URL nor a path.
    """
    options = WorkerOptions(output, Resources(cpus=cpus), lease_seconds, stay=stay)
    with open_queue(_named(queue)) as opened:
        counts = opened.counts()
        with reporter(counts["waiting"] + counts["running"]) as shown:
            done = work_on(opened, options, shown)
    text = f"{len(done.completed)} runs completed, {len(done.failed)} failed, none is left in the queue"
    return Summary(text, {"completed": done.completed, "failed": done.failed})


def status(queue: str) -> Summary:
    """How many runs of a queue wait, are in work, came back or failed.

    Raises:
        StoreError: the queue cannot be used.
    """
    with open_queue(_named(queue)) as opened:
        counts = opened.counts()
    return Summary("\n".join(f"{state:<10} {count:>7,}" for state, count in counts.items()), counts)


def _named(queue: str) -> str:
    scheme, sign, _ = queue.partition("://")
    if sign and scheme not in ("postgresql", "postgres"):
        message = f"'{scheme}://' is not a queue; allowed are postgresql://USER@HOST/DATABASE and a SQLite file's path"
        raise ConfigError("worker", [Finding("QUEUE", message)])
    return queue
