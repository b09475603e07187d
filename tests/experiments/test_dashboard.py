"""The dashboard: this machine only, read-only, current, and clear about what is wrong."""

import asyncio
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from report_fixture import fill, plan, record_of, write_folder

from rankwise.errors import ConfigError, OutputError, StoreError
from rankwise.experiments.dashboard_commands import address_of, serve
from rankwise.experiments.folder_report import folder_report, tuning_rows
from rankwise.experiments.frozen import FROZEN
from rankwise.experiments.html.page import progress
from rankwise.experiments.store import Store
from rankwise.experiments.tuning import TriedRate, TuningResult, TuningTrial
from rankwise.experiments.verdicts import verdicts
from rankwise.tasks.base import MetricValue

pytest.importorskip("starlette", reason="the dashboard's web server is in the extra `dashboard`")
pytest.importorskip("uvicorn", reason="the dashboard's web server is in the extra `dashboard`")
from rankwise.experiments.dashboard import Live, app_of

pytestmark = pytest.mark.figures


def ask(app, path, *, host="127.0.0.1:8050", method="GET"):
    """Status, headers and body of a request, as a server would pass it on."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
             "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1),
             "server": ("127.0.0.1", 8050), "headers": [] if host is None else [(b"host", host.encode())]}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture
def folder(tmp_path):
    """A run folder of a small plan that has just begun."""
    planned = plan(seeds=2)
    write_folder(tmp_path, planned)
    Store(tmp_path / "store.sqlite").close()
    return tmp_path, planned


def test_page_is_served_and_made_again_when_the_store_has_changed(folder):
    path, planned = folder
    live = Live(path, path / "store.sqlite")
    app = app_of(live)
    status, headers, body = ask(app, "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "0 of 28 runs completed, 28 waiting" in body.decode()
    first = json.loads(ask(app, "/version")[2])
    assert first == {"version": live.version, "problem": ""}
    assert f'data-version="{live.version}"' in body.decode()
    made, live._not_before = live.page, 0.0
    assert json.loads(ask(app, "/version")[2]) == first
    assert live.page is made, "nothing changed, so nothing was made"
    with Store(path / "store.sqlite") as store:
        store.begin(record_of(planned.runs[0]))
        live._not_before = 0.0
        assert json.loads(ask(app, "/version")[2]) != first
        assert "0 of 28 runs completed, 1 running, 27 waiting" in ask(app, "/")[2].decode()
        changed = live.version
        live._not_before = float("inf")  # the processor's rest: the old page stays
        store.fail(planned.runs[0].config.run_id, "failed", "why")
        assert json.loads(ask(app, "/version")[2])["version"] == changed


@pytest.mark.parametrize("host", ["evil.example:8050", "evil.example", "127.0.0.1.evil.example", "", "[::2]:1", None])
def test_requests_that_name_another_host_are_refused(folder, host):
    """A name of somebody else's that points to this machine must not make the page readable for his."""
    live = Live(folder[0], folder[0] / "store.sqlite")
    for path in ("/", "/version", "/tables/runs.csv"):
        assert ask(app_of(live), path, host=host)[0] == 421
    assert live.page is None


@pytest.mark.parametrize("host", ["127.0.0.1:8050", "localhost:8050", "LOCALHOST", "[::1]:8050", "[::1]"])
def test_requests_to_this_machine_are_answered(folder, host):
    assert ask(app_of(Live(folder[0], folder[0] / "store.sqlite")), "/tables/none.csv", host=host)[0] == 404


def test_files_come_from_the_page_and_from_nowhere_else(folder):
    path, planned = folder
    with Store(path / "store.sqlite") as store:
        fill(store, planned, leave=26)
    app = app_of(Live(path, path / "store.sqlite"))
    assert ask(app, "/tables/runs.csv")[0] == 404  # no page yet
    ask(app, "/")
    status, headers, body = ask(app, "/tables/runs.csv")
    assert (status, headers["content-type"]) == (200, "text/csv; charset=utf-8")
    assert body.decode().startswith("run,arm,method")
    assert ask(app, "/figures/metric-glue-rte.png")[2].startswith(b"\x89PNG")
    assert b"<svg" in ask(app, "/figures/metric-glue-rte.svg")[2]
    for bad in ("/tables/../comparison.json", "/tables/%2e%2e%2fcomparison.json", "/figures/x.png", "/store.sqlite"):
        assert ask(app, bad)[0] == 404
    for method in ("POST", "PUT", "DELETE"):
        assert ask(app, "/", method=method)[0] == 405


