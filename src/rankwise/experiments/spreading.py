"""How runs are spread over workers, as it was typed; nothing heavy is imported before it is needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.progress import Reporter
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.store import Store

if TYPE_CHECKING:
    from rankwise.experiments.engines import EngineOptions


@dataclass(frozen=True)
class How:
    """An engine with its options; without one runs are done one after the other in this process."""

    engine: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    minutes: float | None = None
    retries: int = 2
    address: str | None = None

    def check(self, *, dry_run: bool = False) -> None:
        """Refuse what would be ignored without a word or fail later, before anything is written.

        Raises:
            ConfigError: options of engines without an engine (a dry run may well be told the number of workers), or
                some that the engine can do nothing with.
            UnknownNameError: no such engine.
        """
        given = {
            "--workers": self.workers is not None and not dry_run,
            "--cpus": self.cpus != How.cpus,
            "--gpus": self.gpus != How.gpus,
            "--minutes": self.minutes is not None,
            "--retries": self.retries != How.retries,
            "--address": self.address is not None,
        }
        if self.engine is None and any(given.values()):
            message = "is for an engine; name one with --engine (local, ray, slurm or queue)"
            raise ConfigError("engine", [Finding(option, message) for option, was in given.items() if was])
        if self.engine is not None and not dry_run:
            self._most(self.engine)

    def at_once(self) -> tuple[int, str]:
        """How many runs are done at a time, and where that is known from, in words.

        Raises:
            RankwiseError: no such engine, or one run needs more than there is.
        """
        if self.workers is not None:
            return self.workers, "as --workers says"
        if self.engine is None:
            return 1, "one run after the other in this process; --engine spreads them"
        found = self._most(self.engine)
        if found is None:
            return 1, f"how many --engine {self.engine} finds is not known here, so one is assumed; --workers says more"
        return found, f"as --engine {self.engine} does it without --workers"

    def carry_out(self, configs: Sequence[RunConfig], store: Store, output: Path, reporter: Reporter) -> list[str]:
        """Do the missing ones of these runs; returns the run ids in order.

        Raises:
            RankwiseError: see `engines.run_with`.
        """
        from rankwise.experiments.engines import run_with

        return run_with(self.engine, configs, store, output, reporter, self._options())

    def _most(self, engine: str) -> int | None:
        from rankwise.experiments.engines import ENGINES

        options = self._options()
        options.check()
        return ENGINES[engine].at_once(options)

    def _options(self) -> "EngineOptions":
        from rankwise.experiments.engines import EngineOptions, Resources

        needs = Resources(cpus=self.cpus, gpus=self.gpus, minutes=self.minutes)
        return EngineOptions(workers=self.workers, resources=needs, retries=self.retries, address=self.address)
