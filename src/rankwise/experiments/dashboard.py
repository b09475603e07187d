"""The report of a run folder, served while runs go on: the same page, made again when the store has changed.

Read-only on the store and for this machine only. A page from elsewhere cannot read it either: requests must name this
machine as their host, so a foreign name that was pointed here (DNS rebinding) is refused.
"""

import hashlib
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rankwise.errors import RankwiseError
from rankwise.experiments.compare import PLAN
from rankwise.experiments.folder_report import folder_report
from rankwise.experiments.frozen import FROZEN
from rankwise.experiments.html.page import Page, build_page
from rankwise.experiments.redact import without_passwords
from rankwise.experiments.store_reader import StoreReader

HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine that a request may be addressed to."""
_REST = 4
"""Making pages takes at most one part in so many of the time, because the runs need the processor."""
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class Live:
    """The page of a run folder, kept current; `version` changes with it, `problem` says why it could not be made."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = folder, store
        self.page: Page | None = None
        self.html, self.version, self.problem = "", "", ""
        self._not_before = 0.0
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Make the page again if the store has changed and the processor has had time for other things."""
        with self._lock:
            version = self._state()
            if version == self.version or time.monotonic() < self._not_before:
                return
            began = time.monotonic()
            try:
                with StoreReader(self.store) as opened:
                    page = build_page(folder_report(self.folder, opened), opened)
                self.page, self.html, self.problem = page, page.html(live=version), ""
            except RankwiseError as error:
                self.problem = without_passwords(str(error))
            self.version = version
            now = time.monotonic()
            self._not_before = now + _REST * (now - began)

    def _state(self) -> str:
        """A digest of sizes and times of the files that the page is made from.

        An empty log is no log: SQLite makes one when a closed store is read.
        """
        digest = hashlib.sha256()
        log = self.store.with_name(f"{self.store.name}-wal")
        for path in (self.store, log, self.folder / PLAN, self.folder / FROZEN):
            try:
                found = path.stat()
            except OSError:
                found = None
            digest.update(f"{found.st_size} {found.st_mtime_ns};".encode() if found and found.st_size else b"-;")
        return digest.hexdigest()[:16]


class _OnlyHere:
    """Refuses requests that are not addressed to this machine by one of its own names."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            if len(hosts) != 1 or not _is_here(hosts[0]):
                answer = PlainTextResponse(f"only for {', '.join(HOSTS)}\n", status_code=421, headers=_HEADERS)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _is_here(host: str) -> bool:
    name, _, port = host.lower().rpartition(":")
    if not port.isdecimal() or not name:
        name = host.lower()
    return name in HOSTS


def app_of(live: Live) -> Starlette:
    """The web application: the page, its version, and its figures and tables as files."""

    async def page(request: Request) -> Response:
        await run_in_threadpool(live.refresh)
        if live.page is None:
            return PlainTextResponse(f"{live.problem}\n", status_code=503, headers=_HEADERS)
        return Response(live.html, media_type="text/html", headers=_HEADERS)

    async def version(request: Request) -> Response:
        await run_in_threadpool(live.refresh)
        return JSONResponse({"version": live.version, "problem": live.problem}, headers=_HEADERS)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/version", version),
            Route("/figures/{name}", _file(live, _figure)),
            Route("/tables/{name}", _file(live, _table)),
        ],
        middleware=[Middleware(_OnlyHere)],
    )


Find = Callable[[Page, str], tuple[bytes, str] | None]


def _file(live: Live, find: Find) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        page = live.page
        found = await run_in_threadpool(find, page, request.path_params["name"]) if page is not None else None
        if found is None:
            return PlainTextResponse("no such file\n", status_code=404, headers=_HEADERS)
        return Response(found[0], media_type=found[1], headers=_HEADERS)

    return answer


def _figure(page: Page, name: str) -> tuple[bytes, str] | None:
    for picture in page.pictures:
        if name == f"{picture.name}.svg":
            return picture.svg(), "image/svg+xml"
        if name == f"{picture.name}.png":
            return picture.png(), "image/png"
    return None


def _table(page: Page, name: str) -> tuple[bytes, str] | None:
    for table in page.tables:
        if name == f"{table.name}.csv":
            return without_passwords(table.csv().decode()).encode(), "text/csv; charset=utf-8"
    return None
