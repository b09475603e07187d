"""What `rankwise explain` looks at: a checkpoint that decides per input, its base model, and a split of a task."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel
from torch import nn

from rankwise.adapters.checkpoint import read_config, read_frame
from rankwise.adapters.export import Frame
from rankwise.errors import ConfigError, DataError, Finding, MissingPackageError, ModelError
from rankwise.experiments.adapter_base import base_name, check_same_base
from rankwise.experiments.adapter_load import load_adapter
from rankwise.experiments.adapter_source import Choice, Source, find_source
from rankwise.experiments.runner import inputs_of, load_task
from rankwise.experiments.schema import EvaluationConfig, RunConfig
from rankwise.registry import did_you_mean
from rankwise.tasks.base import TaskConfig, TaskData
from rankwise.tasks.data import stratified_sample
from rankwise.tasks.families import parse_task_spec
from rankwise.training.models import EMBEDDED, EMBEDDED_ORIGIN, BaseModel, load_base_model, resolve_model

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class ExplainOptions:
    """The options of `rankwise explain`, or of another `command` that looks at the same, as they were typed."""

    source: str
    choice: Choice = field(default_factory=Choice)
    output: Path | None = None
    split: str | None = None
    limit: int | None = None
    task: str | None = None
    text: str | None = None
    label: str | None = None
    validation: str | None = None
    model: str | None = None
    command: str = "explain"


@dataclass(frozen=True)
class Subject:
    """What is explained, but for the model.

    Args:
        source: the checkpoint.
        kind: its PEFT type.
        task: the loaded task.
        config: the task's config.
        split: name of the split.
        examples: the examples of it that are used.
        index: where they stand in the split.
        of: examples in the whole split.
        model: the base model's name.
        revision: of it.
        batch_size: examples per forward pass.
    """

    source: Source
    kind: str
    task: TaskData
    config: TaskConfig
    split: str
    examples: "Dataset"
    index: tuple[int, ...]
    of: int
    model: str
    revision: str | None
    batch_size: int

    @property
    def name(self) -> str:
        """What tables and pictures are headed with."""
        record = self.source.record
        return f"{record.method}, seed {record.seed}" if record else self.source.folder.resolve().name


def find_subject(options: ExplainOptions) -> Subject:
    """The checkpoint, the task and the split that the options mean; nothing heavy is loaded yet.

    Raises:
        ConfigError: several runs or none fit, a checkpoint without `--task`, options that do not go together, a split
            that the task does not have, an adapter that decides nothing per input.
        ModelError, OutputError, StoreError: no such checkpoint, a damaged run folder.
        DataError: the task cannot be loaded, or is not what the run was trained on.
    """
    source = find_source(options.source, options.choice)
    kind = deciding_type(source)
    config, batch_size = _task(source, options)
    data = load_task(config)
    if source.record is not None and options.task is None:
        _check_same(source, options)
    split, examples = _split(data, options.split)
    index = stratified_sample(examples["label"][:], options.limit or len(examples), data.kind).tolist()
    model, revision = _model(source, options)
    return Subject(
        source=source,
        kind=kind,
        task=data,
        config=config,
        split=split,
        examples=examples.select(index),
        index=tuple(index),
        of=len(examples),
        model=model,
        revision=revision,
        batch_size=batch_size,
    )


def deciding_type(source: Source) -> str:
    """The checkpoint's PEFT type.

    Raises:
        ConfigError: its adapter is the same for every input.
        ModelError: there is neither an adapter nor a model.
    """
    if source.conditional is not None:
        return source.conditional.TYPE
    if not source.is_adapter and not (source.folder / "config.json").is_file():
        read_config(source.folder)  # raises, and says what is there instead
    record = source.record
    what = f"run {record.run_id} (method {record.method})" if record else str(source.folder)
    static = "is a whole model" if not source.is_adapter else "has an adapter that is the same for every input"
    message = f"{what} {static}: it decides nothing per input, so there is nothing to explain or to distil"
    raise ConfigError(
        str(source.folder), [Finding("", f"{message}. `rankwise inspect` shows what a LoRA adapter holds")]
    )


def load_model(subject: Subject) -> tuple[PeftModel, BaseModel]:
    """The adapted model in inference mode, and its base with the tokenizer.

    Raises:
        ModelError: the base model cannot be loaded, or the checkpoint does not fit it or the task.
        DataError: the checkpoint is damaged, or its training diverged.
    """
    folder, data = subject.source.folder, subject.task
    frame = read_frame(folder)
    base = load_base_model(subject.model, num_labels=data.num_labels, kind=data.kind, seed=0, revision=subject.revision)
    _check_head(base.model, frame, subject)
    return load_adapter(folder, base.model, name=subject.model), base


def _task(source: Source, options: ExplainOptions) -> tuple[TaskConfig, int]:
    """The task's config and the batch size: the run's own, unless another is named."""
    own = {"--text": options.text, "--label": options.label, "--validation": options.validation}
    if options.task is not None:
        config = parse_task_spec(options.task, text=options.text, label=options.label, validation=options.validation)
        return config, EvaluationConfig().batch_size
    if source.record is None:
        message = f"{source.folder} is no run of a run folder, so nothing says what it was trained on; name it"
        raise ConfigError(options.command, [Finding("--task", message)])
    if given := [name for name, value in own.items() if value is not None]:
        findings = [Finding(name, "only goes with --task: the run has a task") for name in given]
        raise ConfigError(options.command, findings)
    run = RunConfig.model_validate(source.record.config)
    return run.task, run.evaluation.batch_size


def _check_same(source: Source, options: ExplainOptions) -> None:
    """The files behind the names must be those that the run was trained on."""
    assert source.record is not None
    known = source.record.environment.get("inputs")
    now = inputs_of(RunConfig.model_validate(source.record.config))
    changed = [what for what in now if isinstance(known, dict) and known.get(what) != now[what]]
    if "data" in changed:
        message = (
            f"the data of task '{source.record.task}' are not those that run {source.record.run_id} was trained on"
        )
        raise DataError(f"{message}; restore them, or name a task with --task to look at other data on purpose")
    if options.model is None:
        check_same_base(source.record)


def _split(data: TaskData, wanted: str | None) -> "tuple[str, Dataset]":
    splits = {**data.validation, "train": data.train}
    name = wanted or next(iter(data.validation))
    if name not in splits:
        message = (
            f"task '{data.name}' has no split '{name}'{did_you_mean(name, splits) or '.'} Splits: {', '.join(splits)}"
        )
        raise ConfigError("explain", [Finding("--split", message)])
    return name, splits[name]


def _model(source: Source, options: ExplainOptions) -> tuple[str, str | None]:
    """Name and revision of the base model."""
    if options.model is not None:
        return options.model, None
    if source.record is not None:
        config = RunConfig.model_validate(source.record.config).model
        return config.name, config.revision
    frame = read_frame(source.folder)
    name = base_name(frame)
    if name == EMBEDDED_ORIGIN:
        try:
            resolve_model(EMBEDDED)
        except MissingPackageError:
            return name, frame.revision
        return EMBEDDED, None
    return name, frame.revision


def _check_head(model: nn.Module, frame: Frame, subject: Subject) -> None:
    """The head must be one for this task."""
    own = model.state_dict()
    for name, value in frame.extra.items():
        if name not in own or own[name].shape != value.shape:
            there = f"it is {tuple(own[name].shape)}" if name in own else "there is none"
            raise ModelError(
                f"{subject.source.folder}: {name} is {tuple(value.shape)}, for task '{subject.task.name}' "
                f"({subject.task.num_labels} outputs) on '{subject.model}' {there}: was it trained for another task?"
            )
