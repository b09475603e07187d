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
from rankwise.cli_options import Json, Output, StorePath, print_json, print_summary, show
from rankwise.cli_report import app as report_app
from rankwise.cli_research import app as research_app
from rankwise.cli_scale import app as scale_app
from rankwise.cli_sweep import app as sweep_app
from rankwise.errors import ConfigError, Finding, RankwiseError
from rankwise.experiments.processes import only_the_first_speaks
from rankwise.experiments.redact import without_passwords
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

plan_app = typer.Typer(no_args_is_help=True, help="Check plans: can their runs answer their claims?")


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
    context: typer.Context,
    plan: Annotated[
        Path | None,
        typer.Argument(help="Plan (YAML): arms, tasks, budgets, seeds and claims. None: the options below."),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Profile of the plan: smoke, pilot or full.")] = None,
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
    engine: Annotated[
        str | None,
        typer.Option(
            help="How to spread runs: local (processes), ray, slurm or queue; none: one after the other, here."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time (--engine).")] = None,
    cpus: Annotated[int, typer.Option(min=1, help="Threads per run (--engine).")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs per run, 0.5: two runs share one (--engine).")] = 0.0,
    minutes: Annotated[float | None, typer.Option(help="A run that takes longer is ended (--engine).")] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a run is begun again if its worker dies.")] = 2,
    address: Annotated[
        str | None, typer.Option(help="The engine's own: a Ray cluster, Slurm settings, a queue's URL or file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run nothing: print the plan's schedule and what it would take.")
    ] = False,
    price: Annotated[float | None, typer.Option(min=0, help="Price of a worker's hour, for --dry-run.")] = None,
    as_json: Json = False,
) -> None:
    """Compare methods at the same number of adapter parameters, with paired seeds.

    Trains every method with every seed, prints a table with error bars, and writes checkpoints, plots, results.json,
    plan.yaml and the results store into the run folder. With a plan, does the plan's runs and judges its claims. The
    same command again does only what is missing.
    """
    from rankwise.experiments import commands
    from rankwise.experiments.spreading import How

    how = How(engine, workers, cpus, gpus, minutes, retries, address)
    how.check(dry_run=dry_run)
    if plan is not None:
        _only_for_plans(context)
        from rankwise.experiments import plan_commands

        if dry_run:
            asked = plan_commands.dry_run(plan, profile=profile, output=output, store=store, how=how, price=price)
            print_summary(asked, as_json)
            return
        with _interruptible():
            judged = plan_commands.compare_plan(
                plan, profile=profile, output=output, store=store, command=_command(), how=how
            )
        show(judged, as_json)
        return
    for option, given in (("--profile", profile), ("--dry-run", dry_run or None)):
        if given is not None:
            raise ConfigError("compare", [Finding(option, "is for a plan; name the plan's file first")])
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
            how=how,
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


@app.command(epilog="Example: rankwise verdict runs/settle-adalora-smoke")
def verdict(
    plan: Annotated[Path, typer.Argument(help="Run folder of `compare PLAN`, or a plan's file.")],
    profile: Annotated[str | None, typer.Option(help="Profile of the plan's file.")] = None,
    output: Output = None,
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Judge the claims of a plan from its results store: nothing is run.

    The claims are those of the plan when its first run began. What was changed since is judged too, as post hoc.
    """
    from rankwise.experiments.plan_commands import verdict as judge

    show(judge(plan, profile=profile, output=output, store=store), as_json)


@plan_app.command("check", epilog="Example: rankwise plan check plans/settle-adalora.yaml --profile pilot")
def plan_check(
    plan: Annotated[Path, typer.Argument(help="Plan (YAML).")],
    profile: Annotated[str | None, typer.Option(help="Profile: smoke, pilot or full.")] = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Time a few steps, to say what the plan will cost here.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Print a plan's runs, what is wrong with it and what it will cost; exit code 2 if it cannot answer its claims."""
    from rankwise.experiments.plan_check import check_plan_file

    checked = check_plan_file(plan, profile, probe=probe)
    print_summary(checked, as_json)


app.add_typer(sweep_app)
app.add_typer(adapters_app)
app.add_typer(report_app)
app.add_typer(scale_app)
app.add_typer(plan_app, name="plan")
app.add_typer(research_app, name="research")
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
    print_summary(summary, as_json)


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
    print_summary(checked, as_json)


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
            from rankwise.research.verbatim import visible  # what is wrong with a file repeats words of it

            print(f"rankwise: {visible(str(error))}", file=sys.stderr)
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


def _only_for_plans(context: typer.Context) -> None:
    """A plan says all of this itself."""
    own = ("plan", "profile", "output", "store", "as_json", "dry_run", "price")
    spread = ("engine", "workers", "cpus", "gpus", "minutes", "retries", "address")
    given = [
        name
        for name in context.params
        if name not in (*own, *spread) and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        message = "is for a comparison without a plan; write it into the plan"
        raise ConfigError("compare", [Finding(f"--{name.replace('_', '-')}", message) for name in given])


def _command() -> str:
    """What was typed; it goes into files, so without passwords."""
    return without_passwords(shlex.join(["rankwise", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
