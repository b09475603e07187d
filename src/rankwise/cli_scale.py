"""Commands for many runs on many machines: worker. No logic lives here."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli_options import Json, print_summary
from rankwise.interrupts import interruptible

app = typer.Typer()


@app.command(epilog="Example: rankwise worker postgresql://me@db.example.org/runs --output work")
def worker(
    queue: Annotated[
        str,
        typer.Argument(
            envvar="RANKWISE_QUEUE",
            help="`postgresql://USER@HOST/DATABASE`, or a SQLite file for workers on one machine. Passwords: better in "
            "~/.pgpass or PGPASSWORD than here, where other users of the machine see it.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for work in progress; workers that share it go on with lost runs of others."
        ),
    ] = Path("runs/worker"),
    cpus: Annotated[int, typer.Option(min=1, help="Threads of this worker.")] = 1,
    lease: Annotated[
        float, typer.Option(min=1.0, help="Seconds of silence after which others may take this worker's run.")
    ] = 60.0,
    stay: Annotated[bool, typer.Option("--stay", help="Wait for more runs when the queue is empty.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Only print how many runs there are.")] = False,
    as_json: Json = False,
) -> None:
    """Do runs from a queue, one after another, until none is left. Start as many workers as you like, anywhere.

    `rankwise compare PLAN --engine queue --address QUEUE` puts runs in and collects what workers made. A worker that
    dies is missed after its lease, and another one takes its run.
    """
    from rankwise.experiments import scale_commands as commands

    try:
        with interruptible():
            made = (
                commands.status(queue)
                if status
                else commands.work(queue, output=output, cpus=cpus, lease_seconds=lease, stay=stay)
            )
    except KeyboardInterrupt:
        print("rankwise: interrupted; the run goes back into the queue", file=sys.stderr)
        raise typer.Exit(130) from None
    print_summary(made, as_json)
