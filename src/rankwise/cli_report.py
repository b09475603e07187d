"""The command that serves the report while runs go on. Parses, calls, prints."""

from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli_options import Json, StorePath, print_json

app = typer.Typer()


@app.command(epilog="Example: rankwise dashboard runs/rte --port 8051")
def dashboard(
    folder: Annotated[Path, typer.Argument(help="Run folder of `compare` or `run`; runs may still go on.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8050,
    host: Annotated[str, typer.Option(help="Address of this machine: 127.0.0.1, ::1 or localhost.")] = "127.0.0.1",
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Serve a run folder's report in the browser and keep it current; this machine only, Ctrl-C ends it.

    The page is that of `rankwise report`, with the progress of the runs. The store is only read, so runs are neither
    slowed down nor disturbed. Needs the extra `dashboard`.
    """
    from rankwise.experiments.dashboard_commands import Address, serve

    def started(address: Address) -> None:
        if as_json:
            print_json({"url": address.url, "folder": str(folder)})
        else:
            typer.echo(f"{address.url} shows {folder}; Ctrl-C ends it")

    serve(folder, store=store, host=host, port=port, started=started)
