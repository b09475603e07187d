"""How runs are spread over workers, as it was typed; nothing heavy is imported before it is needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rankwise.experiments.progress import Reporter
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.store import Store


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

    def carry_out(self, configs: Sequence[RunConfig], store: Store, output: Path, reporter: Reporter) -> list[str]:
        """Do the missing ones of these runs; returns the run ids in order.

        Raises:
            RankwiseError: see `engines.run_with`.
        """
        from rankwise.experiments.engines import EngineOptions, Resources, run_with

        needs = Resources(cpus=self.cpus, gpus=self.gpus, minutes=self.minutes)
        options = EngineOptions(workers=self.workers, resources=needs, retries=self.retries, address=self.address)
        return run_with(self.engine, configs, store, output, reporter, options)
