"""Engine `ray`: every run is a Ray task, on this machine or on a Ray cluster.

Tasks and not Ray Train: a run needs one process, and a run on many GPUs is `torchrun`'s business. Lost tasks are
retried by our own loop, so that retries mean the same with every engine.
"""

import logging
from collections.abc import Sequence
from typing import Any

from rankwise.errors import MissingPackageError, TrainingError
from rankwise.experiments.engines.contract import ENGINES, PATIENCE_SECONDS, Ended, Engine, EngineOptions
from rankwise.experiments.engines.local import workers_here
from rankwise.experiments.engines.work import Job, do, thread_variables

QUEUED_PER_WORKER = 2
"""Runs handed to Ray per worker: enough that none waits for this process, few enough that 10,000 runs stay cheap."""


@ENGINES.register("ray")
class RayEngine(Engine):
    """Tasks of a Ray cluster (`address`: `auto`, `ray://HOST:10001`), or of one that is started here."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._ray = ray = _package()
        needs = options.resources
        started: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        if options.address is None:
            started |= {"num_cpus": workers_here(options) * needs.cpus}
        else:
            started |= {"address": options.address}
        try:
            ray.init(**started, runtime_env={"env_vars": thread_variables(needs.cpus)})
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = options.address or "on this machine"
            raise TrainingError(f"engine 'ray': no Ray cluster {where}: {error}") from error
        memory = None if needs.memory_gib is None else int(needs.memory_gib * 2**30)
        self._task = ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, memory=memory, max_retries=0, max_calls=0)(do)
        self._ids: dict[Any, str] = {}

    @classmethod
    def at_once(cls, options: EngineOptions) -> int | None:
        """What this machine carries, if it is to be the cluster; another cluster is not asked."""
        return workers_here(options) if options.address is None else options.workers

    def room(self) -> int:
        """Places in Ray's queue; it grows and shrinks with the cluster."""
        needs, there = self.options.resources, self._ray.cluster_resources()
        workers = self.options.workers or max(1, int(there.get("CPU", 1) // needs.cpus))
        if needs.gpus and self.options.workers is None:
            workers = max(1, min(workers, int(there.get("GPU", 0) / needs.gpus)))
        queued = 1 if self.options.workers and self.options.address else QUEUED_PER_WORKER
        return workers * queued - len(self._ids)

    def start(self, jobs: Sequence[Job]) -> None:
        """Submit the runs as tasks."""
        self._ids.update((self._task.remote(job), job.run_id) for job in jobs)

    def ended(self) -> list[Ended]:
        """Tasks that returned, or that were lost with their process or node."""
        refs = list(self._ids)
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=PATIENCE_SECONDS)
        if ready:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        how = [(self._ids.pop(ref), self._how(ref)) for ref in ready]
        return [Ended(run_id, reason, through=not reason) for run_id, reason in how]

    def close(self, *, stop: bool) -> None:
        """Cancel what runs, if asked to, and leave the cluster; one that was started here ends."""
        for ref in self._ids if stop else ():
            self._ray.cancel(ref, force=True)
        self._ray.shutdown()

    def _how(self, ref: Any) -> str:  # noqa: ANN401 - a ray.ObjectRef; Ray has no stubs of it that mypy reads
        try:
            self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            return " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return ""


def _package() -> Any:  # noqa: ANN401 - the module
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingPackageError("engine 'ray' needs Ray; install it with: pip install 'rankwise[ray]'") from error
    return ray
