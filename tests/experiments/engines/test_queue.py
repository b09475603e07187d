"""The queue: every run to one worker at a time, silent workers replaced, nothing lost, no password shown."""

import subprocess
import sys
import threading
import time
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor

import engine_runs
import pytest
from engine_runs import configs

from rankwise.errors import ConfigError, DataError, StoreError, TrainingError
from rankwise.experiments.commands import CompareOptions, plan_of
from rankwise.experiments.engines import EngineOptions, run_with
from rankwise.experiments.engines.parcel import pack, unpack
from rankwise.experiments.engines.queue import FOLDER_ID, folder_id, open_queue
from rankwise.experiments.engines.worker import WorkerOptions, work_on
from rankwise.experiments.progress import Silent
from rankwise.experiments.redact import passwords, without_passwords
from rankwise.experiments.store import Store
from rankwise.experiments.store_merge import Shard

WORKER = [sys.executable, "-m", "rankwise", "worker"]
SECRETS = ("s3cr", "%2Ft", "t@x")


def filled(where, count, retries=2, plan="p"):
    queue = open_queue(where)
    queue.add(plan, [(f"run{i:03}", f"config{i}") for i in range(count)], retries)
    return queue


def test_runs_are_taken_in_order_and_once(where):
    with filled(where, 3) as queue, queue.again() as other:
        taken = [(queue if i % 2 else other).claim(f"w{i}", 60) for i in range(4)]
        assert [claim and (claim.run_id, claim.config, claim.attempt) for claim in taken] == [
            ("run000", "config0", 1),
            ("run001", "config1", 1),
            ("run002", "config2", 1),
            None,
        ]
        assert queue.counts() == {"waiting": 0, "running": 3, "completed": 0, "failed": 0}


def test_many_workers_take_every_run_once(where):
    filled(where, 120).close()
    taken = []

    def work():
        with open_queue(where) as queue:
            while claim := queue.claim("w", 60):
                taken.append(claim.run_id)
                assert queue.complete(claim, b"x")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 120
    assert len(set(taken)) == 120


def a_minute_later(queue):
    with queue.transaction():
        queue.execute("UPDATE rankwise_queue SET expires = expires - 61")


def test_a_lease_runs_out_by_itself(where):
    with filled(where, 1) as queue:
        claim = queue.claim("first", 0.05)
        time.sleep(0.1)
        assert queue.claim("second", 60).run_id == claim.run_id


def test_silent_worker_loses_its_run(where):
    with filled(where, 1, retries=1) as queue:
        first = queue.claim("first", 60)
        assert queue.claim("second", 60) is None
        a_minute_later(queue)
        queue.free_lost()
        assert queue.counts()["waiting"] == 1
        assert queue.keep(first, 60)  # late, but nobody has taken the run
        queue.free_lost()
        assert queue.counts()["running"] == 1
        a_minute_later(queue)
        second = queue.claim("second", 60)
        assert (second.run_id, second.attempt) == (first.run_id, 2)
        assert not queue.keep(first, 60)
        assert not queue.complete(first, b"late")
        assert not queue.fail(first, "late")
        assert not queue.give_back(first)
        a_minute_later(queue)
        assert queue.claim("third", 60) is None  # lost twice, forgiven once
        (lost,) = queue.through("p", 9)
        assert lost.error == "its worker was lost 2 times (the last one: second)"


def test_what_comes_back_is_collected_and_forgotten(where):
    with filled(where, 3) as queue:
        claims = [queue.claim("w", 60) for _ in range(3)]
        assert queue.complete(claims[0], b"\x00parcel")
        assert queue.fail(claims[1], "its data is wrong")
        assert queue.give_back(claims[2])
        found = {one.run_id: (one.error, one.result) for one in queue.through("p", 9)}
        assert found == {"run000": (None, b"\x00parcel"), "run001": ("its data is wrong", None)}
        assert queue.through("another plan", 9) == []
        queue.add("p", [(f"run{i:03}", "again") for i in range(3)], 2)  # the same command, a second time
        assert queue.counts() == {"waiting": 2, "running": 0, "completed": 1, "failed": 0}
        queue.remove("p", ["run000", "run002"])  # what waits cannot be removed
        assert queue.known("p") == {"run001", "run002"}
        assert {queue.claim("w", 60).run_id for _ in range(2)} == {"run001", "run002"}


def together(where, output, wanted, function, workers=1):
    """A command that wants runs, and workers that do them; what the command raised, and what the workers did."""
    raised, done = [], []

    def command():
        try:
            collect(where, output, wanted)
        except TrainingError as error:
            raised.append(error)

    def work(folder):
        with open_queue(where) as queue:
            done.append(work_on(queue, WorkerOptions(folder, function=function, poll_seconds=0.05)))

    threads = [threading.Thread(target=command)]
    threads[0].start()
    with open_queue(where) as queue:
        while not queue.known(folder_id(output)):
            time.sleep(0.01)
    threads += [threading.Thread(target=work, args=(output.parent / f"work{i}",)) for i in range(workers)]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised, done


