"""`rankwise distil`: plain LoRA that has learned what an adapter that decides per input says.

The student starts where `rankwise export --form static` ends: every decision at its average over training examples.
Then its factors and its head learn the teacher's logits on the training split, without labels and with dropout off:

    loss = τ² KL(softmax(t / τ) ‖ softmax(s / τ))     (Hinton, Vinyals & Dean 2015, arXiv 1503.02531)

with t the teacher's logits and s the student's; the squared distance where the task is a regression. The evaluation
split is only looked at when all is done: for the table that says what was lost.
"""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from rankwise.adapters.conditional.block_distil import distance
from rankwise.adapters.export import export_adapter, lora_pairs, new_directory, write_lora
from rankwise.errors import ConfigError, Finding, TrainingError
from rankwise.experiments.adapter_base import labels_of
from rankwise.experiments.adapter_commands import Answer
from rankwise.experiments.adapter_conditional import ConditionalCheckpoint, average_pairs, read_conditional
from rankwise.experiments.adapter_load import quiet
from rankwise.experiments.adapter_source import Choice
from rankwise.experiments.card import CardFacts, Deciding, model_card
from rankwise.experiments.explain_subject import ExplainOptions, Subject, find_subject, load_model
from rankwise.training.data import LengthGroupedSampler, encode
from rankwise.training.models import BaseModel, load_base_model
from rankwise.training.preparation import same_random_state

if TYPE_CHECKING:
    from datasets import Dataset

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class DistilOptions:
    """The options of `rankwise distil` as they were typed.

    Args:
        source: checkpoint or run folder of the teacher.
        output: folder to write; must not exist, or be empty.
        choice: which run of a run folder.
        steps: optimizer steps; 0 is the static export.
        batch_size: examples per step.
        learning_rate: at the start; falls to 0 linearly.
        temperature: τ.
        seed: decides the order of the batches.
        task, text, label, validation, model: see `ExplainOptions`.
    """

    source: str
    output: Path
    choice: Choice = field(default_factory=Choice)
    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 5e-4
    temperature: float = 2.0
    seed: int = 0
    task: str | None = None
    text: str | None = None
    label: str | None = None
    validation: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Pupils:
    """Teacher and student on the same device, and what turns examples into batches."""

    teacher: PeftModel
    student: PeftModel
    base: BaseModel
    subject: Subject

    def batches(self, data: "Dataset", order: list[list[int]]) -> Iterator[Batch]:
        """Padded batches of an encoded split, without labels."""
        from transformers import DataCollatorWithPadding

        collate = DataCollatorWithPadding(self.base.tokenizer)
        device = next(self.student.parameters()).device
        rows = data.remove_columns(["labels", "length"])
        for chosen in order:
            yield {name: value.to(device) for name, value in collate(list(rows.select(chosen))).items()}

    def encoded(self, examples: "Dataset") -> "Dataset":
        """Token ids and lengths."""
        length = self.subject.config.max_length
        return encode(examples, self.base.tokenizer, min(length, self.base.max_tokens or length))


def distil(options: DistilOptions) -> Answer:
    """Teach a plain LoRA, write it, and say how near it came.

    Raises:
        ConfigError: options that make no sense, an adapter that decides nothing per input, averages never measured.
        ModelError, DataError: a checkpoint, base model or task that cannot be had or do not go together.
        OutputError: the output folder exists and is not empty, or cannot be written; told before anything is computed.
        TrainingError: the student's loss is not finite.
    """
    _check(options)
    subject = find_subject(_as_explained(options))
    checkpoint = read_conditional(subject.source)
    with new_directory(options.output) as folder:
        pupils = _pupils(subject, checkpoint)
        measured = _Measured(pupils, options.temperature)
        before = measured.of_student()
        with same_random_state():
            _teach(pupils, options)
        after = measured.of_student()
        data = {"teacher": measured.teacher, "average": before, "distilled": after, "steps": options.steps}
        card = _card(checkpoint, subject, pupils, options)
        written = export_adapter(pupils.student, lora_pairs(pupils.student), folder / "lora")
        for path in written.iterdir():
            path.rename(folder / path.name)
        written.rmdir()
        (folder / "README.md").write_text(model_card(card), encoding="utf-8")
    whole = {"output": str(options.output), "task": subject.task.name, "split": subject.split} | data
    return Answer((*_lines(whole, measured.metric), str(options.output)), whole)


def _check(options: DistilOptions) -> None:
    findings = [
        Finding(f"--{name.replace('_', '-')}", f"{value} is not possible; it must be {allowed}")
        for name, value, right, allowed in (
            ("steps", options.steps, options.steps >= 0, "0 or more"),
            ("batch_size", options.batch_size, options.batch_size >= 1, "1 or more"),
            (
                "learning_rate",
                options.learning_rate,
                0 < options.learning_rate <= 1,
                "above 0 and at most 1",
            ),
            ("temperature", options.temperature, 0 < options.temperature < math.inf, "above 0"),
        )
        if not right
    ]
    if findings:
        raise ConfigError("distil", findings)