def test_trouble_is_said_and_the_last_page_stays(folder):
    path, _ = folder
    live = Live(path, path / "store.sqlite")
    app = app_of(live)
    ask(app, "/")
    page, live._not_before = live.html, 0.0
    (path / FROZEN).write_text((path / FROZEN).read_text().replace("0.0015", "0.5"))
    said = json.loads(ask(app, "/version")[2])
    assert "was changed after it was frozen" in said["problem"]
    assert ask(app, "/")[2].decode() == page
    broken = Live(path, path / "store.sqlite")
    status, _, body = ask(app_of(broken), "/")
    assert status == 503
    assert "was changed after it was frozen" in body.decode()


def test_a_plans_folder_shows_its_verdicts_and_a_comparisons_its_runs(folder):
    path, planned = folder
    with Store(path / "store.sqlite") as store:
        fill(store, planned, leave=1)
        store.begin(replace(record_of(planned.runs[-2]), metrics={}))
        report = folder_report(path, store)
        assert report.title == "which-ranks"
        words = {verdict.claim.id: verdict.word for verdict in report.verdicts}
        assert list(words) == [claim.id for claim in planned.config.claims]
        assert (words["C5"], words["C7"], words["C8"]) == ("not testable", "supported", "not tested")
        assert dict(progress(report)) == {"completed": 27, "running": 1}
        assert {run.arm for run in report.runs} == {"lora", "glora", "random", "full"}
        (path / FROZEN).unlink()
        plain = folder_report(path, store)
    assert plain.verdicts == ()
    assert plain.title == "lora, glora, random, full on glue/rte, glue/cola, minilm"
    assert dict(progress(plain)) == {"completed": 27, "running": 1}


def test_rows_of_a_search():
    planned = plan(seeds=2)
    config = planned.runs[0].config
    rates = [(0.001, MetricValue(0.5, 0.1, 20)), (0.01, MetricValue(0.6, 0.1, 20)), (0.1, None)]
    tried = tuple(
        TriedRate(TuningTrial("lora", "t", "r=4", rate, config), "accuracy" if value else None, value)
        for rate, value in rates
    )
    rows = tuning_rows(TuningResult({("lora", "t", "r=4"): 0.01}, tried, ()))
    assert [(row.learning_rate, row.chosen, row.n) for row in rows] == [
        (0.001, False, 20),
        (0.01, True, 20),
        (0.1, False, 0),
    ]
    assert (rows[1].value, rows[1].se, rows[1].metric) == (0.6, 0.1, "accuracy")
    assert math.isnan(rows[2].value)


def test_claims_are_judged_on_the_examples_too_where_there_are_predictions(folder):
    path, planned = folder
    with Store(path / "store.sqlite") as store:
        records = fill(store, planned)
        report = folder_report(path, store)
    seeds_only = verdicts(planned.config, planned.runs, records)
    wider = [a.result.high - a.result.low > b.result.high - b.result.low
             for a, b in zip(report.verdicts, seeds_only, strict=True) if a.claim.id in ("C1", "C2")]  # fmt: skip
    assert wider == [True, True]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", "", "127.0.0.2"])
def test_other_addresses_are_refused(host):
    with pytest.raises(ConfigError, match=r"--host: .*this machine alone"):
        address_of(host, 8050)


def test_loopback_addresses():
    assert address_of("localhost", 1).url == "http://127.0.0.1:1/"
    assert address_of("::1", 8050).url == address_of("[::1]", 8050).url == "http://[::1]:8050/"


def test_a_taken_port_a_wrong_folder_and_a_missing_store_are_said(folder):
    path, _ = folder
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OutputError, match=rf"cannot listen on http://127.0.0.1:{port}/: .*Choose another --port"):
            serve(path, store=None, host="127.0.0.1", port=port)
    with pytest.raises(OutputError, match="is no run folder"):
        serve(path / "none", store=None, host="127.0.0.1", port=port)
    (path / "store.sqlite").unlink()
    with pytest.raises(StoreError, match=r"is not at .*name it with --store"):
        serve(path, store=None, host="127.0.0.1", port=port)


@pytest.mark.slow
def test_the_command_serves_while_another_process_writes(folder):
    path, planned = folder
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "rankwise"
    words = [str(program), "dashboard", str(path), "--port", str(port), "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "RANKWISE_STORE"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as served:
        try:
            said = "".join(iter(served.stdout.readline, "}\n")) + "}"
            url = json.loads(said)["url"]
            assert url == f"http://127.0.0.1:{port}/"
            stop = threading.Event()

            def look():
                while not stop.is_set():
                    try:
                        urllib.request.urlopen(f"{url}version", timeout=60).read()
                    except OSError:
                        continue

            looking = threading.Thread(target=look)
            looking.start()
            with Store(path / "store.sqlite") as store:
                fill(store, planned, leave=10)  # raises if the dashboard locks it
            stop.set()
            looking.join()
            served_page = urllib.request.urlopen(url, timeout=60).read().decode()
            assert re.search(r"\d+ of 28 runs completed", served_page)
        finally:
            served.send_signal(signal.SIGINT)
            assert served.wait(60) == 0
