"""What `rankwise sweep` does, from plain values to plain values."""

import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.errors import ConfigError, Finding
from rankwise.experiments import config as configs
from rankwise.experiments.compare import STORE
from rankwise.experiments.progress import Silent, reporter
from rankwise.experiments.report import Report, write_report
from rankwise.experiments.runner import run
from rankwise.experiments.schema import SweepConfig
from rankwise.experiments.store import Store
from rankwise.experiments.sweep import Place, Sweep, plan_sweep, so_far, work
from rankwise.experiments.sweep_folder import BEST, claim_folder, name_runs, write_trials
from rankwise.experiments.sweep_locks import cleared, locked
from rankwise.experiments.sweep_results import Trial, best_of, notes, trial_json
from rankwise.experiments.sweep_space import in_words
from rankwise.experiments.sweep_storage import shown_url, storage_at, storage_url
from rankwise.experiments.table import comparison_table

if TYPE_CHECKING:
    from rich.table import Table

RUNS = Path("runs")
_SHOWN = 5
"""Trials in the printed table; `trials.csv` has all."""


@dataclass(frozen=True)
class SweepOptions:
    """The options of `rankwise sweep` as they were typed; None leaves the file's value."""

    trials: int | None = None
    sampler: str | None = None
    seeds: int | None = None
    storage: str | None = None


@dataclass(frozen=True)
class SweepShown:
    """What the command shows: tables with lines below them, and the same as JSON-ready data."""

    tables: "tuple[Table, ...]"
    lines: tuple[str, ...]
    content: dict[str, Any]


def sweep(
    file: Path,
    overrides: Sequence[str],
    options: SweepOptions,
    *,
    output: Path | None,
    store: Path | None,
    command: str,
) -> SweepShown:
    """Be one worker of a file's sweep until all its trials are done, run the best over seeds, and write the report.

    Raises:
        ConfigError: every error of the file and the options at once.
        RankwiseError: what can go wrong in a run, or with the study.
    """
    planned = sweep_of(file, overrides, options)
    folder = output or RUNS / planned.name
    url = storage_url(options.storage, folder)
    command = _without_password(command, options.storage)
    claim_folder(folder, planned, command, store or folder / STORE, shown_url(url))
    with storage_at(url) as study, Store(store or folder / STORE) as opened:
        left = len(planned.first()) - so_far(planned, Place(url, study, opened, folder, Silent()))
        with reporter(left + planned.settings.seeds) as shown:
            place = Place(url, study, opened, folder, shown)
            trials = work(planned, place)
            best = best_of(trials, planned.direction)
            # The other workers come here at the same time.
            with cleared(place.locks), locked(place.locks, f"report-{planned.name}", tidy=True):
                files = write_trials(folder, planned, trials, best)
                made = _run_best(planned, best, place, command)
    return _shown(planned, trials, best, made, folder, files)


def sweep_of(file: Path, overrides: Sequence[str], options: SweepOptions) -> Sweep:
    """The sweep that a file, its overrides and the options describe.

    Raises:
        ConfigError: what is wrong with them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        text = "a sweep is not run under torchrun; start several workers instead: the same command in several shells"
        raise ConfigError("sweep", [Finding("", text)])
    config = configs.load(file, overrides).config
    given = {"n_trials": options.trials, "sampler": options.sampler, "seeds": options.seeds}
    changed = {name: value for name, value in given.items() if value is not None}
    if config.sweep is not None and changed:
        if options.sampler is not None and options.sampler not in ("tpe", "grid"):
            raise ConfigError("sweep", [Finding("--sampler", f"'{options.sampler}' is none of tpe, grid")])
        settings = SweepConfig.model_validate({**config.sweep.model_dump(), **changed})
        config = config.model_copy(update={"sweep": settings})
    return plan_sweep(config, str(file))


def _run_best(planned: Sweep, best: Trial, place: Place, command: str) -> Report | None:
    """The best trial's values with every seed, on all training examples, measured on the validation examples."""
    finals = [planned.final(best.values, seed) for seed in range(planned.settings.seeds)]
    if not finals:
        return None
    name_runs(place.output, finals, command, place.store.path)
    for config in finals:
        with locked(place.locks, config.run_id, tidy=True):
            run(config, place.store, place.output, place.reporter)
    return write_report(place.store, [config.run_id for config in finals], place.output, command=command)


def _without_password(command: str, storage: str | None) -> str:
    """The command as typed, but for the password in its storage URL."""
    if not storage:
        return command
    for written in (shlex.quote(storage), storage):
        command = command.replace(written, shown_url(storage))
    return command


def _shown(
    planned: Sweep, trials: Sequence[Trial], best: Trial, made: Report | None, folder: Path, files: Sequence[Path]
) -> SweepShown:
    said = notes(planned.settings, planned.metric, trials, best)
    paths = [*files, *(made.files if made else ())]
    lines = [f"best: trial {best.number}, {in_words(best.values)}", *(f"note: {note}" for note in said), ""]
    lines += [*map(str, paths), f"{folder}/checkpoints"]
    if made is None:
        lines.append(f"the best was not run again (seeds 0): rankwise run {folder / BEST}")
    tables = [_table(planned, trials), *([comparison_table(made.records, made.comparisons)] if made else [])]
    content = {
        "study": planned.name,
        "metric": planned.metric,
        "direction": planned.direction,
        "trials": [trial_json(trial) for trial in trials],
        "best": trial_json(best),
        "best_config": str(folder / BEST),
        "notes": said,
        "results": made.content if made else None,
    }
    return SweepShown(tuple(tables), tuple(lines), content)


def _table(planned: Sweep, trials: Sequence[Trial]) -> "Table":
    from rich.table import Table

    sign = -1 if planned.direction == "maximize" else 1
    done = sorted(
        (trial for trial in trials if trial.value is not None),
        key=lambda trial: (sign * trial.value.value if trial.value else math.inf, trial.number),
    )
    title = f"best {min(_SHOWN, len(done))} of {len(trials)} trials, on held-out training examples"
    table = Table(title=title)
    for path in ("trial", *planned.settings.search_space, planned.metric):
        table.add_column(path.rpartition(".")[2])
    for trial in done[:_SHOWN]:
        if trial.value is None:
            continue
        chosen = [in_words({path: trial.values[path]}).partition(" ")[2] for path in planned.settings.search_space]
        table.add_row(str(trial.number), *chosen, f"{trial.value.value:.4f} ± {trial.value.se:.4f}")
    return table
