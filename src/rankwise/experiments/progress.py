"""What a person sees while runs go on: bars on a terminal, one line per run elsewhere, nothing when silent."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rankwise.experiments.records import RunRecord


class Reporter(Protocol):
    """Told about runs as they go."""

    def begin(self, name: str, steps: int) -> None:
        """A run of `steps` optimizer steps starts."""

    def step(self, step: int, loss: float | None) -> None:
        """A step is done."""

    def end(self, record: RunRecord, *, reused: bool) -> None:
        """A run is finished, or was found finished."""

    def skip(self, text: str) -> None:
        """A run is not to be finished; why."""


class Silent:
    """Says nothing."""

    def begin(self, name: str, steps: int) -> None:
        """Nothing."""

    def step(self, step: int, loss: float | None) -> None:
        """Nothing."""

    def end(self, record: RunRecord, *, reused: bool) -> None:
        """Nothing."""

    def skip(self, text: str) -> None:
        """Nothing."""


class Relay:
    """Passes everything on to another reporter; a subclass changes some of it."""

    def __init__(self, inner: Reporter) -> None:
        self._inner = inner

    def begin(self, name: str, steps: int) -> None:
        """Pass it on."""
        self._inner.begin(name, steps)

    def step(self, step: int, loss: float | None) -> None:
        """Pass it on."""
        self._inner.step(step, loss)

    def end(self, record: RunRecord, *, reused: bool) -> None:
        """Pass it on."""
        self._inner.end(record, reused=reused)

    def skip(self, text: str) -> None:
        """Pass it on."""
        self._inner.skip(text)


def describe(record: RunRecord, *, reused: bool) -> str:
    """One line about a finished run."""
    name, metric = next(iter(record.metrics.items()))
    took = "from the store" if reused else f"{record.train_seconds:.1f} s"
    budget = f" at {record.budget}" if record.budget else ""
    training = record.config.get("training")
    rate = training.get("learning_rate") if isinstance(training, dict) else None
    at_rate = f", rate {rate:g}" if rate else ""
    return (
        f"{record.method}{budget} on {record.task}{at_rate}, seed {record.seed}: {name} {metric.value:.4f} ± "
        f"{metric.se:.4f}, {record.parameters:,} parameters, {took}"
    )


class Lines:
    """One line per run, for logs and pipes."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._done = console, total, 0

    def begin(self, name: str, steps: int) -> None:
        """Nothing yet: the line comes when the run is done."""

    def step(self, step: int, loss: float | None) -> None:
        """Nothing."""

    def end(self, record: RunRecord, *, reused: bool) -> None:
        """Print the run's line."""
        self.skip(describe(record, reused=reused))

    def skip(self, text: str) -> None:
        """Print the line."""
        self._done += 1
        self._console.print(f"[{self._done}/{self._total}] {text}", markup=False, highlight=False, soft_wrap=True)


class Bars:
    """A bar over all runs and one over the steps of the present run."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._all = progress.add_task("runs", total=total)
        self._run = progress.add_task("", total=None, visible=False)
        self._name, self._last = "", 0.0

    def begin(self, name: str, steps: int) -> None:
        """Show a bar for the new run."""
        self._name = name
        self._progress.reset(self._run, total=steps, description=name, visible=True)

    def step(self, step: int, loss: float | None) -> None:
        """Move the bar; at most ten times a second."""
        if (now := time.monotonic()) - self._last < 0.1:
            return
        self._last = now
        label = self._name if loss is None else f"{self._name}  loss {loss:.3f}"
        self._progress.update(self._run, completed=step, description=label)

    def end(self, record: RunRecord, *, reused: bool) -> None:
        """Print the run's line above the bars."""
        self.skip(describe(record, reused=reused))

    def skip(self, text: str) -> None:
        """Print the line above the bars."""
        self._progress.update(self._run, visible=False)
        self._progress.advance(self._all)
        self._progress.console.print(text, markup=False, highlight=False)


@contextmanager
def reporter(total: int, *, quiet: bool = False) -> Iterator[Reporter]:
    """The reporter that fits where standard error goes; standard output stays free for results."""
    console = Console(stderr=True)
    if quiet:
        yield Silent()
    elif not console.is_terminal:
        yield Lines(console, total)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield Bars(progress, total)