def _as_explained(options: DistilOptions) -> ExplainOptions:
    return ExplainOptions(
        source=options.source,
        choice=options.choice,
        task=options.task,
        text=options.text,
        label=options.label,
        validation=options.validation,
        model=options.model,
        command="distil",
    )


def _pupils(subject: Subject, checkpoint: ConditionalCheckpoint) -> Pupils:
    """The teacher as it was saved, and plain LoRA with every decision at its average."""
    pairs = average_pairs(checkpoint)
    teacher, base = load_model(subject)
    own = load_base_model(
        subject.model, num_labels=subject.task.num_labels, kind=subject.task.kind, seed=0, revision=subject.revision
    )
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = write_lora(checkpoint.frame, pairs, Path(folder) / "start")
        student: PeftModel = PeftModel.from_pretrained(own.model, str(path), is_trainable=True)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    return Pupils(teacher.to(device).eval(), student.to(device).eval(), base, subject)


def _teach(pupils: Pupils, options: DistilOptions) -> None:
    """AdamW on the student's factors and head; dropout stays off, so that only the order of batches is random."""
    data = pupils.encoded(pupils.subject.task.train)
    trained = [p for p in pupils.student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(1, options.steps))
    order = _order(list(data["length"][:]), options)
    with _bar(options.steps) as advance:
        for step, batch in enumerate(pupils.batches(data, order), start=1):
            with torch.no_grad():
                taught = pupils.teacher(**batch).logits
            loss = distance(pupils.student(**batch).logits, taught, options.temperature)
            if not math.isfinite(value := loss.item()):
                raise TrainingError(f"step {step}: the distance to the teacher is {value}; lower --learning-rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            advance()


def _order(lengths: list[int], options: DistilOptions) -> list[list[int]]:
    """Indices of the examples of each step, in batches of similar length."""
    sampler = LengthGroupedSampler(lengths, options.batch_size, options.seed)
    found: list[list[int]] = []
    while len(found) < options.steps:
        sampler.set_epoch(len(found))
        indices = list(sampler)
        found += [indices[i : i + options.batch_size] for i in range(0, len(indices), options.batch_size)]
    return found[: options.steps]


class _Measured:
    """The evaluation split under both models: the task's metric, and the distance of their logits."""

    def __init__(self, pupils: Pupils, temperature: float) -> None:
        self.pupils, self.temperature = pupils, temperature
        self.data = pupils.encoded(pupils.subject.examples)
        order = np.argsort(self.data["length"][:], kind="stable").tolist()
        size = pupils.subject.batch_size
        self.order = [order[i : i + size] for i in range(0, len(order), size)]
        self.places = torch.tensor(order)
        self.metric = pupils.subject.task.metrics[0]
        self.taught = self._logits(pupils.teacher)
        self.teacher = self._value(self.taught)

    def of_student(self) -> dict[str, Any]:
        """Metric and distance now."""
        logits = self._logits(self.pupils.student)
        return self._value(logits) | {"distance": float(distance(logits, self.taught, self.temperature))}

    @torch.no_grad()
    def _logits(self, model: PeftModel) -> Tensor:
        found = [model(**batch).logits.float().cpu() for batch in self.pupils.batches(self.data, self.order)]
        return torch.cat(found)[torch.argsort(self.places)]

    def _value(self, logits: Tensor) -> dict[str, Any]:
        from rankwise.tasks.metrics import decode, evaluate

        subject = self.pupils.subject
        predictions = decode(subject.task.kind, logits.numpy())
        value = evaluate([self.metric], predictions, np.asarray(subject.examples["label"][:]))[self.metric]
        return {"metric": self.metric, "value": value.value, "se": value.se, "n": value.n}


def _card(checkpoint: ConditionalCheckpoint, subject: Subject, pupils: Pupils, options: DistilOptions) -> CardFacts:
    pairs = lora_pairs(pupils.student)
    deciding = Deciding(
        checkpoint.kind, checkpoint.decides_on, checkpoint.usage, checkpoint.threshold, checkpoint.beside
    )
    return CardFacts(
        form="static",
        kind=checkpoint.kind,
        base=options.model or checkpoint.frame.base_model,
        task_type=checkpoint.frame.task_type,
        labels=labels_of(checkpoint.frame),
        ranks={name: pair.rank for name, pair in pairs.items()},
        parameters=sum(pair.rank * pair.cost for pair in pairs.values()),
        record=subject.source.record,
        deciding=deciding,
        taught=f"It then learned the logits of that adapter for {options.steps:,} steps of {options.batch_size} "
        "training examples",
    )


def _lines(data: dict[str, Any], metric: str) -> list[str]:
    rows = (("decides per input", "teacher"), ("decisions at their averages", "average"), ("distilled", "distilled"))
    found = []
    for name, key in rows:
        near = f", {data[key]['distance']:.4g} from the teacher" if "distance" in data[key] else ""
        found.append(f"{name:>28}: {metric} {data[key]['value']:.4f} ± {data[key]['se']:.4f}{near}")
    return [*found, f"on {data['teacher']['n']:,} examples of {data['task']}, {data['split']}"]


@contextmanager
def _bar(steps: int) -> Iterator[Any]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("steps", total=steps)
        yield lambda: progress.advance(task)
