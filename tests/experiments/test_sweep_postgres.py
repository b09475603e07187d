"""Studies in PostgreSQL: a real server of our own, on a free port, with a password."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from sweeping import killed_and_gone_on, outcome, start, wanted

from rankwise.errors import StoreError
from rankwise.experiments.sweep_storage import open_storage, storage_url

PASSWORD = "hu/sh@me:1"
"""As people have them: nothing of it may be taken for a part of the URL."""

pytestmark = pytest.mark.slow


def programs():
    """Folder of initdb and postgres: Debian keeps them out of the path."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server():
    """The URL of a fresh database; the server refuses to be the superuser, so it is somebody else if we are."""
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is in the extra `scale`")
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL server here (initdb is not installed)")
    with tempfile.TemporaryDirectory(prefix="rankwise-postgres-") as place:
        base, data = Path(place), Path(place) / "data"
        who = {}
        if os.geteuid() == 0:
            who = {"user": "nobody", "extra_groups": []}
            shutil.chown(base, "nobody")
        (base / "password").write_text(PASSWORD)
        (base / "password").chmod(0o644)
        words = [
            "-D",
            data,
            "-U",
            "me",
            "--auth=scram-sha-256",
            "--pwfile",
            base / "password",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        made = subprocess.run(
            [folder / "initdb", *words], capture_output=True, text=True, cwd=base, env={"LC_ALL": "C"}, **who
        )
        assert made.returncode == 0, made.stderr
        port = free_port()
        settings = ["-p", str(port), "-k", str(base), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        log = (base / "log").open("w")
        process = subprocess.Popen(
            [folder / "postgres", "-D", data, *settings], stdout=log, stderr=log, cwd=base, env={"LC_ALL": "C"}, **who
        )
        try:
            wait_for(process, port, base / "log")
            yield f"postgresql://me:{PASSWORD}@127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)  # not waiting for clients
            process.wait(60)
            log.close()


def wait_for(process, port, log):
    import psycopg

    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="me", password=PASSWORD, dbname="postgres").close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture
def url(server, request):
    """A database of the test's own."""
    import psycopg

    name = f"trials{abs(hash(request.node.name)) % 10**9}"
    whole = storage_url(f"{server}/postgres", Path()).replace("+psycopg", "")
    with psycopg.connect(whole, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"


def test_workers_run_every_trial_once(url, tmp_path):
    workers = [start(storage_url(url, tmp_path), tmp_path / f"locks{i}", 12, 0.05) for i in range(3)]
    said = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], said
    done = Counter(line for out, _ in said for line in out.splitlines() if line.startswith("done"))
    assert done == {f"done {t}": 1 for t in range(12)}
    assert outcome(storage_url(url, tmp_path), 12)[0] == wanted(12)


def test_a_killed_workers_trial_is_done_by_the_next(url, tmp_path):
    """Its heart stopped; nothing of its machine can be seen from the other one."""
    killed_and_gone_on(storage_url(url, tmp_path), tmp_path / "a", tmp_path / "b", 1, 2)
    found, attempts = outcome(storage_url(url, tmp_path), 6)
    assert found == wanted(6)
    assert attempts == 7


def test_a_sweep_of_two_workers_and_no_password_anywhere(url, tmp_path, model_folder, data_file):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {model_folder}\n"
        f"task: {{name: files, path: {data_file}, text: [sentence], label: verdict}}\n"
        "training: {max_steps: 4, batch_size: 4}\n"
        "sweep:\n  n_trials: 4\n  seeds: 1\n  holdout: 0.25\n"
        "  search_space: {training.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}}\n"
    )
    out = tmp_path / "out"
    words = [sys.executable, "-m", "rankwise", "sweep", str(file), "--output", str(out)]
    secret = {"RANKWISE_STORAGE": url}
    ways = [([*words, "--storage", url], {}), (words, secret)]
    workers = [
        subprocess.Popen(way, env={**os.environ, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for way, more in ways
    ]
    said = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert len((out / "trials.csv").read_text().splitlines()) == 5
    assert not (out / "study.sqlite").exists()
    secrets = (PASSWORD.encode(), b"sh@me", b"hu%2Fsh")
    texts = [text.encode() for pair in said for text in pair]
    files = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert any(b"me:***@127.0.0.1" in content for content in files)
    for content in [*texts, *files]:
        assert not any(word in content for word in secrets)


def test_a_wrong_password_is_one_message(url, tmp_path):
    wrong = url.replace(PASSWORD, "guess@x")
    with pytest.raises(StoreError, match="password authentication failed") as caught:
        open_storage(storage_url(wrong, tmp_path))
    assert "guess" not in str(caught.value)
