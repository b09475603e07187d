"""The command line: parse, call, print. No logic lives here, and nothing heavy is imported before it is needed."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise import __version__
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
app.add_typer(config_app, name="config")

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
    _show(made, as_json)


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
    _show(made, as_json)


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
    _show(made, as_json)


@app.command(epilog="Example: rankwise export runs/rte --method glora --seed 0 --form uniform --output exports/rte")
def export(
    run: Checkpoint,
    output: NewFolder,
    form: Annotated[
        str,
        typer.Option(
            help="`compact`: LoRA, each module at its rank; `uniform`: LoRA padded to one rank, for servers; `merged`: "
            "the whole model."
        ),
    ] = "compact",
    run_id: RunId = None,
    method: RunMethod = None,
    seed: RunSeed = None,
    model: Annotated[
        str | None, typer.Option(help="Base model, if the checkpoint does not name it, or by another name.")
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="Put it on the Hugging Face hub too, as a private repository."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: let everyone see it.")] = False,
    as_json: Json = False,
) -> None:
    """Write a trained adapter as a checkpoint that PEFT, Transformers and the usual servers load, with a model card.

    The scaling is folded into the weights, so nothing depends on how a loader reads rank and alpha patterns. Existing
    files are never overwritten.
    """
    from rankwise.experiments import adapter_commands as commands
    from rankwise.experiments.adapter_source import Choice

    choice = Choice(run_id, method, seed)
    _answer(commands.export(commands.ExportOptions(run, form, output, choice, model, push, public)), as_json)


@app.command(epilog="Example: rankwise inspect runs/rte --method glora --seed 0 --plot ranks.svg")
def inspect(
    checkpoint: Checkpoint,
    run_id: RunId = None,
    method: RunMethod = None,
    seed: RunSeed = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the rank heat map and the singular values into this PNG or SVG file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what an adapter checkpoint holds: rank, scaling and singular values per module, and who would misread it."""
    from rankwise.experiments import adapter_commands as commands
    from rankwise.experiments.adapter_source import Choice

    _answer(commands.inspect(checkpoint, Choice(run_id, method, seed), plot), as_json)


@app.command(epilog="Example: rankwise truncate my-adapter --keep 40% --output my-smaller-adapter")
def truncate(
    checkpoint: Checkpoint,
    output: NewFolder,
    keep: Annotated[str | None, typer.Option(help="Share of the adapter's parameters that is kept (`40%`).")] = None,
    budget: Annotated[
        str | None, typer.Option(help="What is kept instead: `200k` parameters, `r=2` everywhere's worth, `24 ranks`.")
    ] = None,
    run_id: RunId = None,
    method: RunMethod = None,
    seed: RunSeed = None,
    as_json: Json = False,
) -> None:
    """Cut any LoRA or AdaLoRA checkpoint down by one singular-value threshold over all its modules."""
    from rankwise.experiments import adapter_commands as commands
    from rankwise.experiments.adapter_source import Choice

    choice = Choice(run_id, method, seed)
    _answer(commands.truncate(checkpoint, choice, output, keep=keep, budget=budget), as_json)


@app.command("list", epilog="Example: rankwise list")
def list_names(as_json: Json = False) -> None:
    """List methods, tasks, signals and metrics."""
    from rankwise.experiments import commands

    names = commands.known_names()
    if as_json:
        _print_json(names)
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
    _print_json(summary.data) if as_json else typer.echo(summary.text)


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
    _print_json(checked.data) if as_json else typer.echo(checked.text)
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
    _print_json([str(p) for p in paths]) if as_json else typer.echo("\n".join(map(str, paths)))


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


def _print_json(value: Any) -> None:  # noqa: ANN401 - anything JSON can say
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _show(report: Any, as_json: bool) -> None:  # noqa: ANN401 - a commands.Shown or None, imported lazily
    if report is None:
        return
    if as_json:
        _print_json(report.content)
        return
    from rich.console import Console

    console = Console()
    console.print(report.table)
    for line in report.lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _answer(answer: Any, as_json: bool) -> None:  # noqa: ANN401 - an adapter_commands.Answer, imported lazily
    if as_json:
        _print_json(answer.data)
        return
    if answer.pictures:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDE)
        for picture in answer.pictures:
            console.print(picture, "")
    typer.echo("\n".join(answer.lines))


if __name__ == "__main__":
    main()