def collect(where, output, wanted):
    with Store(output / "store.sqlite") as store:
        options = EngineOptions(address=where, function=engine_runs.noop)
        return run_with("queue", wanted, store, output, Silent(), options)


def test_workers_and_command_share_nothing_but_the_queue(where, tmp_path):
    wanted, output = configs(6), tmp_path / "out"
    raised, done = together(where, output, wanted, engine_runs.once_each, workers=2)
    assert raised == []
    assert sorted(run_id for one in done for run_id in one.completed) == sorted(config.run_id for config in wanted)
    assert [len(path.read_text().split()) for path in tmp_path.glob("tries-*")] == [1] * 6
    with Store(output / "store.sqlite") as store:
        assert store.completed() == {config.run_id for config in wanted}
        assert store.steps(wanted[0].run_id, "train_loss") == [(1, 0.125), (2, 0.25), (3, 0.375)]
    with open_queue(where) as queue:
        assert sum(queue.counts().values()) == 0
    assert not [path for path in tmp_path.glob("*/shards/*") if path.suffix != ".lock"]


def test_folders_of_one_path_on_two_machines_do_not_take_each_others_runs(where, tmp_path):
    wanted, output = configs(2), tmp_path / "out"
    assert together(where, output, wanted, engine_runs.once_each)[0] == []
    mine = folder_id(output)
    with filled(where, 1, plan=mine) as queue:  # of the machine whose folder this was
        assert queue.complete(queue.claim("w", 60), b"parcel")
        output.rename(tmp_path / "elsewhere")
        assert together(where, output, wanted, engine_runs.once_each)[0] == []
        assert folder_id(output) != mine
        assert queue.known(mine) == {"run000"}


def test_a_folder_is_named_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(folder_id, [tmp_path / "out"] * 8))
    assert found == {folder_id(tmp_path / "out")}
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FOLDER_ID]


def test_a_folder_keeps_the_name_that_another_command_gave_it_in_the_middle(tmp_path, monkeypatch):
    real, theirs = uuid.uuid4, []

    def come_between():
        if not theirs:
            theirs.append("")
            theirs[0] = folder_id(tmp_path / "out")
        return real()

    monkeypatch.setattr(uuid, "uuid4", come_between)
    assert folder_id(tmp_path / "out") == theirs[0] == folder_id(tmp_path / "out")


def test_two_plans_want_the_same_runs_of_two_workers_in_one_folder(where, tmp_path):
    """Each worker has the files of a run for itself until it has handed them in; both plans get all of them."""
    wanted, work = configs(3), tmp_path / "work"
    runs = [(config.run_id, config.canonical()) for config in wanted]
    with open_queue(where) as queue:
        for run in runs:
            queue.add("one", [run], 2)
            queue.add("two", [run], 2)
        start = threading.Barrier(2)

        def worker():
            start.wait()
            with queue.again() as own:
                return work_on(own, WorkerOptions(work, function=engine_runs.unhurried, poll_seconds=0.05))

        with ThreadPoolExecutor(2) as pool:
            done = [future.result() for future in [pool.submit(worker) for _ in range(2)]]
        assert [run_id for one in done for run_id in one.failed] == []
        for plan in ("one", "two"):
            found = queue.through(plan, 20)
            assert [one.run_id for one in found] == sorted(run_id for run_id, _ in runs)
            for one in found:
                shard = Shard(tmp_path / plan, one.run_id)
                unpack(one.result, shard)
                with Store(shard.path) as store:
                    assert store.completed() == {one.run_id}
    assert list(work.glob("shards/*")) == []


def test_failed_runs_of_workers_are_named(where, tmp_path):
    wanted, output = configs(3), tmp_path / "out"
    raised, done = together(where, output, wanted, engine_runs.troubled)
    assert (len(done[0].completed), len(done[0].failed)) == (1, 2)
    assert f"{wanted[1].run_id}: its data is wrong" in str(raised[0])
    assert f"{wanted[2].run_id}: ZeroDivisionError: by nothing" in str(raised[0])
    with Store(output / "store.sqlite") as store:
        assert store.completed() == {wanted[0].run_id}
        assert store.get(wanted[1].run_id).error == "its data is wrong"


def test_queue_is_needed(tmp_path):
    with pytest.raises(ConfigError, match="--address: is missing; name the queue"):
        collect(None, tmp_path, configs(1))


def test_store_is_no_queue(tmp_path):
    Store(tmp_path / "store.sqlite").close()
    before = (tmp_path / "store.sqlite").read_bytes()
    with pytest.raises(StoreError, match="is no queue"):
        open_queue(str(tmp_path / "store.sqlite"))
    assert (tmp_path / "store.sqlite").read_bytes() == before


def made(output):
    (config,) = configs(1)
    shard = Shard(output, config.run_id)
    with Store(shard.path) as store:
        engine_runs.noop(config, store, output)
    return shard


