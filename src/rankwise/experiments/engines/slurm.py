"""Engine `slurm`: every run is a Slurm job, submitted through submitit; or a local process, to try that it works."""

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, Finding, MissingPackageError
from rankwise.experiments.engines.contract import ENGINES, PATIENCE_SECONDS, Ended, Engine, EngineOptions
from rankwise.experiments.engines.local import workers_here
from rankwise.experiments.engines.work import Job, do
from rankwise.experiments.store_merge import SHARDS

JOBS_AT_ONCE = 500
"""Jobs in Slurm's queue if `--workers` does not say; many sites allow arrays of 1,000."""

SPARE_MINUTES = 10
"""Slurm's time limit beyond ours: `minutes` counts from the start of the run, Slurm's from that of the job."""

DAY = 24 * 60
LOCAL = "local"


@ENGINES.register("slurm")
class SlurmEngine(Engine):
    """Slurm jobs, one run each; `address` holds Slurm's own settings (`partition=gpu,account=me`), or is `local`."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._local, self._settings = _read(options.address)
        self._submitit = _package()
        self._jobs: dict[str, Any] = {}
        self._executor: Any = None
        self._folder = Path()
        self._at_once = self.at_once(options)

    @classmethod
    def at_once(cls, options: EngineOptions) -> int:
        """Jobs in the queue at a time; without Slurm as many as this machine carries."""
        here, _ = _read(options.address)
        return workers_here(options) if here else options.workers or JOBS_AT_ONCE

    def room(self) -> int:
        """Jobs that may still be in the queue."""
        return self._at_once - len(self._jobs)

    def start(self, jobs: Sequence[Job]) -> None:
        """Submit the runs, together as one job array where Slurm is used."""
        if self._executor is None:
            self._folder = Path(jobs[0].output) / SHARDS / "jobs"
            self._executor = self._make(self._folder)
        with self._executor.batch():
            submitted = [(job.run_id, self._executor.submit(do, job)) for job in jobs]
        self._jobs.update(submitted)

    def ended(self) -> list[Ended]:
        """Jobs that returned, failed, ran out of time or went with their node."""
        done = [run_id for run_id, job in self._jobs.items() if job.done()]
        if not done:
            time.sleep(PATIENCE_SECONDS)
        how = [(run_id, self._how(self._jobs.pop(run_id))) for run_id in done]
        return [Ended(run_id, reason, through=not reason) for run_id, reason in how]

    def close(self, *, stop: bool) -> None:
        """Cancel what runs, if asked to, and remove submitit's files unless one tells of a failure."""
        for job in self._jobs.values() if stop else ():
            job.cancel(check=False)
            with suppress(Exception):
                job.wait()
        if self._executor is not None and not any(self._folder.glob("*")):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self, folder: Path) -> Any:  # noqa: ANN401 - a submitit executor
        needs = self.options.resources
        executor = self._submitit.AutoExecutor(folder=folder, cluster=LOCAL if self._local else "slurm")
        executor.update_parameters(
            name="rankwise",
            timeout_min=DAY if needs.minutes is None else int(needs.minutes) + SPARE_MINUTES,
            cpus_per_task=needs.cpus,
            gpus_per_node=int(-(-needs.gpus // 1)),
            **({} if needs.memory_gib is None else {"mem_gb": needs.memory_gib}),
            **({} if self._local else {f"slurm_{name}": value for name, value in self._settings.items()}),
        )
        return executor

    def _how(self, job: Any) -> str:  # noqa: ANN401 - a submitit job
        try:
            error = job.exception()
        except Exception as lost:  # submitit: no result, and why it thinks so
            error = lost
        if error is None:
            for path in (job.paths.submission_file, job.paths.result_pickle, job.paths.stdout, job.paths.stderr):
                path.unlink(missing_ok=True)
            return ""
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _read(address: str | None) -> tuple[bool, dict[str, str]]:
    """`local`, or settings with commas.

    Raises:
        ConfigError: neither.
    """
    if address == LOCAL:
        return True, {}
    pairs = [part.partition("=") for part in (address or "").split(",") if part]
    if wrong := [name for name, sign, value in pairs if not (name.isidentifier() and sign and value)]:
        message = f"cannot read {', '.join(wrong)}; write 'local', or Slurm's settings: 'partition=gpu,account=me'"
        raise ConfigError("engine 'slurm'", [Finding("--address", message)])
    return False, {name: value for name, _, value in pairs}


def _package() -> Any:  # noqa: ANN401 - the module
    try:
        import submitit
    except ImportError as error:
        raise MissingPackageError(
            "engine 'slurm' needs submitit; install it with: pip install 'rankwise[slurm]'"
        ) from error
    return submitit
