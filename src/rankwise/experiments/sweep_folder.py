"""The output folder of a sweep: whose it is, and what is written into it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import OutputError
from rankwise.experiments.compare import PLAN, STORE
from rankwise.experiments.config import to_yaml
from rankwise.experiments.results import write_atomically
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.sweep import Sweep
from rankwise.experiments.sweep_plot import plot_sweep
from rankwise.experiments.sweep_results import Trial, trials_csv
from rankwise.experiments.sweep_storage import STUDY

SWEEP, TRIALS, BEST, PLOT = "sweep.json", "trials.csv", "best.yaml", "tuning.png"


def claim_folder(output: Path, sweep: Sweep, command: str, store: Path, storage: str) -> None:
    """Mark a folder as belonging to this sweep, or find that it does already.

    Args:
        output: the folder.
        sweep: whose it is to be.
        command: what was typed, without passwords.
        store: the results store's file.
        storage: where the study is, without a password.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
    """
    path = output / SWEEP
    if path.is_file():
        there = _read(path)
        if there.get("study") != sweep.name:
            raise OutputError(
                f"{output} holds another sweep ({there.get('study')} there, {sweep.name} here: another config, search "
                f"space, sampler, pruner or held-out share); choose another --output. To use its finished runs again, "
                f"add --store {output / STORE}"
            )
        return
    foreign = _foreign(output)
    if path.is_file():  # another worker of the same sweep was faster
        return claim_folder(output, sweep, command, store, storage)
    if foreign or (output.exists() and not output.is_dir()):
        what = f"holds other files ({', '.join(foreign[:3])})" if foreign else "is a file"
        raise OutputError(f"{output} {what}; choose another --output, nothing is overwritten")
    content = {
        "command": command,
        "study": sweep.name,
        "storage": storage,
        "store": os.path.relpath(store, output),
        "config": sweep.config.model_dump(mode="json"),
    }
    write_atomically(path, _json(content))


def write_trials(output: Path, sweep: Sweep, trials: Sequence[Trial], best: Trial) -> list[Path]:
    """Write `trials.csv`, the plot and `best.yaml`; what an earlier end of this sweep wrote is replaced."""
    table = trials_csv(sweep.settings, sweep.metric, trials)
    config = to_yaml(sweep.final(best.values, sweep.config.seed))
    return [
        write_atomically(output / TRIALS, table.encode()),
        plot_sweep(sweep.settings, sweep.metric, trials, best, output / PLOT),
        write_atomically(output / BEST, config.encode()),
    ]


def name_runs(output: Path, configs: Sequence[RunConfig], command: str, store: Path) -> None:
    """Note the runs of the best trial, so that `report`, `export` and the others find them as in any run folder."""
    content = {
        "command": command,
        "store": os.path.relpath(store, output),
        "runs": {config.run_id: config.model_dump(mode="json") for config in configs},
    }
    write_atomically(output / PLAN, _json(content))


def _foreign(output: Path) -> list[str]:
    """Files in a folder that are not a sweep's databases."""
    if not output.is_dir():
        return []
    try:
        return sorted(path.name for path in output.iterdir() if not path.name.startswith((STORE, STUDY, ".")))
    except OSError as error:
        raise OutputError(f"cannot read {output}: {error.strerror or error}; choose another --output") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise OutputError(f"cannot read {path}: it is no mapping")
    return content


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
