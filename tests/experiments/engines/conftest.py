"""A PostgreSQL server of the tests' own, with a password, on a free port; and the two kinds of queue."""

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

PASSWORD = "s3cr/t@x%y"
ENCODED = "s3cr%2Ft%40x%25y"


def programs():
    """Folder of PostgreSQL's own programs; Debian keeps it out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in [shutil.which("initdb")] if p]
    return found[-1].resolve().parent if found else None


@pytest.fixture(scope="session")
def postgres():
    """URL of a fresh database server."""
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: pip install 'rankwise[postgres]'")
    home = Path(tempfile.mkdtemp(prefix="rankwise-postgres-"))
    secret = home / "password"
    secret.write_text(PASSWORD)
    become = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(home, "postgres")
        shutil.chown(secret, "postgres")
        become = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, log = home / "data", home / "log"

    def call(program, *words):
        subprocess.run([*become, folder / program, "-D", data, *words], check=True, cwd=home, stdout=subprocess.DEVNULL)

    call("initdb", "-U", "tester", f"--pwfile={secret}", "-A", "scram-sha-256", "--no-sync", "-E", "UTF8")
    call("pg_ctl", "-w", "-l", log, "-o", f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -F", "start")
    try:
        yield f"postgresql://tester:{ENCODED}@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def where(request, tmp_path):
    """Where a queue is: a path or a URL; empty."""
    if request.param == "sqlite":
        return str(tmp_path / "queue.sqlite")
    url = request.getfixturevalue("postgres")
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS rankwise_queue")
    return url
