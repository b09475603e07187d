"""The research commands about papers and records: parse, call, print. No logic lives here."""

from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli_model_options import model_options
from rankwise.cli_options import Json, print_summary
from rankwise.research.ask_options import ModelOptions

Folder = Annotated[Path, typer.Argument(metavar="PROJECT", help="Folder of the research project.")]


def add_to(app: typer.Typer) -> None:
    """Register these commands on the `research` app."""
    papers = typer.Typer(no_args_is_help=True, help="Prior papers of a research project.")
    papers.command("add", epilog=ADD)(add)
    papers.command("list", epilog=LIST)(list_papers)
    papers.command("show", epilog=SHOW)(show)
    app.add_typer(papers, name="papers")
    app.command("import", epilog=IMPORT)(import_record)


ADD = "Example: rankwise research papers add research/rank papers.txt adalora.pdf 2106.09685"
LIST = "Example: rankwise research papers list research/rank"
SHOW = "Example: rankwise research papers show research/rank zhang-2023-adalora"
IMPORT = "Example: rankwise research import record.txt --output research/rank"


@model_options
def add(
    project: Folder,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Files (a record's list, JSON, PDF, text, Markdown), folders of them, arXiv numbers, DOIs, OpenAlex "
            "or Semantic Scholar ids, or titles.",
        ),
    ],
    options: ModelOptions,
    as_json: Json = False,
) -> None:
    """Add papers to a project; those that it has already are merged. A model, if named, summarises PDF and text."""
    from rankwise.research import papers_commands

    print_summary(papers_commands.add(project, sources, options), as_json)


def list_papers(project: Folder, as_json: Json = False) -> None:
    """List the papers of a project."""
    from rankwise.research import papers_commands

    print_summary(papers_commands.list_papers(project), as_json)


def show(
    project: Folder,
    paper: Annotated[str, typer.Argument(metavar="ID", help="Its id in the project, DOI or arXiv number.")],
    as_json: Json = False,
) -> None:
    """Show what the project knows of a paper, with the passages that its summary rests on."""
    from rankwise.research import papers_commands

    print_summary(papers_commands.show(project, paper), as_json)


def import_record(
    record: Annotated[Path, typer.Argument(help="Record of a pipeline: a prompt with its answer, or a review.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PROJECT", help="Folder of the new project.")],
    as_json: Json = False,
) -> None:
    """Make a project of a record: its papers, hypotheses, run configs or review, to go on from there."""
    from rankwise.research import import_commands

    print_summary(import_commands.import_record(record, output), as_json)
