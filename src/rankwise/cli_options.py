"""What commands of the command line share: their options, and how answers are printed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

WIDE = 180
"""Columns of a table that goes into a file or a pipe."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of text.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Run folder (default: a new one under runs/).")]
StorePath = Annotated[
    Path | None,
    typer.Option("--store", envvar="RANKWISE_STORE", help="Results store, to share finished runs between run folders."),
]

Checkpoint = Annotated[
    str,
    typer.Argument(
        help="Run folder of `compare` or `run`, a checkpoint in it, a PEFT LoRA or AdaLoRA folder, or a hub id."
    ),
]
RunId = Annotated[str | None, typer.Option(help="Run of the run folder, by its id or the beginning of it.")]
RunMethod = Annotated[str | None, typer.Option("--method", help="Run of the run folder, by its method.")]
RunSeed = Annotated[int | None, typer.Option("--seed", help="Run of the run folder, by its seed.")]
NewFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist, or be empty.")]


def print_json(value: Any) -> None:  # noqa: ANN401 - anything JSON can say
    """JSON on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show(report: Any, as_json: bool) -> None:  # noqa: ANN401 - a commands.Shown or None, imported lazily
    """A report as tables and lines, or as JSON."""
    if report is None:
        return
    if as_json:
        print_json(report.content)
        return
    from rich.console import Console

    console = Console()
    for table in report.tables:
        console.print(table, "")
    for line in report.lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_answer(answer: Any, as_json: bool) -> None:  # noqa: ANN401 - an adapter_commands.Answer, imported lazily
    """An answer as pictures and lines, or as JSON."""
    if as_json:
        print_json(answer.data)
        return
    if answer.pictures:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDE)
        for picture in answer.pictures:
            console.print(picture, "")
    typer.echo("\n".join(answer.lines))
