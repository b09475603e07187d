"""A sweep: a search over some values of a run config, as an Optuna study.

Every trial is an ordinary run with a run id, measured on examples held out of the training split; nothing about the
evaluation split is read. `Sweep` says what is searched, `work` is one worker: it does trials until none is left.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rankwise.errors import AllocationError, BudgetError, ConfigError, DataError, Finding, TrainingError
from rankwise.experiments.checks import wrong_way
from rankwise.experiments.progress import Reporter
from rankwise.experiments.runner import data_of, inputs_of, run, total_steps
from rankwise.experiments.schema import RunConfig, SweepConfig
from rankwise.experiments.store import Store
from rankwise.experiments.sweep_locks import alive, locked, locks_of
from rankwise.experiments.sweep_progress import TrialReporter
from rankwise.experiments.sweep_queue import OUTCOME, STOPPED, Claim, Queue
from rankwise.experiments.sweep_results import Trial, trial_of
from rankwise.experiments.sweep_space import Values, drawn, grid, in_words, refusals, trial_config
from rankwise.experiments.sweep_storage import explained, quiet_optuna
from rankwise.experiments.watching import GivenUp, Watching
from rankwise.interrupts import check_interrupt
from rankwise.tasks.base import MetricValue
from rankwise.tasks.metrics import METRICS, check_metric

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.storages import RDBStorage

INPUTS = "inputs"
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Sweep:
    """What is searched, and what decides. `config` is the run config with its `sweep` section."""

    source: str
    config: RunConfig
    settings: SweepConfig
    metric: str
    inputs: dict[str, str | None]

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Which way the metric is better."""
        return "maximize" if METRICS[self.metric].higher_is_better else "minimize"

    @property
    def name(self) -> str:
        """The study's name: equal for equal searches, however many trials and seeds are wanted."""
        searched = self.settings.model_dump(mode="json", exclude={"n_trials", "seeds"}) | {"metric": self.metric}
        values = {**json.loads(self.config.canonical()), "sweep": searched}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.config.run_id.rsplit('-', 2)[0]}-{digest}"

    def first(self) -> list[Values]:
        """What each trial starts with: its point of the grid, or nothing where the sampler decides."""
        if self.settings.sampler == "grid":
            return list(grid(self.settings))
        return [{} for _ in range(self.settings.n_trials)]

    def trial(self, values: Values) -> RunConfig:
        """The run of one choice of values, measured on held-out training examples.

        Raises:
            ConfigError: the values contradict each other or the rest of the config.
        """
        config = trial_config(self.config, values, self.settings.holdout)
        findings = config.method.check(total_steps(config, len(data_of(config).train)))
        if findings:
            raise ConfigError("trial", findings)
        return config

    def final(self, values: Values, seed: int) -> RunConfig:
        """The same values with all training examples, measured on the validation examples.

        Raises:
            ConfigError: as `trial`.
        """
        return trial_config(self.config, values, None).model_copy(update={"seed": seed})


def plan_sweep(config: RunConfig, source: str) -> Sweep:
    """The sweep that a config's `sweep` section describes.

    Raises:
        ConfigError: it cannot be run as a sweep; every reason at once.
        DataError: the task's data cannot be used.
    """
    findings = refusals(config)
    if findings or config.sweep is None:
        raise ConfigError(source, findings)
    held = config.evaluation.model_copy(update={"holdout": config.sweep.holdout})
    tried = config.model_copy(update={"evaluation": held})
    data = data_of(tried)
    wanted = config.sweep.metric or (config.evaluation.metrics or data.metrics)[0]
    metric = check_metric(wanted, data.kind, data.num_labels)
    measured = config.evaluation.metrics or data.metrics
    if metric not in measured:
        text = f"{metric} is not among the metrics measured: {', '.join(measured)}"
        raise ConfigError(source, [Finding("sweep.metric", text)])
    if wrong := wrong_way(config.sweep, metric):
        raise ConfigError(source, [Finding("sweep.direction", wrong)])
    return Sweep(source, config, config.sweep, metric, inputs_of(tried))


def open_study(sweep: Sweep, storage: "RDBStorage", ticket: int = 0) -> "Study":
    """The sweep's study, made where missing, with the sampler and pruner that trial `ticket` is to use.

    The sampler is seeded per trial, so that what a trial draws depends on the earlier results and not on the worker.

    Raises:
        DataError: the study was made with other data or another model under the same name.
    """
    import optuna

    with quiet_optuna():
        study = optuna.create_study(
            storage=storage,
            sampler=optuna.samplers.TPESampler(seed=(sweep.settings.seed * 1_000_003 + ticket) % 2**32),
            pruner=_pruner(sweep.settings),
            study_name=sweep.name,
            direction=sweep.direction,
            load_if_exists=True,
        )
    there = study.user_attrs.get(INPUTS)
    if there is None:
        study.set_user_attr(INPUTS, sweep.inputs)
    elif there != sweep.inputs:
        raise DataError(
            f"study {sweep.name} was made with other inputs under the same names ({there} there, {sweep.inputs} now): "
            "the data or the model folder has changed; use another --output or --storage"
        )
    return study


def _pruner(settings: SweepConfig) -> "BasePruner":
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if settings.pruner == "median":
        return MedianPruner()
    if settings.pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=max(1, int(1 / settings.measure_every)))
    return NopPruner()


@dataclass(frozen=True)
class Place:
    """Where a worker works: the study, the results store, the output folder, and who is told."""

    url: str
    storage: "RDBStorage"
    store: Store
    output: Path
    reporter: Reporter

    @property
    def locks(self) -> Path:
        """Folder of the locks of all workers that share the results store."""
        return locks_of(self.store.path)


