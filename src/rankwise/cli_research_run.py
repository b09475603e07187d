"""The research commands that design, run, review and do it all: parse, call, print. No logic lives here."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli_model_options import model_options
from rankwise.cli_options import Json, print_summary
from rankwise.interrupts import interruptible
from rankwise.research.ask_options import ModelOptions

Folder = Annotated[Path, typer.Argument(metavar="PROJECT", help="Folder of the research project.")]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="SAID=METHOD", help="Which registered method a name means, or `none` to leave it out."
    ),
]
Plugin = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="Python file that registers a method of your own; it is executed."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse a design without its controls instead of adding them.")]
Profile = Annotated[str | None, typer.Option(help="Profile of the plan: smoke, pilot or full (default: what fits).")]
Budget = Annotated[
    str | None, typer.Option(help="How long the runs may take here: 30min, 2h (default: the project's).")
]
Engine = Annotated[
    str | None, typer.Option(help="How to spread runs: local, ray, slurm or queue; none: one after the other, here.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Runs at a time (--engine).")]


def add_to(app: typer.Typer) -> None:
    """Register these commands on the `research` app."""
    app.command("design", epilog="Example: rankwise research design research/rank --map 'GG-LoRA=glora'")(design)
    app.command("run", epilog="Example: rankwise research run research/rank --budget 30min")(run)
    app.command("review", epilog="Example: rankwise research review research/rank")(review)
    app.command("status", epilog="Example: rankwise research status research/rank")(status)
    app.command(
        "start",
        epilog="Example: rankwise research start 'Where should LoRA rank go?' --papers papers.txt --model gpt-5-mini "
        "--budget 30min --output research/rank",
    )(start)


@model_options
def design(
    project: Folder,
    options: ModelOptions,
    names: Map = None,
    plugin: Plugin = None,
    strict: Strict = False,
    again: Annotated[bool, typer.Option("--again", help="Replace the design that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Design the test of the chosen hypothesis: arms, data, claims, a plan, and a run config for every run.

    Without a language model the design is read out of the hypothesis' words. Controls that are missing are added.
    """
    from rankwise.research import whole_commands as commands

    naming = commands.Naming(names or (), plugin or (), strict)
    print_summary(commands.design(project, options, naming, again=again), as_json)


def run(
    project: Folder,
    profile: Profile = None,
    budget: Budget = None,
    engine: Engine = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Do the missing runs of a project's plan, at the largest profile that fits the time, and judge its claims."""
    from rankwise.experiments.spreading import How
    from rankwise.research import whole_commands as commands

    how = How(engine, workers)
    how.check()
    with _interruptible():
        made = commands.run(project, profile=profile, budget=budget, how=how, command=_command())
    print_summary(made, as_json)


@model_options
def review(
    subject: Annotated[Path, typer.Argument(metavar="PROJECT|RECORD", help="Research project, or a record to review.")],
    options: ModelOptions,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PROJECT", help="Folder of the project, for a record.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Review a project: verdicts, comments, circles, ledger, and what would settle it as a plan that runs.

    Works without a language model. With one it adds prose, marked as such; only runs answer comments.
    """
    from rankwise.research import whole_commands as commands

    print_summary(commands.review(subject, options, output=output), as_json)


def status(project: Folder, as_json: Json = False) -> None:
    """Print which stages are done, which no longer fit what they were made from, and what comes next."""
    from rankwise.research import whole_commands as commands

    print_summary(commands.status(project), as_json)


@model_options
def start(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PROJECT", help="Folder of the research project.")],
    options: ModelOptions,
    topic: Annotated[str | None, typer.Argument(help="Research topic; not needed for a project that is there.")] = None,
    papers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prior papers: a record's list, papers.json or JSON lines.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=0, max=50, help="Refinements, at most (default: 2).")] = None,
    style: Annotated[
        str | None, typer.Option(help="`minimal`: the smallest change of one method; `free`: any proposal.")
    ] = None,
    budget: Budget = None,
    profile: Profile = None,
    base_model: Annotated[
        str | None, typer.Option(help="Base model where the design names none that is here (default: minilm).")
    ] = None,
    names: Map = None,
    plugin: Plugin = None,
    strict: Strict = False,
    engine: Engine = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """From papers to a review in one go. The same command again goes on where it was stopped."""
    from rankwise.experiments.spreading import How
    from rankwise.research import whole_commands as commands

    naming = commands.Naming(names or (), plugin or (), strict)
    how = How(engine, workers)
    how.check()
    given = commands.StartOptions(topic, papers, style, rounds, budget, base_model, profile, naming, how)
    with _interruptible():
        made = commands.start(output, given, options, _command())
    print_summary(made, as_json)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends with a word on what is kept, and the exit code shells use for it."""
    try:
        with interruptible():
            yield
    except KeyboardInterrupt:
        print("rankwise: interrupted; what was made is kept, the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None


def _command() -> str:
    from rankwise.experiments.redact import without_passwords

    return without_passwords(shlex.join(["rankwise", *sys.argv[1:]]))
