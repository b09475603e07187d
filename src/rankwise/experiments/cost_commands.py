"""`rankwise cost`: from plain values to plain values, like `commands`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.adapter_commands import Answer
from rankwise.experiments.adapter_plots import new_plot_path
from rankwise.experiments.adapter_source import Choice, Source, find_source
from rankwise.experiments.compare import PLAN, STORE, read_plan
from rankwise.experiments.cost_inputs import Wanted
from rankwise.experiments.cost_measure import Measuring, measure_source
from rankwise.experiments.cost_plot import plot_latency
from rankwise.experiments.cost_table import cost_tables, summary_table
from rankwise.experiments.runner import CHECKPOINTS
from rankwise.experiments.store import Store

LARGEST = 4096
"""Batch sizes above this are a slip."""


@dataclass(frozen=True)
class CostOptions:
    """The options of `rankwise cost` as they were typed."""

    source: str
    choice: Choice = field(default_factory=Choice)
    model: str | None = None
    wanted: Wanted = field(default_factory=Wanted)
    batch_sizes: str = "1,8,32"
    rounds: int = 20
    plot: Path | None = None


def cost(options: CostOptions) -> Answer:
    """Measure one checkpoint, or all of a run folder that fit what was chosen.

    Raises:
        ConfigError: batch sizes that are none, a picture of checkpoints without an accuracy, a task that is none.
        DataError, ModelError, OutputError, StoreError: a checkpoint, base model, text or file that cannot be had.
    """
    sizes = batch_sizes(options.batch_sizes)
    if options.plot is not None:
        new_plot_path(options.plot)
    sources = find_sources(options.source, options.choice)
    metric = _metric(sources) if options.plot is not None else ""
    how = Measuring(options.wanted, sizes, options.rounds, options.model, memory=len(sources) == 1)
    console = Console(stderr=True)
    each = []
    for number, source in enumerate(sources):
        what = source.record.run_id if source.record else source.folder.name
        if len(sources) > 1:
            console.print(f"[{number + 1}/{len(sources)}] {what}", markup=False, highlight=False)
        each.append(measure_source(source, how, _Shown(console)))
    lines = [f"note: {note}" for note in dict.fromkeys(note for data in each for note in data["notes"])]
    data: dict[str, Any] = each[0] if len(each) == 1 else {"runs": each}
    if options.plot is not None:
        measured = [(source.record, one) for source, one in zip(sources, each, strict=True) if source.record]
        data = data | {"plot": str(plot_latency(measured, options.plot, metric))}
        lines.append(data["plot"])
    lines.append(_where(each[0]))
    return Answer(tuple(lines), data, tuple(cost_tables(each[0])) if len(each) == 1 else (summary_table(each),))


def batch_sizes(text: str) -> tuple[int, ...]:
    """`1,8,32` as numbers.

    Raises:
        ConfigError: some of them are none, or not between 1 and `LARGEST`.
    """
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal() or not 1 <= int(part) <= LARGEST]
    if wrong:
        message = f"'{wrong[0]}' in '{text}' is no batch size; write whole numbers from 1 to {LARGEST}, such as 1,8,32"
        raise ConfigError("cost", [Finding("--batch-sizes", message)])
    return tuple(dict.fromkeys(int(part) for part in parts))


def find_sources(text: str, choice: Choice) -> list[Source]:
    """The checkpoint that is meant, or all completed runs of a run folder that fit.

    Raises:
        ConfigError, ModelError, OutputError, StoreError: see `adapter_source.find_source`.
    """
    root = Path(text).expanduser()
    if not (root / PLAN).is_file():
        return [find_source(text, choice)]
    plan = read_plan(root)
    path = root / plan.get("store", STORE)
    found = []
    if path.is_file():
        with Store(path) as store:
            records = [record for run_id in plan["runs"] if (record := store.get(run_id)) is not None]
        found = [record for record in records if record.status == "completed" and choice.fits(record)]
    if len(found) < 2:
        return [find_source(text, choice)]  # or why there is none
    return [find_source(str(root / CHECKPOINTS / record.run_id)) for record in found]


def _metric(sources: Sequence[Source]) -> str:
    """The first metric of all runs.

    Raises:
        ConfigError: a checkpoint that is of no run, or a run without that metric.
    """
    records = [source.record for source in sources]
    first = next((name for record in records if record for name in record.metrics), None)
    for source, record in zip(sources, records, strict=True):
        if record is None or first not in record.metrics:
            message = f"nothing is known of the accuracy of {source.folder}; only runs of a run folder can be drawn"
            raise ConfigError("cost", [Finding("--plot", message)])
    return str(first)


def _where(data: dict[str, Any]) -> str:
    machine = data["machine"]
    where = data["device"] if data["device"] != "cpu" else f"{data['threads']} of {machine['cores']} cores"
    return f"measured on {where}, {machine['processor']}; {data['inputs']['what']}"


class _Shown:
    """A bar on a terminal, a line elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def __call__(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        if not self.console.is_terminal:
            self.console.print(f"{what} …", markup=False, highlight=False)
            yield lambda: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)