def test_parcel_brings_shard_and_checkpoint(tmp_path):
    shard = made(tmp_path / "a")
    checkpoint = tmp_path / "a/checkpoints" / shard.run_id
    (checkpoint / "deep").mkdir(parents=True)
    (checkpoint / "deep/adapter.safetensors").write_bytes(b"\x01\x02")
    there = Shard(tmp_path / "b", shard.run_id)
    unpack(pack(shard), there)
    assert (tmp_path / "b/checkpoints" / shard.run_id / "deep/adapter.safetensors").read_bytes() == b"\x01\x02"
    with Store(there.path) as store:
        assert store.completed() == {shard.run_id}


@pytest.mark.parametrize("name", ["../evil", "checkpoints/../../evil", "/evil", "checkpoints", "other/evil"])
def test_parcel_cannot_write_elsewhere(tmp_path, name):
    shard = made(tmp_path / "a")
    box = tmp_path / "parcel.zip"
    box.write_bytes(pack(shard))
    with zipfile.ZipFile(box, "a") as parcel:
        parcel.writestr(name, "evil")
    with pytest.raises(DataError, match="was not unpacked"):
        unpack(box.read_bytes(), Shard(tmp_path / "b/c/d", shard.run_id))
    assert not list(tmp_path.rglob("evil"))
    with pytest.raises(DataError, match="came back damaged"):
        unpack(b"not a zip", Shard(tmp_path / "b", shard.run_id))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:s3cr/t@x@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("rankwise worker 'postgres://me:s3cr%2Ft@host/db' -o w", "rankwise worker 'postgres://me:***@host/db' -o w"),
        ("postgresql://host/db?user=a&password=s3cr&x=1", "postgresql://host/db?user=a&password=***&x=1"),
        ("host=h password='s3cr t' user=c", "host=h password=*** user=c"),
        ("postgresql://me@host/db and https://a.b/c:d", "postgresql://me@host/db and https://a.b/c:d"),
    ],
)
def test_passwords_are_hidden(text, shown):
    assert without_passwords(text) == shown
    assert not any("s3cr" in shown.replace(secret, "") for secret in passwords(text))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.replace("%2Ft", "%2Fz"),  # wrong
        lambda url: url.replace("%2Ft", "%zz"),  # cannot be decoded
        lambda url: url.replace("127.0.0.1:", "127.0.0.1:9"),  # nobody there
        lambda url: f"{url}?nonsense=1",
    ],
)
def test_no_message_shows_the_password(postgres, change):
    pytest.importorskip("psycopg")
    words = [*WORKER, change(postgres), "--status"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("rankwise: queue postgresql://tester:***@127.0.0.1:")
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS)
    assert "Traceback" not in done.stderr


def tiny_runs(model_folder, data_file):
    given = {"methods": "lora,glora", "text": "sentence", "label": "verdict", "budget": "r=2", "seeds": "2"}
    options = given | {"model": str(model_folder), "task": str(data_file), "steps": 200, "batch_size": 4}
    for config in plan_of(CompareOptions(**options)).configs():
        yield config.model_copy(update={"training": config.training.model_copy(update={"save_every": 20})})


@pytest.mark.slow
def test_real_workers_one_of_them_killed(where, tmp_path, model_folder, data_file):
    """Same bits as in this process; the killed worker's run goes on from its last state; no password left anywhere."""
    wanted = list(tiny_runs(model_folder, data_file))
    here, there, work = tmp_path / "here", tmp_path / "there", tmp_path / "work"
    with Store(here / "store.sqlite") as store:
        run_with(None, wanted, store, here, Silent())
    there.mkdir()
    with open_queue(where) as queue:  # as the command does it, which comes later here
        queue.add(folder_id(there), [(config.run_id, config.canonical()) for config in wanted], 2)
    words = [*WORKER, where, "--output", str(work), "--lease", "10"]
    first = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 400
    while not list(work.glob("unfinished/*/checkpoint-4[0-9]/trainer_state.json")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    said = "".join(first.communicate())
    others = [subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    collect(where, there, wanted)
    for process in others:
        said += "".join(process.communicate(timeout=300))
        assert process.returncode == 0
    with Store(here / "store.sqlite") as one, Store(there / "store.sqlite") as other:
        assert other.completed() == {config.run_id for config in wanted}
        for config in wanted:
            run_id = config.run_id
            assert one.get(run_id).metrics == other.get(run_id).metrics
            assert one.steps(run_id, "train_loss") == other.steps(run_id, "train_loss")
            weights = [place / "checkpoints" / run_id / "adapter_model.safetensors" for place in (here, there)]
            assert weights[0].read_bytes() == weights[1].read_bytes()
    assert said.count("runs completed, 0 failed") == 2
    files = b"".join(path.read_bytes() for place in (there, work) for path in place.rglob("*") if path.is_file())
    assert not any(secret.encode() in files or secret in said for secret in SECRETS)
