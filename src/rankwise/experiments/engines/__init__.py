"""Many runs on many workers: the engines, and the one function through which commands use them."""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.compare import refuse_impossible, run_all
from rankwise.experiments.engines.contract import ENGINES, EngineOptions
from rankwise.experiments.engines.loop import Runs, carry_out
from rankwise.experiments.engines.work import Resources, one_run
from rankwise.experiments.progress import Reporter
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.store import Store

__all__ = ["ENGINES", "EngineOptions", "Resources", "run_with"]

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")


def run_with(
    engine: str | None,
    configs: Sequence[RunConfig],
    store: Store,
    output: Path,
    reporter: Reporter,
    options: EngineOptions | None = None,
) -> list[str]:
    """Do the missing ones of these runs; returns the run ids in order. Without an engine this process does them.

    With an engine one failed run does not stop the others: all failures come together at the end.

    Raises:
        UnknownNameError: no such engine.
        ConfigError: options that mean nothing, or a run that cannot be done.
        MissingPackageError: the engine's package is not installed.
        TrainingError: runs failed, or were lost with their workers too often; the others are in the store.
    """
    if engine is None:
        return run_all(configs, store, output, reporter)
    chosen, options = ENGINES[engine], options or EngineOptions()
    options.check()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("engine", [Finding("--engine", f"'{engine}' starts its own workers; leave out `torchrun`")])
    if options.function is one_run:
        refuse_impossible(configs)
    carry_out(lambda: chosen(options), Runs(configs, store, output, reporter), options)
    return [config.run_id for config in configs]
