"""What all engines share, with an engine that needs no processes: its workers are lost when the test says so."""

from collections import Counter

import engine_runs
import pytest
from engine_runs import configs

from rankwise.errors import TrainingError
from rankwise.experiments.engines.contract import Ended, Engine, EngineOptions
from rankwise.experiments.engines.loop import Runs, carry_out
from rankwise.experiments.engines.work import do
from rankwise.experiments.progress import Silent
from rankwise.experiments.store import Store
from rankwise.experiments.store_merge import Shard, settle


class Here(Engine):
    """Does the runs in this process, the last one given first; `lose` says how often each loses its worker."""

    places = 3

    def __init__(self, options, lose, interrupt_after):
        super().__init__(options)
        self.lose, self.interrupt_after = Counter(lose), interrupt_after
        self.jobs, self.done, self.closed = [], 0, None

    def room(self):
        return self.places - len(self.jobs)

    def start(self, jobs):
        assert len(jobs) <= self.room()
        self.jobs += jobs

    def ended(self):
        job = self.jobs.pop()
        seed = int(job.run_id.split("-s")[1].split("-")[0])
        if self.lose[seed]:
            self.lose[seed] -= 1
            return [Ended(job.run_id, "gone")]
        do(job)
        self.done += 1
        if self.done > self.interrupt_after:
            raise KeyboardInterrupt
        return [Ended(job.run_id)]

    def close(self, *, stop):
        self.closed = stop


class Told(Silent):
    def __init__(self):
        self.ended = []

    def end(self, record, *, reused):
        self.ended.append(record.seed)


def go(output, count=7, lose=None, interrupt_after=10**9, function=engine_runs.once_each, retries=2):
    made, told = [], Told()

    def make():
        made.append(Here(options, lose or {}, interrupt_after))
        return made[-1]

    options = EngineOptions(function=function, retries=retries)
    with Store(output / "store.sqlite") as store:
        try:
            carry_out(make, Runs(configs(count), store, output, told), options)
        finally:
            told.completed = {store.get(run_id).seed for run_id in store.completed()}
            told.engine = made[0] if made else None
    return told


def tries(tmp_path):
    return {int(path.name.split("-")[1]): len(path.read_text().split()) for path in tmp_path.glob("tries-*")}


def test_a_worker_that_leaves_nothing_here_is_not_tried_again(tmp_path, monkeypatch):
    """Its run folder is not ours (a file system that is not shared): training three times would come to the same."""
    done = []

    def elsewhere(self):
        job = self.jobs.pop()
        done.append(job.run_id)
        return [Ended(job.run_id, through=True)]

    monkeypatch.setattr(Here, "ended", elsewhere)
    with pytest.raises(TrainingError, match=r"2 of 2 runs failed(?s:.*)must share that folder"):
        go(tmp_path, count=2)
    assert len(done) == len(set(done)) == 2


def test_what_another_command_in_the_folder_has_brought_is_not_done_again(tmp_path, monkeypatch):
    real, done = Here.ended, []

    def brought(self):
        job = self.jobs[-1]
        ended = real(self)
        done.append(job.run_id)
        with Store(tmp_path / "store.sqlite") as other:
            assert settle(other, Shard(tmp_path.resolve(), job.run_id)).outcome == "completed"
        return ended

    monkeypatch.setattr(Here, "ended", brought)
    told = go(tmp_path, count=2)
    assert told.completed == {0, 1}
    assert len(done) == len(set(done)) == 2
    assert sorted(told.ended) == [0, 1]


def test_every_run_once_and_none_left(tmp_path):
    told = go(tmp_path / "out")
    assert sorted(told.ended) == sorted(told.completed) == list(range(7))
    assert tries(tmp_path) == dict.fromkeys(range(7), 1)
    assert told.engine.closed is False
    assert not (tmp_path / "out/shards").exists()


def test_second_time_nothing_is_started(tmp_path):
    go(tmp_path / "out", count=4)
    told = go(tmp_path / "out", count=4)
    assert told.engine is None
    told = go(tmp_path / "out", count=6)
    assert sorted(told.ended) == [4, 5]
    assert tries(tmp_path) == dict.fromkeys(range(6), 1)


def test_lost_workers_are_replaced_so_often_and_no_oftener(tmp_path):
    with pytest.raises(TrainingError) as caught:
        go(tmp_path / "out", lose={2: 2, 5: 3})
    lost = configs(7)[5].run_id
    assert str(caught.value).splitlines()[1:] == [f"  {lost}: its worker was lost 3 times (gone)"]
    assert str(caught.value).startswith("1 of 7 runs failed; the others are kept")
    assert tries(tmp_path) == {seed: 1 for seed in range(7) if seed != 5}


def test_failures_come_together_at_the_end(tmp_path):
    told = None
    with pytest.raises(TrainingError) as caught:
        told = go(tmp_path / "out", count=3, function=engine_runs.troubled)
    assert told is None
    assert f"{configs(3)[1].run_id}: its data is wrong" in str(caught.value)
    assert f"{configs(3)[2].run_id}: ZeroDivisionError: by nothing" in str(caught.value)
    told = go(tmp_path / "out", count=3)  # mended, and given again
    assert sorted(told.ended) == [1, 2]


def test_interrupt_keeps_what_is_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "out", interrupt_after=3)
    told = go(tmp_path / "out")
    assert told.completed == set(range(7))
    assert len(told.ended) == 3  # the fourth was done when the interrupt came, and was taken from its shard
    assert tries(tmp_path) == dict.fromkeys(range(7), 1)


def test_shard_of_a_killed_command_is_taken_not_done_again(tmp_path):
    (config,) = configs(1)
    shard = Shard((tmp_path / "out").resolve(), config.run_id)
    with Store(shard.path) as store:
        engine_runs.noop(config, store, tmp_path / "out")
    told = go(tmp_path / "out", count=1)
    assert (told.ended, told.completed, told.engine) == ([0], {0}, None)
    assert tries(tmp_path) == {}


def says_nothing(config, store, output, reporter=None):
    """Comes back without a result."""


def test_run_without_a_result_is_not_forgotten(tmp_path):
    with pytest.raises(TrainingError, match="its worker was lost 1 times"):
        go(tmp_path / "out", count=1, function=says_nothing, retries=0)
