"""What an engine is: it hands runs to workers and says which have ended. Everything else is the same for all engines.

To add one: a file in this folder with a subclass of `Engine`, registered under its name.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.engines.work import Job, Resources, RunFunction, one_run
from rankwise.registry import Registry

PATIENCE_SECONDS = 0.5
"""How long `Engine.ended` waits before it answers that nothing has happened."""


@dataclass(frozen=True)
class EngineOptions:
    """How runs are spread; `None` lets the engine choose.

    `address` is the engine's own: a Ray cluster, Slurm settings (`partition=gpu,account=me`, or `local`), a queue.
    """

    workers: int | None = None
    resources: Resources = field(default_factory=Resources)
    retries: int = 2
    address: str | None = None
    function: RunFunction = one_run

    def check(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            ConfigError: with every problem.
        """
        needs = self.resources
        wrong = [
            ("--workers", self.workers, self.workers is not None and self.workers < 1, "1 or more"),
            ("--retries", self.retries, self.retries < 0, "0 or more"),
            ("--cpus", needs.cpus, needs.cpus < 1, "1 or more"),
            ("--gpus", needs.gpus, needs.gpus < 0, "0 or more (0.5: two runs share one)"),
            ("--memory", needs.memory_gib, needs.memory_gib is not None and needs.memory_gib <= 0, "above 0 (GiB)"),
            ("--minutes", needs.minutes, needs.minutes is not None and needs.minutes <= 0, "above 0"),
        ]
        findings = [Finding(name, f"{value} given; allowed is {allowed}") for name, value, bad, allowed in wrong if bad]
        if findings:
            raise ConfigError("engine", findings)


@dataclass(frozen=True)
class Ended:
    """A worker is through with a run, or gone.

    `reason` says how it went where the engine knows; `through`, that the worker came to its own end: what it left must
    be there then, and trying again would be no use.
    """

    run_id: str
    reason: str = ""
    through: bool = False


class Engine(ABC):
    """Workers on some machines. Made when there is something to do, closed when all is done or given up."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    @classmethod
    def at_once(cls, options: EngineOptions) -> int | None:
        """How many runs it would do at a time; starts nothing. None: only those who start workers know.

        Raises:
            ConfigError: options that it cannot do anything with.
        """
        return options.workers

    @abstractmethod
    def room(self) -> int:
        """How many more runs may be started now."""

    @abstractmethod
    def start(self, jobs: Sequence[Job]) -> None:
        """Hand runs to workers; at most `room()` of them."""

    @abstractmethod
    def ended(self) -> list[Ended]:
        """The runs that ended since the last call; waits up to `PATIENCE_SECONDS` for one."""

    @abstractmethod
    def close(self, *, stop: bool) -> None:
        """Let the workers go; with `stop` those at work are ended first, and keep their last saved states."""


ENGINES: Registry[type[Engine]] = Registry("engine")
