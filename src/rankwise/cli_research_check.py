"""The command `research check`: parse, call, print. No logic lives here."""

from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli_options import Json, print_summary

EXAMPLE = "Example: rankwise research check research/rank --json"


def add_to(app: typer.Typer) -> None:
    """Register the command on the `research` app."""
    app.command("check", epilog=EXAMPLE)(check)


def check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|PROJECT",
            help="Record of a pipeline, folder of a research project, one of its JSON files, or a run config (YAML).",
        ),
    ],
    as_json: Json = False,
) -> None:
    """List what code finds wrong: arithmetic, budgets, sketches of code, metrics, data, reviews. No model is asked.

    Each defect has a rule, a number (docs/defects.md), a place, and what is true instead. Errors end with exit code 2.
    """
    from rankwise.research import check_commands as commands

    found = commands.check(path)
    print_summary(found, as_json)
