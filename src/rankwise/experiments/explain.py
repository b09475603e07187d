"""`rankwise explain`: which inputs open which adapters, from plain values to plain values, like `commands`."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.adapters.conditional.decisions import Decisions, decisions_of
from rankwise.adapters.export import new_directory
from rankwise.errors import ConfigError, Finding
from rankwise.experiments.adapter_commands import Answer
from rankwise.experiments.explain_data import Observed, described
from rankwise.experiments.explain_plots import draw_activation, draw_ranks_used
from rankwise.experiments.explain_subject import ExplainOptions, Subject, find_subject, load_model
from rankwise.experiments.explain_tables import summary_lines, tables
from rankwise.experiments.explain_text import decisions_csv

FOLDER = "explain"
CONTENT = "explain.json"
"""What is written beside the pictures; see `explain_data.described` for its fields."""
DECISIONS = "decisions.csv"


def explain(options: ExplainOptions) -> Answer:
    """Run a checkpoint over a split, and say what its adapter decided.

    Raises:
        ConfigError: an option that makes no sense, an adapter that decides nothing per input; see `find_subject`.
        ModelError, DataError: a checkpoint, base model or task that cannot be had or do not go together.
        OutputError: the output folder exists and is not empty, or cannot be written; told before anything is computed.
    """
    if options.limit is not None and options.limit < 2:
        raise ConfigError("explain", [Finding("--limit", f"{options.limit} is too few examples; use at least 2")])
    subject = find_subject(options)
    output = options.output or default_output(subject)
    with new_directory(output) as folder:
        observed = observe(subject)
        data = described(subject, observed)
        title = f"{subject.name} · {data['task']}, {subject.split}, {data['examples']:,} examples"
        draw_activation(data, folder / "activation.png", title)
        draw_ranks_used(data, folder / "ranks_used.png", title)
        (folder / DECISIONS).write_text(decisions_csv(subject, observed), encoding="utf-8", newline="")
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / CONTENT).write_text(f"{text}\n", encoding="utf-8")
        names = sorted(path.name for path in folder.iterdir())
    files = [str(output / name) for name in names]
    return Answer((*summary_lines(data), *files), data | {"files": files}, tables(data))


def default_output(subject: Subject) -> Path:
    """In the run folder for a run, else in the present folder."""
    source = subject.source
    if source.record is not None:
        return source.folder.parent.parent / FOLDER / f"{source.record.run_id}-{subject.split}"
    return Path(FOLDER) / f"{source.folder.resolve().name}-{subject.split}"


def observe(subject: Subject) -> Observed:
    """Decisions and predictions for every example, in the order of the split.

    Raises:
        ModelError, DataError: see `load_model`; logits that are not finite raise `TrainingError`.
    """
    from transformers import DataCollatorWithPadding

    from rankwise.tasks.metrics import decode
    from rankwise.training.data import encode

    model, base = load_model(subject)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model.to(device)
    most = min(subject.config.max_length, base.max_tokens or subject.config.max_length)
    data = encode(subject.examples, base.tokenizer, most)
    order = np.argsort(data["length"][:], kind="stable")  # batches of one length need little padding
    rows = data.select(order).remove_columns(["labels", "length"])
    collate = DataCollatorWithPadding(base.tokenizer)
    logits: list[Tensor] = []

    def batches() -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(rows), subject.batch_size):
            chosen = rows.select(range(start, min(start + subject.batch_size, len(rows))))
            yield {name: value.to(device) for name, value in collate(list(chosen)).items()}

    with _progress(batches(), len(rows), subject.batch_size) as shown:
        decisions = decisions_of(model, shown, on_output=lambda out: logits.append(out.logits.float().cpu()))
    back = torch.from_numpy(np.argsort(order))
    caches = getattr(model.base_model, "caches", {})
    return Observed(
        decisions=Decisions(decisions.names, decisions.full, decisions.ranks[back], decisions.kind),
        predictions=decode(subject.task.kind, torch.cat(logits)[back].numpy()),
        labels=np.asarray(subject.examples["label"][:]),
        cache=caches[name].report() if (name := str(model.active_adapter)) in caches else None,
    )


@contextmanager
def _progress(batches: Iterable[Any], total: int, size: int) -> Iterator[Iterator[Any]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("examples", total=total)

        def shown() -> Iterator[Any]:
            for number, batch in enumerate(batches, start=1):
                yield batch
                progress.update(bar, completed=min(number * size, total))

        yield shown()
