"""The sweep command: parse, call, print. No logic lives here."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli_options import Json, Output, StorePath, show
from rankwise.interrupts import interruptible

app = typer.Typer()


@app.command(
    epilog="Example: rankwise sweep my-run.yaml training.max_steps=100 --trials 12 --seeds 3 --output runs/sweep"
)
def sweep(
    file: Annotated[Path, typer.Argument(help="Run config (YAML) with a `sweep:` (or a record's `optuna:`) section.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Values to change: key=value …")] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials over all workers together (default: the file's n_trials).")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="`tpe` or `grid` (default: the file's, else `tpe`).")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="RANKWISE_STORAGE",
            metavar="URL",
            help="Where the study is kept: a path or `postgresql+psycopg://USER@HOST/DATABASE` (default: study.sqlite "
            "in the run folder).",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=0, help="How often the best trial is run again; 0: not at all (default: 3).")
    ] = None,
    output: Output = None,
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Search the values that a config's `sweep` section names, then run the best ones again over seeds.

    Trials are measured on a share of the training examples, the best one also on the validation examples. The same
    command goes on where it stopped; started several times at once, it is several workers on one study.
    """
    from rankwise.experiments.sweep_commands import SweepOptions
    from rankwise.experiments.sweep_commands import sweep as search

    options = SweepOptions(trials, sampler, seeds, storage)
    command = shlex.join(["rankwise", *sys.argv[1:]])
    try:
        with interruptible():
            found = search(file, overrides or [], options, output=output, store=store, command=command)
    except KeyboardInterrupt:
        print("rankwise: interrupted; finished trials are kept, the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    show(found, as_json)
