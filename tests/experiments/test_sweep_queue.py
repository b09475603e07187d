"""A study as a queue: exactly so many trials, whoever dies. Real processes, real kill -9."""

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import event
from sweeping import WORKER, killed_and_gone_on, outcome, queue_of, start, wanted

from rankwise.errors import ConfigError, StoreError
from rankwise.experiments.sweep_locks import alive, is_dead, locked
from rankwise.experiments.sweep_queue import MOST_DEATHS, OUTCOME, STOPPED
from rankwise.experiments.sweep_storage import open_storage, shown_url, storage_at, storage_url


@pytest.fixture
def url(tmp_path):
    return storage_url(None, tmp_path)


def claimed(queue):
    """A claim with its value drawn."""
    claim = queue.claim()
    claim.trial.suggest_float("x", 0, 100)
    return claim


def test_a_claim_is_for_one_worker_and_the_dead_are_noticed_at_once(url, tmp_path):
    storage = open_storage(url)
    with alive(tmp_path / "locks") as mine:
        with alive(tmp_path / "locks") as other:
            theirs = queue_of(storage, 2, other)
            first = claimed(theirs)
            assert first.ticket == 0
            assert not is_dead(other)
            queue = queue_of(storage, 2, mine)
            assert claimed(queue).ticket == 1
            assert queue.claim() is None
            assert not queue.finished()
        other.touch()  # a killed worker leaves its file, without the lock
        again = claimed(queue)
        assert (again.ticket, again.trial.params) == (0, {"x": 0.0})
        assert again.trial.number != first.trial.number


def test_a_stopped_trial_is_entered_again_and_a_failed_one_is_not(url, tmp_path):
    from optuna.trial import TrialState

    storage = open_storage(url)
    queue = queue_of(storage, 1, tmp_path)
    claim = claimed(queue)
    claim.trial.report(0.25, 1)
    claim.trial.set_user_attr(STOPPED, True)
    claim.trial.study.tell(claim.trial, state=TrialState.FAIL)
    again = claimed(queue)
    assert again.earlier == {1: 0.25}
    again.trial.set_user_attr(OUTCOME, "failed")
    again.trial.study.tell(again.trial, state=TrialState.FAIL)
    assert queue.finished()
    assert queue.claim() is None


def test_a_trial_that_kills_its_workers_is_given_up(url, tmp_path):
    from optuna.trial import TrialState

    queue = queue_of(open_storage(url), 1, tmp_path)
    for _ in range(MOST_DEATHS):
        claim = claimed(queue)
        claim.trial.study.tell(claim.trial, state=TrialState.FAIL)
    assert queue.claim() is None
    assert queue.finished()


def test_attempts_entered_twice_count_once(url, tmp_path):
    queue = queue_of(open_storage(url), 3, tmp_path / "me")
    attempts = queue.attempts
    nothing = {t: [] for t in range(3)}
    queue.attempts = lambda: nothing  # as a worker sees them that read before another one wrote
    queue._fill()
    queue._fill()
    queue.attempts = attempts
    assert [len(found) for found in queue.attempts().values()] == [2, 2, 2]
    assert [claimed(queue).ticket for _ in range(3)] == [0, 1, 2]
    assert queue.claim() is None


def test_no_connection_stays_open(url, tmp_path):
    with storage_at(url) as storage:
        claim = claimed(queue_of(storage, 1, tmp_path))
        assert claim.ticket == 0
        used = storage.engine.pool
        assert used.checkedin() + used.checkedout() > 0
    assert used.checkedin() + used.checkedout() == 0


def test_a_trial_is_taken_once_however_close_two_workers_are(url, tmp_path):
    """The second worker comes between the first one's look at the trial and its claim."""
    mine, theirs = open_storage(url), open_storage(url)
    first, second = (queue_of(storage, 1, tmp_path / name) for storage, name in ((mine, "a"), (theirs, "b")))
    claims, others = [], []
    second.finished()  # has entered nothing; its connection is open

    def come_between(connection, cursor, statement, *rest):
        if "datetime_start" in statement and statement.startswith("UPDATE") and not others:
            others.append(threading.Thread(target=lambda: claims.append(second.claim())))
            others[0].start()
            others[0].join(1.5)

    event.listen(mine.engine, "before_cursor_execute", come_between)
    claims.append(first.claim())
    others[0].join()
    assert sorted(claim is None for claim in claims) == [False, True]
    for storage in (mine, theirs):
        storage.remove_session()
        storage.engine.dispose()


def test_more_trials_later(url, tmp_path):
    queue = queue_of(open_storage(url), 2, tmp_path)
    assert [claimed(queue).ticket for _ in range(2)] == [0, 1]
    more = queue_of(open_storage(url), 3, tmp_path)
    assert claimed(more).ticket == 2
    assert more.claim() is None


