"""The loop of every engine: hand out, wait, settle, try lost runs again; at the end nothing is missing unnamed."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.experiments.compare import refuse_failed
from rankwise.experiments.engines.contract import Ended, Engine, EngineOptions
from rankwise.experiments.engines.work import Job, one_run
from rankwise.experiments.progress import Reporter
from rankwise.experiments.runner import inputs_of, run
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.store import Store
from rankwise.experiments.store_merge import Settled, Shard, settle
from rankwise.interrupts import check_interrupt

if TYPE_CHECKING:
    from collections.abc import Callable

NOTHING_HERE = (
    "its worker ended well, but left nothing in the run folder here: workers on other machines must share that folder"
)


class Runs:
    """The runs that somebody wants, and what is known about each. The only one who writes into the one store."""

    def __init__(self, configs: Sequence[RunConfig], store: Store, output: Path, reporter: Reporter) -> None:
        self.configs = {config.run_id: config for config in configs}
        self.failed: dict[str, str] = {}
        self._store, self._output, self._reporter = store, output.resolve(), reporter
        self._inputs: dict[tuple[str, ...], Mapping[str, object]] = {}

    def missing(self, options: EngineOptions) -> list[Job]:
        """What has to be done, after taking what the store has and what an earlier command's workers left behind."""
        jobs, done = [], self._store.completed()
        for run_id, config in self.configs.items():
            check_interrupt()
            if run_id in done:
                if options.function is one_run:
                    run(config, self._store, self._output, self._reporter)  # checks its data, brings its checkpoint
                continue
            shard = Shard(self._output, run_id)
            if not (shard.path.exists() and self.settle(run_id).outcome == "completed"):
                shard.error.unlink(missing_ok=True)  # an earlier attempt's, which is to be tried again
                output = str(self._output)
                jobs.append(Job(run_id, config.canonical(), output, options.resources, options.function))
        return jobs

    def settle(self, run_id: str) -> Settled:
        """Bring the rows of a run whose worker is through with it into the store."""
        config = self.configs[run_id]
        settled = settle(self._store, Shard(self._output, run_id), lambda: self._inputs_of(config))
        record = None if settled.outcome == "failed" else self._store.get(run_id)
        if record is not None and record.status == "completed":  # brought by us, or by another command in this folder
            self._reporter.end(record, reused=False)
            return Settled("completed")
        return settled

    def close(self) -> None:
        """Remove the folder of the shards if nothing is left in it."""
        if self.configs:
            Shard(self._output, next(iter(self.configs))).remove_folder()

    def check(self) -> None:
        """Nothing may be missing without a word.

        Raises:
            TrainingError: with every run that is not completed, and why.
        """
        done = self._store.completed()
        for run_id in self.configs:
            if run_id not in done:
                self.failed.setdefault(run_id, "ended without a result")
        refuse_failed(self.failed, len(self.configs))

    def _inputs_of(self, config: RunConfig) -> Mapping[str, object]:
        """Hashes of a config's data and model, looked up once for all runs that share them."""
        key = (config.task.model_dump_json(), config.model.name, config.evaluation.model_dump_json())
        if key not in self._inputs:
            self._inputs[key] = inputs_of(config)
        return self._inputs[key]


def carry_out(make: "Callable[[], Engine]", runs: Runs, options: EngineOptions) -> None:
    """Do what is missing.

    Raises:
        TrainingError: at the end, if runs failed or were lost more than `options.retries` times.
        KeyboardInterrupt: Ctrl-C; workers are stopped, what is done is in the store.
    """
    waiting = deque(runs.missing(options))
    if waiting:
        engine = make()
        under_way: dict[str, Job] = {}
        complete = False
        try:
            _hand_out(engine, runs, waiting, under_way, options.retries)
            complete = True
        finally:
            engine.close(stop=not complete)
            for run_id in under_way:  # what was finished while the workers were stopped
                runs.settle(run_id)
    runs.close()
    runs.check()


def _hand_out(engine: Engine, runs: Runs, waiting: deque[Job], under_way: dict[str, Job], retries: int) -> None:
    lost: Counter[str] = Counter()
    while waiting or under_way:
        check_interrupt()
        started = [waiting.popleft() for _ in range(min(engine.room(), len(waiting)))]
        under_way.update((job.run_id, job) for job in started)
        if started:
            engine.start(started)
        for ended in engine.ended():
            job = under_way.pop(ended.run_id)
            settled = runs.settle(ended.run_id)
            if settled.outcome == "failed":
                runs.failed[ended.run_id] = settled.reason
            elif settled.outcome == "lost" and ended.through:
                runs.failed[ended.run_id] = NOTHING_HERE
            elif settled.outcome == "lost":
                lost[ended.run_id] += 1
                if lost[ended.run_id] <= retries:
                    waiting.appendleft(job)
                else:
                    runs.failed[ended.run_id] = _lost(ended, lost[ended.run_id])


def _lost(ended: Ended, times: int) -> str:
    return f"its worker was lost {times} times{f' ({ended.reason})' if ended.reason else ''}"