def work(sweep: Sweep, place: Place) -> list[Trial]:
    """Do trials until all that are wanted are done, here or by other workers; returns all of them.

    Raises:
        RankwiseError: what would stop every trial: data, model, store or output. The trial is tried again by the next
            worker.
    """
    with explained(place.url), alive(place.locks) as me:
        open_study(sweep, place.storage)
        queue = Queue(place.storage, sweep.name, sweep.first(), me, lambda t: open_study(sweep, place.storage, t))
        while not queue.finished():
            check_interrupt()
            claim = queue.claim()
            if claim is None:
                time.sleep(_POLL_SECONDS)
                continue
            with queue.heartbeat(claim):
                _attempt(sweep, claim, queue, place)
        return [trial_of(ticket, trial) for ticket, trial in sorted(queue.results().items())]


def so_far(sweep: Sweep, place: Place) -> int:
    """How many of the wanted trials are done already."""
    with explained(place.url):
        open_study(sweep, place.storage)
        queue = Queue(place.storage, sweep.name, sweep.first(), Path(), lambda t: open_study(sweep, place.storage, t))
        return sum(trial.state.is_finished() for trial in queue.results().values())


def _attempt(sweep: Sweep, claim: Claim, queue: Queue, place: Place) -> None:
    """Do one trial and tell the study how it ended."""
    from optuna.trial import TrialState

    trial = claim.trial
    try:
        values = drawn(trial, sweep.settings)
        for number, value in claim.earlier.items():
            trial.report(value, number)
        measured = _measured(sweep, claim, values, queue, place)
        _tell(claim, TrialState.COMPLETE, {"se": measured.se, "n": measured.n, OUTCOME: "done"}, measured.value)
    except GivenUp as reason:
        _tell(claim, TrialState.PRUNED, {OUTCOME: "pruned", "reason": str(reason)})
        place.reporter.skip(f"trial {claim.ticket}: {in_words(values)}: {reason}")
    except (ConfigError, BudgetError, TrainingError, AllocationError) as error:
        reason_text = _one_line(error)
        _tell(claim, TrialState.FAIL, {OUTCOME: "failed", "reason": reason_text})
        place.reporter.skip(f"trial {claim.ticket}: {in_words(values)}: failed: {reason_text}")
    except BaseException:
        _tell(claim, TrialState.FAIL, {STOPPED: True})
        raise


def _measured(sweep: Sweep, claim: Claim, values: Values, queue: Queue, place: Place) -> MetricValue:
    """The value of one choice of values: from a trial that did the same run, from the store, or from a run now."""
    config = sweep.trial(values)
    _note(claim, "run_id", config.run_id)
    with locked(place.locks, config.run_id, tidy=True):
        known = _known(config.run_id, claim, queue)
        if known is not None:
            place.reporter.skip(f"trial {claim.ticket}: {in_words(values)}: the same run as trial {known[0]}")
            return known[1]
        reporter = TrialReporter(place.reporter, claim.ticket, values)
        ran = run(config, place.store, place.output, reporter, _watching(sweep, claim))
    _note(claim, "train_seconds", ran.record.train_seconds)
    found = ran.record.metrics[sweep.metric]
    if not math.isfinite(found.value):
        raise TrainingError(f"run {config.run_id}: {sweep.metric} is {found.value}")
    return found


def _known(run_id: str, claim: Claim, queue: Queue) -> tuple[int, MetricValue] | None:
    """What another trial that was the same run came to, also if that was on another machine.

    Raises:
        GivenUp: it was pruned.
        TrainingError: it failed.
    """
    for ticket, frozen in queue.results().items():
        other = trial_of(ticket, frozen)
        if ticket == claim.ticket or other.run_id != run_id:
            continue
        if other.state == "complete" and other.value is not None:
            return ticket, other.value
        if other.state == "pruned":
            raise GivenUp(f"the same run as trial {ticket}, which was pruned")
        if other.state == "failed":
            raise TrainingError(f"the same run as trial {ticket}, which failed: {other.reason}")
    return None


def _watching(sweep: Sweep, claim: Claim) -> Watching | None:
    if sweep.settings.pruner == "none":
        return None

    from optuna.exceptions import UpdateFinishedTrialError

    def report(number: int, value: MetricValue) -> None:
        check_interrupt()
        if number not in claim.earlier:
            with suppress(UpdateFinishedTrialError):
                claim.trial.report(value.value, number)
        if claim.trial.should_prune():
            share = number * sweep.settings.measure_every
            raise GivenUp(f"pruned after {share:.0%} of training with {sweep.metric} {value.value:.4f}")

    return Watching(sweep.settings.measure_every, sweep.metric, report)


def _note(claim: Claim, name: str, content: Any) -> None:  # noqa: ANN401 - anything JSON can say
    """Write an attribute of a trial. One that was taken for dead meanwhile (this worker was suspended, say) stays as it
    is: another attempt was entered, waits for this run to end, and finds it in the store."""
    from optuna.exceptions import UpdateFinishedTrialError

    with suppress(UpdateFinishedTrialError):
        claim.trial.set_user_attr(name, content)


def _tell(claim: Claim, state: Any, attributes: dict[str, Any], value: float | None = None) -> None:  # noqa: ANN401
    """Write how a trial ended, its attributes first; nothing if it was taken for dead (Optuna raises a ValueError)."""
    for name, content in attributes.items():
        _note(claim, name, content)
    with suppress(ValueError):
        claim.trial.study.tell(claim.trial, value, state=state)


def _one_line(error: Exception) -> str:
    findings: Sequence[Finding] = getattr(error, "findings", ())
    return "; ".join(map(str, findings)) or " ".join(str(error).split())