def test_a_lock_waits_for_its_holder(tmp_path):
    order = []

    def other():
        with locked(tmp_path, "a"):
            order.append("other")

    with locked(tmp_path, "a"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.3)
        order.append("mine")
    thread.join()
    assert order == ["mine", "other"]


@pytest.mark.slow
def test_three_workers_run_every_trial_once(url, tmp_path):
    workers = [start(url, tmp_path / "locks", 12, 0.05) for _ in range(3)]
    said = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], said
    done = Counter(line for out, _ in said for line in out.splitlines() if line.startswith("done"))
    assert done == {f"done {t}": 1 for t in range(12)}
    assert outcome(url, 12)[0] == wanted(12)
    assert not (tmp_path / "locks").exists()


@pytest.mark.slow
def test_a_killed_workers_trial_is_done_by_the_next(url, tmp_path):
    folder = tmp_path / "locks"
    assert killed_and_gone_on(url, folder, folder)[0] == "begun 2"
    found, attempts = outcome(url, 6)
    assert found == wanted(6)
    assert attempts == 7


@pytest.mark.slow
def test_a_worker_killed_on_another_machine_is_noticed_by_its_silence(url, tmp_path):
    """Its lock cannot be seen there, so that only the heartbeat tells."""
    from rankwise.experiments import sweep_locks

    folder = tmp_path / "locks"
    script = WORKER.read_text().replace(
        'NAME = "arithmetic"',
        'NAME = "arithmetic"\nimport rankwise.experiments.sweep_queue as q\nq.is_dead = lambda w: False',
    )
    blind = tmp_path / "blind.py"
    blind.write_text(script)
    assert sweep_locks.is_dead(tmp_path / "none") is False
    first = start(url, folder, 4, 0.5, 1, 2)
    while first.stdout.readline() != "begun 2\n":
        assert first.poll() is None
    first.kill()
    first.communicate()
    words = [sys.executable, str(blind), url, str(tmp_path / "other"), "4", "0", "1", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("begun")) == ["begun 2", "begun 3"]
    assert outcome(url, 4)[0] == wanted(4)


@pytest.mark.slow
def test_a_long_trial_is_not_taken_for_dead(url, tmp_path):
    """Longer than the grace, but its heart beats."""
    workers = [start(url, tmp_path / f"locks{i}", 2, 4, 1, 2) for i in range(2)]
    said = [worker.communicate(timeout=120)[0] for worker in workers]
    done = Counter(line for out in said for line in out.splitlines() if line.startswith("done"))
    assert done == {"done 0": 1, "done 1": 1}
    assert outcome(url, 2)[1] == 2


SECRETS = ("hush", "h@sh", "hu/sh", "hu:sh@x/y")


@pytest.mark.parametrize("password", SECRETS)
def test_a_password_is_nowhere_in_what_is_said(tmp_path, password):
    url = storage_url(f"postgresql://me:{password}@127.0.0.1:1/trials", tmp_path)
    assert shown_url(url) == "postgresql+psycopg://me:***@127.0.0.1:1/trials"
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is in the extra `scale`")
    with pytest.raises(StoreError, match="the study cannot be used") as caught:
        open_storage(url)
    assert password not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_storages(tmp_path):
    assert storage_url(None, tmp_path) == f"sqlite:///{tmp_path}/study.sqlite"
    assert storage_url("a.db", tmp_path) == f"sqlite:///{Path('a.db').resolve()}"
    assert storage_url("postgres://h/d?password=hush", tmp_path) == "postgresql+psycopg://h/d?password=hush"
    assert shown_url("postgresql+psycopg://h/d?password=hush") == "postgresql+psycopg://h/d?password=***"
    with pytest.raises(ConfigError, match=r"'mysql://me:\*\*\*@h/d' is of a kind that is not supported"):
        storage_url("mysql://me:hush@h/d", tmp_path)
    (tmp_path / "file").write_text("no database, but long enough to be told from an empty file")
    with pytest.raises(StoreError, match="not a database"):
        open_storage(storage_url(str(tmp_path / "file"), tmp_path))


def test_a_heart_that_stops_leaves_no_session(url, tmp_path, monkeypatch):
    with storage_at(url) as storage:
        monkeypatch.setattr(storage, "get_heartbeat_interval", lambda: 0.01)
        claim = claimed(queue_of(storage, 1, tmp_path))
        queue, beats, left = queue_of(storage, 1, tmp_path), threading.Event(), []
        real, gone = storage.record_heartbeat, storage.remove_session
        monkeypatch.setattr(storage, "record_heartbeat", lambda number: (real(number), beats.set()))
        monkeypatch.setattr(storage, "remove_session", lambda: (gone(), left.append(threading.current_thread())))
        with queue.heartbeat(claim):
            assert beats.wait(60)
        assert threading.main_thread() not in left
        assert len(left) == 1
