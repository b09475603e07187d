"""Commands on checkpoints: export, inspect, truncate, cost, explain. No logic lives here."""

from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli_options import (
    BaseModel,
    Checkpoint,
    Json,
    NewFolder,
    OtherTask,
    RunId,
    RunMethod,
    RunSeed,
    TaskLabel,
    TaskText,
    TaskValidation,
    print_answer,
)

app = typer.Typer()


@app.command(epilog="Example: rankwise export runs/rte --method glora --seed 0 --form uniform --output exports/rte")
def export(
    run: Checkpoint,
    output: NewFolder,
    form: Annotated[
        str,
        typer.Option(
            help="`compact`: LoRA, each module at its rank; `uniform`: LoRA padded to one rank, for servers; `merged`: "
            "the whole model; `static`: plain LoRA of an adapter that decides per input."
        ),
    ] = "compact",
    run_id: RunId = None,
    method: RunMethod = None,
    seed: RunSeed = None,
    model: BaseModel = None,
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
    print_answer(commands.export(commands.ExportOptions(run, form, output, choice, model, push, public)), as_json)


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

    print_answer(commands.inspect(checkpoint, Choice(run_id, method, seed), plot), as_json)


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
    print_answer(commands.truncate(checkpoint, choice, output, keep=keep, budget=budget), as_json)


@app.command(epilog="Example: rankwise cost runs/rte --method cogalora --seed 0 --batch-sizes 1,8")
def cost(
    checkpoint: Checkpoint,
    run_id: RunId = None,
    method: RunMethod = None,
    seed: RunSeed = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Texts to measure on, as in `compare` (default: the run's evaluation data, else `docstrings`)."
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Text column(s) of your own data, two with a comma.")] = None,
    label: Annotated[str | None, typer.Option(help="Label column of your own data.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Number of texts.")] = 64,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes that latency is measured at, with commas.")] = "1,8,32",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which all variants take turns.")] = 20,
    model: BaseModel = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw accuracy against latency into this PNG or SVG file; runs only.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count and measure what inference costs: parameters, FLOPs as executed, latency, memory.

    Latency is compared with the frozen base model and with LoRA of the same ranks, unmerged and merged. A run folder
    without a choice gives one row for each of its checkpoints, without memory.
    """
    from rankwise.experiments import cost_commands as commands
    from rankwise.experiments.adapter_source import Choice
    from rankwise.experiments.cost_inputs import Wanted

    wanted = Wanted(task, text, label, examples)
    options = commands.CostOptions(checkpoint, Choice(run_id, method, seed), model, wanted, batch_sizes, rounds, plot)
    print_answer(commands.cost(options), as_json)


@app.command(epilog="Example: rankwise explain runs/rte --method cogalora --seed 0")
def explain(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Run folder of `compare` or `run`, a checkpoint in it, or any checkpoint of a method that decides per "
            "input (with --task).",
        ),
    ],
    split: Annotated[
        str | None, typer.Option(help="Split of the task: `train`, or one it is evaluated on (default: the first).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use only this many examples (a label-stratified sample, always the same).")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to write; must not exist, or be empty (default: explain/ in the run folder)."
        ),
    ] = None,
    run_id: RunId = None,
    method: RunMethod = None,
    seed: RunSeed = None,
    task: OtherTask = None,
    text: TaskText = None,
    label: TaskLabel = None,
    validation: TaskValidation = None,
    model: BaseModel = None,
    as_json: Json = False,
) -> None:
    """Show which inputs open which adapters, for methods that decide per input (`cogalora` and its like).

    Runs a split through the checkpoint, prints how often every module is open, for which classes, and what that says
    about the class beyond chance, and writes pictures, explain.json and decisions.csv. Existing files are never
    overwritten.
    """
    from rankwise.experiments.adapter_source import Choice
    from rankwise.experiments.explain import explain as answer
    from rankwise.experiments.explain_subject import ExplainOptions

    choice = Choice(run_id, method, seed)
    options = ExplainOptions(checkpoint, choice, output, split, limit, task, text, label, validation, model)
    print_answer(answer(options), as_json)


@app.command(epilog="Example: rankwise distil runs/rte --method cogalora --seed 0 --output exports/plain")
def distil(
    checkpoint: Annotated[
        str, typer.Argument(metavar="RUN", help="As in `explain`: something that decides per input, the teacher.")
    ],
    output: NewFolder,
    steps: Annotated[int, typer.Option(help="Optimizer steps; 0 writes what `export --form static` does.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Training examples per step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="At the start; it falls to 0.")] = 5e-4,
    temperature: Annotated[float, typer.Option(help="Softens the teacher's probabilities.")] = 2.0,
    run_id: RunId = None,
    method: RunMethod = None,
    seed: RunSeed = None,
    task: OtherTask = None,
    text: TaskText = None,
    label: TaskLabel = None,
    validation: TaskValidation = None,
    model: BaseModel = None,
    as_json: Json = False,
) -> None:
    """Teach a plain LoRA what an adapter that decides per input says, for servers that know nothing else.

    Starts from decisions at their averages and learns the teacher's logits on the training split, without labels.
    Prints the metric of all three on the evaluation split, which nothing is decided on.
    """
    from rankwise.experiments.adapter_source import Choice
    from rankwise.experiments.distil import DistilOptions
    from rankwise.experiments.distil import distil as answer

    choice = Choice(run_id, method, seed)
    how = DistilOptions(
        checkpoint,
        output,
        choice,
        steps,
        batch_size,
        learning_rate,
        temperature,
        0,
        task,
        text,
        label,
        validation,
        model,
    )
    print_answer(answer(how), as_json)
