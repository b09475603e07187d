"""The command line: parse, call, print. No logic lives here, and nothing heavy is imported before it is needed."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from rankwise import __version__
from rankwise.cli_adapters import app as adapters_app
from rankwise.cli_options import Json, Output, StorePath, print_json, show
from rankwise.errors import RankwiseError
from rankwise.experiments.processes import only_the_first_speaks
from rankwise.interrupts import interruptible

app = typer.Typer(
    name="rankwise",
    help="Adaptive-budget LoRA fine-tuning, measured honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(no_args_is_help=True, help="Check run configs, or import them from a research record.")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"rankwise {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Adaptive-budget LoRA fine-tuning, measured honestly."""


@app.command(
    epilog="Example: rankwise compare --methods lora,glora --task glue/rte --budget 0.5% --seeds 5 --output runs/rte"
)
def compare(
    methods: Annotated[
        str, typer.Option(help="Methods, with commas; `rankwise list` names them.")
    ] = "lora,peft_adalora,glora",
    task: Annotated[
        str,
        typer.Option(
            help="`docstrings`, `glue/NAME`, a CSV, TSV, JSONL or Parquet file, or a Hugging Face dataset id."
        ),
    ] = "docstrings",
    model: Annotated[str, typer.Option(help="`minilm`, a Hugging Face id or a local folder.")] = "minilm",
    budget: Annotated[
        str,
        typer.Option(help="Adapter parameters: `0.5%` of the base model, `r=4` (as uniform LoRA of rank 4), `200k`."),
    ] = "r=4",
    seeds: Annotated[
        str,
        typer.Option(
            help="Number of paired seeds (`5`), or the seeds themselves (`0,5,7`); default: 3, or 2 with --quick."
        ),
    ] = "",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps per run (default: 150; 20 with --quick).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per optimizer step.")] = 8,
    learning_rate: Annotated[
        float, typer.Option(min=1e-12, help="Peak learning rate, the same for every method.")
    ] = 3e-3,
    output: Output = None,
    store: StorePath = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A short run that shows how it works; its numbers mean little.")
    ] = False,
    text: Annotated[str | None, typer.Option(help="Text column(s) of your own data, two with a comma.")] = None,
    label: Annotated[str | None, typer.Option(help="Label column of your own data.")] = None,
    validation: Annotated[
        str | None, typer.Option(help="Validation file of your own data (default: a split of --task).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare methods at the same number of adapter parameters, with paired seeds.

    Trains every method with every seed, prints a table with error bars, and writes checkpoints, plots, results.json
    and the results store into the run folder. The same command again does only what is missing.
    """
    from rankwise.experiments import commands

    with _interruptible():
        made = commands.compare(
            commands.CompareOptions(
                methods=methods,
                task=task,
                model=model,
                budget=budget,
                seeds=seeds,
                steps=steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                quick=quick,
                text=text,
                label=label,
                validation=validation,
            ),
            output=output,
            store=store,
            command=_command(),
        )
    show(made, as_json)


@app.command(epilog="Example: rankwise run my-run.yaml training.max_steps=100 seed=3")
def run(
    file: Annotated[Path, typer.Argument(help="Run config (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Values to change: key=value …")] = None,
    output: Output = None,
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Do one run, described by a config file."""
    from rankwise.experiments import commands

    with _interruptible():
        made = commands.run(file, overrides or [], output=output, store=store, command=_command())
    show(made, as_json)


@app.command(epilog="Example: rankwise report runs/rte")
def report(
    folder: Annotated[Path, typer.Argument(help="Run folder of `compare` or `run`.")],
    store: StorePath = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Json = False,
) -> None:
    """Print the table of a run folder again and rebuild its plots and results.json from the store."""
    from rankwise.experiments import commands

    made = commands.report(folder, store=store)
    if markdown:
        from rankwise.experiments.markdown import results_markdown

        typer.echo(results_markdown(made.content))
        return
    show(made, as_json)


app.add_typer(adapters_app)
app.add_typer(config_app, name="config")


@app.command("list", epilog="Example: rankwise list")
def list_names(as_json: Json = False) -> None:
    """List methods, tasks, signals and metrics."""
    from rankwise.experiments import commands

    names = commands.known_names()
    if as_json:
        print_json(names)
        return
    for kind, entries in names.items():
        typer.echo(f"{kind}:")
        for name, what in entries.items():
            typer.echo(f"  {name:<22}{what}")


@app.command(epilog="Example: rankwise task docstrings")
def task(
    name: Annotated[str, typer.Argument(help="Task, as in `compare --task`.")],
    text: Annotated[str | None, typer.Option(help="Text column(s) of your own data, two with a comma.")] = None,
    label: Annotated[str | None, typer.Option(help="Label column of your own data.")] = None,
    validation: Annotated[str | None, typer.Option(help="Validation file of your own data.")] = None,
    as_json: Json = False,
) -> None:
    """Load a task and print its statistics: examples per class and split, lengths, samples."""
    from rankwise.experiments import commands

    summary = commands.task_summary(name, text=text, label=label, validation=validation)
    print_json(summary.data) if as_json else typer.echo(summary.text)


@config_app.command("check", epilog="Example: rankwise config check my-run.yaml training.epochs=2")
def config_check(
    file: Annotated[Path, typer.Argument(help="Run config (YAML), ours or in the dialect of a research record.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="More files to check together, and values to change.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a config's canonical form and everything that is wrong or odd about it; exit code 2 if it cannot run."""
    from rankwise.experiments import commands

    checked = commands.check_configs([file], overrides or [])
    print_json(checked.data) if as_json else typer.echo(checked.text)
    if checked.failed:
        raise typer.Exit(2)


@config_app.command("import", epilog="Example: rankwise config import record.txt --output configs")
def config_import(
    record: Annotated[Path, typer.Argument(help="Research record whose answer holds run configs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the YAML files.")] = Path(),
    as_json: Json = False,
) -> None:
    """Save the run configs of a research record as YAML files, as they stand."""
    from rankwise.experiments import commands

    paths = commands.import_configs(record, output)
    print_json([str(p) for p in paths]) if as_json else typer.echo("\n".join(map(str, paths)))


def main() -> None:
    """Entry point: errors raised on purpose become one message on standard error and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with only_the_first_speaks():
        try:
            app()
        except RankwiseError as error:
            print(f"rankwise: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except BrokenPipeError:
            raise SystemExit(141) from None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C while runs go on ends with a word on what is kept, and the exit code shells use for it."""
    try:
        with interruptible():
            yield
    except KeyboardInterrupt:
        print("rankwise: interrupted; finished runs are kept, the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None


def _command() -> str:
    return shlex.join(["rankwise", *sys.argv[1:]])


if __name__ == "__main__":
    main()
