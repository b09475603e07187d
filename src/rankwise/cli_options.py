"""What commands of the command line share: their options, and how answers are printed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.research.verbatim import escaped, visible

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
BaseModel = Annotated[
    str | None, typer.Option("--model", help="Base model, if the checkpoint does not name it, or by another name.")
]
OtherTask = Annotated[str | None, typer.Option("--task", help="Task, as in `compare --task` (default: the run's own).")]
TaskText = Annotated[str | None, typer.Option("--text", help="With --task: text column(s), two with a comma.")]
TaskLabel = Annotated[str | None, typer.Option("--label", help="With --task: label column.")]
TaskValidation = Annotated[str | None, typer.Option("--validation", help="With --task: validation file.")]
NewFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist, or be empty.")]


def print_json(value: Any) -> None:  # noqa: ANN401 - anything JSON can say
    """JSON on standard output; characters that a terminal obeys or nobody sees as escapes."""
    typer.echo(escaped(json.dumps(value, indent=2, ensure_ascii=False)))


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
        console.print(_Visible(table), "")
    for line in report.lines:
        console.print(visible(line), markup=False, highlight=False, soft_wrap=True)


def print_summary(summary: Any, as_json: bool) -> None:  # noqa: ANN401 - a Summary, imported lazily
    """A summary as text or JSON; exit code 2 if it failed.

    Text holds words of papers and models: what a terminal would obey and nobody sees is left out.
    """
    print_json(summary.data) if as_json else typer.echo(visible(summary.text))
    if summary.failed:
        raise typer.Exit(2)


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
            console.print(_Visible(picture), "")
    typer.echo(visible("\n".join(answer.lines)))


class _Visible:
    """A table or picture without what a terminal would obey: its cells hold words of data and of models."""

    def __init__(self, shown: Any) -> None:  # noqa: ANN401 - whatever rich can render
        self._shown = shown

    def __rich_console__(self, console: Any, options: Any) -> Any:  # noqa: ANN401 - types of rich, imported lazily
        from rich.segment import Segment

        for part in console.render(self._shown, options):
            yield Segment(visible(part.text), part.style, part.control)
