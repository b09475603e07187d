"""The research commands that ask a language model: parse, call, print. No logic lives here."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.cli_model_options import model_options
from rankwise.cli_options import Json, print_summary
from rankwise.research.ask_options import ModelOptions

Folder = Annotated[Path, typer.Argument(metavar="PROJECT", help="Folder of the research project.")]


def add_to(app: typer.Typer) -> None:
    """Register these commands on the `research` app."""
    app.command("hypothesize", epilog=HYPOTHESIZE)(hypothesize)
    app.command("evaluate", epilog=EVALUATE)(evaluate)
    app.command("refine", epilog=REFINE)(refine)
    app.command("diff", epilog=DIFF)(diff)


HYPOTHESIZE = (
    "Example: rankwise research hypothesize 'Where should LoRA rank go?' --papers papers.txt --prompt-only "
    "--output research/rank"
)
EVALUATE = "Example: rankwise research evaluate research/rank"
REFINE = "Example: rankwise research refine research/rank --model gpt-5-mini --max-cost 0.50"
DIFF = "Example: rankwise research diff research/rank 0 2"


@model_options
def hypothesize(
    topic: Annotated[str, typer.Argument(help="Research topic, in a sentence.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PROJECT", help="Folder of the research project.")],
    options: ModelOptions,
    papers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prior papers: a record's list, papers.json or JSON lines.")
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(help="`minimal`: the smallest change of one method (default); `free`: any proposal."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Propose a hypothesis on a topic: begins a project and writes its first round, with claims as data."""
    from rankwise.errors import ConfigError, Finding
    from rankwise.research import ask_commands

    if style not in (None, "minimal", "free"):
        raise ConfigError("hypothesize", [Finding("--style", f"is {style!r}; allowed: minimal, free")])
    chosen: Any = style
    print_summary(ask_commands.hypothesize(ask_commands.Start(topic, papers, chosen), output, options), as_json)


@model_options
def evaluate(
    project: Folder,
    options: ModelOptions,
    number: Annotated[
        int | None, typer.Option("--round", min=0, help="Round (default: every round without an evaluation).")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Replace the evaluation that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Evaluate hypotheses: what code finds wrong, then, if a model is named, its scores and the closest papers."""
    from rankwise.research import ask_commands

    print_summary(ask_commands.evaluate(project, options, number=number, again=again), as_json)


@model_options
def refine(
    project: Folder,
    options: ModelOptions,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also if the stop rule says that it is enough.")] = False,
    as_json: Json = False,
) -> None:
    """Write the next round of the hypothesis, from all rounds so far and what was found about them."""
    from rankwise.research import ask_commands

    print_summary(ask_commands.refine(project, options, anyway=anyway), as_json)


def diff(
    project: Folder,
    first: Annotated[int | None, typer.Argument(metavar="A", help="Round (default: the last but one).")] = None,
    second: Annotated[int | None, typer.Argument(metavar="B", help="Round (default: the last).")] = None,
    as_json: Json = False,
) -> None:
    """Show what changed between two rounds, word by word and claim by claim."""
    from rankwise.research import ask_commands

    print_summary(ask_commands.diff(project, first, second), as_json)
