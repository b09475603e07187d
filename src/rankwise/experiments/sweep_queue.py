"""A study as a queue: exactly so many trials are run, by however many workers, whichever of them die.

Every trial that is wanted is a ticket, a number from 0. An Optuna trial is one attempt at a ticket, entered as waiting
and claimed by one worker, which Optuna does in one step. The attempt that counts is the first that has not died; if a
ticket has none, another attempt with the same values is entered. Workers may enter one each at the same time: the later
ones never count, so nothing has to be agreed on beforehand and a crash between any two lines leaves nothing undone.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.experiments.sweep_locks import is_dead, locked
from rankwise.experiments.sweep_space import Values
from rankwise.experiments.sweep_storage import one_at_a_time, quiet_optuna

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

TICKET, WORKER, OUTCOME, STOPPED = "ticket", "worker", "outcome", "stopped"
"""User attributes of a trial: its ticket, its worker's lock, how it ended, and that it was stopped from outside."""
MOST_DEATHS = 10
"""A ticket whose workers died that often (out of memory, say) is given up."""


@dataclass(frozen=True)
class Claim:
    """A trial that this worker is to do."""

    ticket: int
    trial: "Trial"
    earlier: dict[int, float]
    """Values that an attempt before this one reported on the way."""


class Queue:
    """The tickets of a study.

    Args:
        storage: where the study is.
        name: of the study, which exists.
        first: values that ticket i starts with (none: the sampler's choice).
        worker: this worker's lock file.
        study: makes the study as ticket i is to see it (sampler, pruner).
    """

    def __init__(
        self,
        storage: "RDBStorage",
        name: str,
        first: Sequence[Values],
        worker: Path,
        study: "Callable[[int], Study]",
    ) -> None:
        self._storage, self._name, self._worker, self._study = storage, name, worker, study
        self._first = first

    def attempts(self) -> "dict[int, list[FrozenTrial]]":
        """The attempts at each wanted ticket, in order."""
        found: dict[int, list[FrozenTrial]] = {ticket: [] for ticket in range(len(self._first))}
        for trial in self._trials():
            if trial.user_attrs.get(TICKET) in found:
                found[trial.user_attrs[TICKET]].append(trial)
        return found

    def results(self) -> "dict[int, FrozenTrial]":
        """The attempt that counts of each ticket that has one; of a ticket that was given up, the last that died."""
        chosen = {}
        for ticket, attempts in self.attempts().items():
            living = _counting(attempts)
            if living is not None:
                chosen[ticket] = living
            elif attempts and _deaths(attempts) >= MOST_DEATHS:
                chosen[ticket] = attempts[-1]
        return chosen

    def finished(self) -> bool:
        """Whether nothing is left to do, here or elsewhere."""
        results = self.results()
        return len(results) == len(self._first) and all(trial.state.is_finished() for trial in results.values())

    def claim(self) -> Claim | None:
        """The next trial for this worker; None if none is waiting now."""
        self._bury()
        self._fill()
        for ticket, attempts in self.attempts().items():
            trial = _counting(attempts)
            if trial is None or trial.state.name != "WAITING" or not self._take(trial):
                continue
            earlier = {step: value for dead in attempts for step, value in dead.intermediate_values.items()}
            return Claim(ticket, self._begun(ticket, trial), earlier)
        return None

    @contextmanager
    def heartbeat(self, claim: Claim) -> Iterator[None]:
        """Tell the others that this worker lives, as long as the block takes."""
        done = threading.Event()
        seconds = self._storage.get_heartbeat_interval() or 1

        def beat() -> None:
            while not done.wait(seconds):
                try:
                    self._storage.record_heartbeat(self._id(claim.trial.number))
                except Exception:  # the database may be back at the next beat
                    continue
            self._storage.remove_session()  # of this thread

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _trials(self) -> "list[FrozenTrial]":
        found = self._storage.get_all_trials(self._storage.get_study_id_from_name(self._name))
        return sorted(found, key=lambda trial: trial.number)

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self._name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _bury(self) -> None:
        """Note as failed what dead workers left running: at once where their lock can be seen, else after the grace."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.storages import fail_stale_trials
        from optuna.trial import TrialState

        for trial in self._trials():
            worker = trial.user_attrs.get(WORKER)
            if trial.state.name == "RUNNING" and worker and worker != str(self._worker) and is_dead(Path(worker)):
                try:
                    self._storage.set_trial_state_values(self._id(trial.number), TrialState.FAIL)
                except UpdateFinishedTrialError:
                    continue
        with quiet_optuna():
            fail_stale_trials(self._study(0))

    def _fill(self) -> None:
        """Enter an attempt for every ticket that has none alive; workers in one folder do so in turn."""
        if not any(map(_lacking, self.attempts().values())):
            return
        with locked(self._worker.parent, f"fill-{self._name}", tidy=True):
            self._enter()

    def _enter(self) -> None:
        study = self._study(0)
        for ticket, attempts in self.attempts().items():
            if not _lacking(attempts):
                continue
            known = next((dead.params for dead in reversed(attempts) if dead.params), None)
            study.enqueue_trial(known or self._first[ticket], user_attrs={TICKET: ticket})

    def _take(self, trial: "FrozenTrial") -> bool:
        """Claim a waiting trial; False if another worker was faster. Its heart beats before it runs, so that a worker
        killed right after this is noticed too."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        number = self._id(trial.number)
        self._storage.record_heartbeat(number)
        try:
            with one_at_a_time(self._storage):
                return bool(self._storage.set_trial_state_values(number, TrialState.RUNNING))
        except UpdateFinishedTrialError:
            return False

    def _begun(self, ticket: int, trial: "FrozenTrial") -> "Trial":
        from optuna.trial import Trial

        study = self._study(ticket)
        study.get_trials(deepcopy=False)  # what Optuna caches of a study must know the trial
        begun = Trial(study, self._id(trial.number))
        begun.set_user_attr(WORKER, str(self._worker))
        return begun


def _counting(attempts: "Sequence[FrozenTrial]") -> "FrozenTrial | None":
    """The first attempt that has not died."""
    return next((trial for trial in attempts if not _died(trial)), None)


def _lacking(attempts: "Sequence[FrozenTrial]") -> bool:
    """Whether a ticket needs another attempt."""
    return _counting(attempts) is None and _deaths(attempts) < MOST_DEATHS


def _died(trial: "FrozenTrial") -> bool:
    """Failed without having said how: its worker was killed or stopped."""
    return trial.state.name == "FAIL" and OUTCOME not in trial.user_attrs


def _deaths(attempts: "Sequence[FrozenTrial]") -> int:
    return sum(_died(trial) and STOPPED not in trial.user_attrs for trial in attempts)
