"""What `rankwise dashboard` does: check where it may listen, then serve until it is interrupted."""

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rankwise.errors import ConfigError, Finding, MissingPackageError, OutputError, StoreError
from rankwise.experiments.folder_report import store_of


@dataclass(frozen=True)
class Address:
    """Where the dashboard listens: this machine only."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"


def address_of(host: str, port: int) -> Address:
    """A loopback address.

    Raises:
        ConfigError: the host is not this machine's own, or is no address.
    """
    name = host.strip("[]")
    try:
        here = ipaddress.ip_address("127.0.0.1" if name.lower() == "localhost" else name)
    except ValueError:
        here = None
    if here is None or str(here) not in ("127.0.0.1", "::1"):
        message = (
            f"'{host}' is not of this machine alone; the dashboard has no passwords, so it listens on 127.0.0.1, ::1 "
            "or localhost only. From elsewhere, go through `ssh -L`"
        )
        raise ConfigError("dashboard", [Finding("--host", message)])
    return Address(str(here), port)


def serve(
    folder: Path, *, store: Path | None, host: str, port: int, started: Callable[[Address], None] = lambda _: None
) -> None:
    """Serve the report of a run folder until Ctrl-C; `started` is called when it can be opened.

    Raises:
        ConfigError: not a loopback address.
        MissingPackageError: the web server is not installed.
        OutputError: `folder` is no run folder, or the port is taken.
        StoreError: the results store is not there.
    """
    address = address_of(host, port)
    path = store_of(folder, store)
    if not path.is_file():
        raise StoreError(f"the results store of {folder} is not at {path}; name it with --store")
    try:
        import uvicorn

        from rankwise.experiments.dashboard import Live, app_of
    except ImportError as error:
        missing = f"the dashboard needs {error.name}: pip install 'rankwise[dashboard]'"
        raise MissingPackageError(missing) from None
    _check_free(address)
    config = uvicorn.Config(
        app_of(Live(folder, path)),
        host=address.host,
        port=address.port,
        log_level="error",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
    )
    started(address)
    try:
        uvicorn.Server(config).run()
    except KeyboardInterrupt:
        return


def _check_free(address: Address) -> None:
    """Try to listen before anything else is done, for a clear message."""

    async def listen() -> None:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, address.host, address.port)
        server.close()
        await server.wait_closed()

    try:
        asyncio.run(listen())
    except OSError as error:
        raise OutputError(
            f"cannot listen on {address.url}: {error.strerror or error}. Choose another --port, from 1024 to 65535"
        ) from None
