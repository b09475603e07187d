"""A worker on a study whose trials are arithmetic: python sweeping.py URL FOLDER TICKETS SECONDS [heartbeat grace].

Prints `begun TICKET` and `done TICKET` for each trial it does. Tests start it with `start` and look with `outcome`.
"""

import subprocess
import sys
import time
from pathlib import Path

import optuna
from optuna.trial import TrialState

from rankwise.experiments.sweep_locks import alive
from rankwise.experiments.sweep_queue import OUTCOME, Queue
from rankwise.experiments.sweep_storage import open_storage, quiet_optuna, storage_at

NAME = "arithmetic"
WORKER = Path(__file__)


def study_of(storage, ticket=0):
    """The study as ticket `ticket` sees it."""
    with quiet_optuna():
        sampler = optuna.samplers.TPESampler(seed=ticket)
        return optuna.create_study(
            storage=storage, study_name=NAME, sampler=sampler, direction="maximize", load_if_exists=True
        )


def queue_of(storage, tickets, worker):
    """A queue of so many tickets, whose values are their numbers."""
    study_of(storage)
    return Queue(storage, NAME, [{"x": float(t)} for t in range(tickets)], worker, lambda t: study_of(storage, t))


def start(url, folder, tickets, seconds, *more):
    words = [sys.executable, str(WORKER), url, str(folder), str(tickets), str(seconds), *map(str, more)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(url, tickets):
    """Ticket -> (state, x, value) of the attempts that count, and how many attempts there are."""
    with storage_at(url) as storage:
        queue = queue_of(storage, tickets, Path())
        found = {t: (trial.state.name, trial.params.get("x"), trial.value) for t, trial in queue.results().items()}
        return found, len(study_of(storage).trials)


def wanted(tickets):
    return {t: ("COMPLETE", float(t), -((t - 3.0) ** 2)) for t in range(tickets)}


def killed_and_gone_on(url, folder, second, *more):
    """Kill the first worker in the middle of its third trial; another one does the rest."""
    first = start(url, folder, 6, 0.4, *more)
    while first.stdout.readline() != "begun 2\n":
        assert first.poll() is None
    first.kill()
    first.communicate()
    rest = start(url, second, 6, 0, *more)
    out, err = rest.communicate(timeout=120)
    assert rest.returncode == 0, err
    begun = [line for line in out.splitlines() if line.startswith("begun")]
    assert sorted(begun) == [f"begun {t}" for t in (2, 3, 4, 5)]
    return begun


def main(url, folder, tickets, seconds, heartbeat=30, grace=120):
    storage = open_storage(url, int(heartbeat), int(grace))
    with alive(Path(folder)) as me:
        queue = queue_of(storage, int(tickets), me)
        while not queue.finished():
            claim = queue.claim()
            if claim is None:
                time.sleep(0.05)
                continue
            with queue.heartbeat(claim):
                x = claim.trial.suggest_float("x", 0, 100)
                print("begun", claim.ticket, flush=True)
                time.sleep(float(seconds))
                claim.trial.set_user_attr(OUTCOME, "done")
                claim.trial.study.tell(claim.trial, -((x - 3) ** 2), state=TrialState.COMPLETE)
            print("done", claim.ticket, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
