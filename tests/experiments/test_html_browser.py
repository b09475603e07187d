"""The page and the dashboard in a real Chromium: no errors, no overflow on a telephone, everything by keyboard."""

import contextlib
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from chromium import Chromium, needs_chromium
from report_fixture import fill, plan, record_of, report_of, save, write_folder

from rankwise.experiments.html.writing import write_html
from rankwise.experiments.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.figures, needs_chromium]
SIZES = [(360, 800), (1280, 900)]


@pytest.fixture(scope="module")
def browser():
    with Chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    planned = plan()
    with Store(folder / "store.sqlite") as store:
        report = report_of(planned, fill(store, planned, leave=1))
        return write_html(report, store, folder)[0]


def pixels(path):
    """Rows of a PNG's pixels as bytes, RGB or RGBA, unfiltered."""
    data, at, packed = path.read_bytes(), 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, _, colour = struct.unpack(">IIBB", body[:10])
        packed += body if kind == b"IDAT" else b""
        at += size + 12
    step = 4 if colour == 6 else 3
    raw, rows, before = zlib.decompress(packed), [], bytearray(width * step)
    for y in range(height):
        start = y * (width * step + 1)
        row = unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + width * step]), before, step)
        rows.append(row)
        before = row
    return rows, step


def unfiltered(kind, row, above, step):
    for i in range(len(row)):
        left, up, corner = (row[i - step] if i >= step else 0), above[i], (above[i - step] if i >= step else 0)
        guess = left + up - corner
        paeth = min((left, up, corner), key=lambda value: abs(guess - value))
        row[i] = (row[i] + (0, left, up, (left + up) // 2, paeth)[kind]) & 255
    return row


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_page_fits_and_says_nothing_to_the_console(browser, page, tmp_path, width, height, dark):
    browser.open(page.as_uri(), width, height, dark)
    assert browser.troubles() == []
    assert [url for url in browser.requests() if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    browser.run("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "with everything unfolded"
    wide = browser.run(
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, pre, svg') &&"
        " e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    browser.run("document.querySelectorAll('details').forEach((one) => (one.open = false))")
    browser.screenshot(tmp_path / "shot.png")
    rows, step = pixels(tmp_path / "shot.png")
    assert (len(rows), len(rows[0]) // step) == (height, width)
    corner = sum(rows[2][step : step + 3]) / 3
    assert (corner < 60) == dark
    keep = os.environ.get("RANKWISE_SCREENSHOTS")  # a folder, to look at them
    if keep:
        browser.screenshot(Path(keep) / f"report-{width}-{'dark' if dark else 'light'}.png", whole=True)


def test_drawings_can_be_read_in_both_schemes(browser, page):
    """What is drawn has the page's ink, and text in it is not smaller than 8 pixels on a telephone."""
    for dark in (False, True):
        browser.open(page.as_uri(), 360, 800, dark)
        inks = browser.run(
            "[...new Set([...document.querySelectorAll('.drawing text')].map((t) => getComputedStyle(t).fill))]"
        )
        ink = browser.run("getComputedStyle(document.body).color")
        assert set(inks) - {"rgb(255, 255, 255)", "rgb(0, 0, 0)"} == {ink}  # white and black are on heat maps' cells
        smallest = browser.run(
            "Math.min(...[...document.querySelectorAll('.drawing')].flatMap((d) => { const svg = d.firstElementChild;"
            " const zoom = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;"
            " return [...svg.querySelectorAll('text')].map((t) => zoom * parseFloat(getComputedStyle(t).fontSize)); }))"
        )
        assert smallest >= 8


def test_everything_is_reached_by_keyboard(browser, page):
    browser.open(page.as_uri(), 1280, 900)
    wanted = browser.run("document.querySelectorAll('a[href], button, summary, .scroll, pre').length")
    hidden = browser.run(
        "[...document.querySelectorAll('a[href], button, summary, .scroll, pre')]"
        ".filter((e) => e.closest('details:not([open])') && !e.matches('details > summary')).length"
    )
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("document.activeElement.getBoundingClientRect().left >= 0"), "the skip link shows when focused"
    browser.press("Enter")
    assert browser.run("location.hash") == "#main"
    browser.open(page.as_uri(), 1280, 900)
    browser.run("window.seen = new Set()")
    rings = set()
    for _ in range(wanted - hidden + 5):
        browser.press("Tab")
        rings.add(
            browser.run("seen.add(document.activeElement), getComputedStyle(document.activeElement).outlineStyle")
        )
        if browser.run("document.activeElement === document.body"):
            break
    assert rings - {"none"} == {"solid"}
    assert browser.run("seen.delete(document.body), seen.size") >= wanted - hidden
    browser.run("document.querySelector('summary').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelector('details').open")


def test_tables_are_sorted_by_keyboard(browser, page):
    browser.open(page.as_uri(), 1280, 900)
    column = "[...document.querySelectorAll('#metric tbody tr')].map((row) => Number(row.cells[4].dataset.key))"
    head = "document.querySelector('#metric thead th:nth-child(5)')"
    before = browser.run(column)
    browser.run(f"{head}.querySelector('button').focus()")
    browser.press("Enter")
    assert browser.run(f"{head}.getAttribute('aria-sort')") == "ascending"
    assert browser.run(column) == sorted(before) != before
    browser.press(" ", "Space")
    assert browser.run(column) == sorted(before, reverse=True)


@contextlib.contextmanager
def dashboard(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).parent / "rankwise")
    words = [program, "dashboard", str(folder), "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as done:
        try:
            assert "Ctrl-C" in done.stdout.readline()
            time.sleep(1)
            yield f"http://127.0.0.1:{port}/"
        finally:
            done.send_signal(signal.SIGINT)
            assert done.wait(60) == 0


def test_dashboard_follows_the_runs_and_leaves_the_reader_in_place(browser, tmp_path):
    planned = plan()
    write_folder(tmp_path, planned)
    with Store(tmp_path / "store.sqlite") as store:
        fill(store, planned, leave=38)
        with dashboard(tmp_path) as url:
            browser.open(url, 1280, 900)
            assert "4 of 42 runs completed" in browser.run("document.getElementById('progress').textContent")
            browser.run("document.getElementById('table-runs').open = true")
            browser.run("document.querySelector('#table-runs summary').focus()")
            begun = list({run.config.run_id: run for run in planned.runs}.values())[4]
            store.begin(record_of(begun))
            wait_for(browser, "document.getElementById('progress').textContent.includes('1 running')")
            store.fail(begun.config.run_id, "failed", "out of memory")
            save(store, record_of(begun))
            wait_for(browser, "document.getElementById('progress').textContent.includes('5 of 42 runs completed')")
            assert browser.run("document.getElementById('table-runs').open")
            assert browser.run("document.activeElement.textContent.startsWith('Runs:')")
            assert browser.run("document.querySelectorAll('#table-runs th button').length") > 10
            assert browser.run("document.documentElement.scrollWidth <= innerWidth")
            browser.run("document.getElementById('pause').click()")
            assert browser.run("document.getElementById('pause').getAttribute('aria-pressed')") == "true"
            assert [t for t in browser.troubles() if "favicon" not in str(t)] == []
            assert {u.split("/")[2] for u in browser.requests() if u.startswith("http")} == {url.split("/")[2]}


def wait_for(browser, script, seconds=240):
    for _ in itertools.takewhile(lambda _: not browser.run(script), range(seconds * 2)):
        time.sleep(0.5)
    assert browser.run(script), script
