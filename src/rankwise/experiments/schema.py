"""The run config: one run, typed and frozen.

`RunConfig` is the only definition, default, check and description of every field; `docs/config.md` is generated from
it. The task and the method bring their own config classes, chosen by `name` through the registries, so a new method
needs no line here. Nothing in this module imports torch: the method classes are looked up when a config is validated.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from rankwise.errors import UnknownNameError
from rankwise.registry import Registry, did_you_mean
from rankwise.tasks import TASKS, TaskConfig, canonical_task
from rankwise.tasks.metrics import METRICS, canonical_metric
from rankwise.tasks.readers import is_file_name, is_hub_id

if TYPE_CHECKING:
    from rankwise.adapters.contract import MethodConfig

Scalar: TypeAlias = bool | int | float | str
Plain: TypeAlias = Any
"""A value of plain data as YAML and JSON have them; nothing about it is known before it is validated."""


def task_registry() -> Registry[type[TaskConfig]]:
    """Every task, registered."""
    return TASKS


def method_registry() -> "Registry[type[MethodConfig]]":
    """Every method, registered. Imports torch, hence a function."""
    import rankwise.adapters.methods  # noqa: F401
    from rankwise.adapters.contract import METHODS

    return METHODS


def _chosen(value: object, registry: "Registry[Any]", default: str) -> Plain:
    """`value` as the config class that its `name` chooses; a plain word is short for `{name: word}`.

    Raises:
        ValueError: no such name. (Errors inside the section keep their own paths.)
    """
    if isinstance(value, BaseModel):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a name or a mapping with `name`, got {value!r}")
    name = value.get("name", default)
    try:
        chosen = registry[str(name)]
    except UnknownNameError as error:
        raise ValueError(str(error)) from None
    return chosen.model_validate({**value, "name": name})


def task_section(value: object) -> object:
    """A task as others write it in our words: `GLUE MNLI` is `glue/mnli`, a file's name or hub id is that table."""
    if isinstance(value, str):
        own = canonical_task(value)
        mine = own is None and not value.startswith("glue") and (is_file_name(value) or is_hub_id(value))
        return {"name": "files", "path": value} if mine else {"name": own or value}
    if isinstance(value, Mapping) and isinstance(name := value.get("name"), str):
        return {**value, "name": canonical_task(name) or name}
    return value


def task_config(value: object) -> Plain:
    """A task's section, or its name, as its config class.

    Raises:
        ValueError: no such task, or a section that is wrong.
    """
    return _chosen(task_section(value), TASKS, DEFAULT_TASK)


def _method(value: object) -> Plain:
    if isinstance(value, BaseModel):  # without a look at the registry, which imports torch
        return value
    return _chosen(value, method_registry(), DEFAULT_METHOD)


def model_section(value: object) -> object:
    """A plain word is short for a base model's name."""
    return {"name": value} if isinstance(value, str) else value


def _steps(value: int | float) -> int | float:
    """0 or more steps (int), or a fraction of training (float below 1); 12000.0 is 12000."""
    if isinstance(value, float) and value.is_integer() and value != 1:
        value = int(value)
    if value < 0 or not math.isfinite(value) or (isinstance(value, float) and value >= 1):
        raise ValueError("must be a number of steps (whole, 0 or more) or a fraction of training (0 to below 1)")
    return value


def _metric(name: str) -> str:
    """Our name of a metric that others may write otherwise (`matthews_corrcoef`).

    Raises:
        ValueError: there is no such metric.
    """
    found = canonical_metric(name)
    if found is None:
        raise ValueError(METRICS.explain(name))
    return found


DEFAULT_TASK = "docstrings"
DEFAULT_METHOD = "lora"

Steps = Annotated[int | float, AfterValidator(_steps)]
if TYPE_CHECKING:
    AnyMethod: TypeAlias = MethodConfig
else:
    AnyMethod = Annotated[Any, BeforeValidator(_method), PlainSerializer(lambda method: method.model_dump(mode="json"))]


class Section(BaseModel):
    """What every section of a file is: frozen, finite numbers, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """The base model."""

    name: str = Field(
        default="minilm",
        min_length=1,
        description="`minilm` (carried by a package, needs no network), a Hugging Face id, or a local folder",
    )
    revision: str | None = Field(default=None, description="commit, branch or tag of the Hugging Face id")


class TrainingConfig(Section):
    """How long and how to train."""

    max_steps: int | None = Field(
        default=300, ge=1, description="optimizer steps; exactly one of max_steps and epochs is set"
    )
    epochs: float | None = Field(
        default=None, gt=0, description="passes over the training examples, instead of max_steps"
    )
    batch_size: int = Field(
        default=16,
        ge=1,
        description="examples per forward pass, over all processes together: under `torchrun` each takes an equal "
        "part; without dropout a config is the same run anywhere, with it each process draws its own masks",
    )
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="forward passes per optimizer step")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay")
    warmup: Steps = Field(
        default=0.06, description="learning-rate warm-up: steps (whole number) or a fraction of training (0 to below 1)"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="what the learning rate does after its warm-up"
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: slower, less memory")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="number format of the forward pass")
    save_every: int | None = Field(
        default=None, ge=1, description="steps between two saved states; none: only the result"
    )
    report_to: tuple[str, ...] = Field(
        default=(),
        description="trackers to log to, by the Trainer's names: tensorboard, mlflow, wandb, trackio, …; their "
        "packages have to be installed, and their own settings (environment variables) hold. No run changes by it",
    )

    @model_validator(mode="before")
    @classmethod
    def _epochs_replace_the_default(cls, values: object) -> object:
        if isinstance(values, Mapping) and values.get("epochs") is not None and "max_steps" not in values:
            return {**values, "max_steps": None}
        return values

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.max_steps is None) == (self.epochs is None):
            both = (
                f"both max_steps ({self.max_steps}) and epochs ({self.epochs:g}) are" if self.epochs else "neither is"
            )
            raise ValueError(f"exactly one of max_steps and epochs must be set, {both}; set the other to null")
        return self


class EvaluationConfig(Section):
    """What is measured, and on which examples: the validation examples, or some held out of the training examples."""

    metrics: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="metrics to report, the deciding one first; none: the task's own"
    )
    batch_size: int = Field(default=64, ge=1, description="examples per forward pass, over all processes together")
    holdout: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of the training examples that is taken away from training and measured on instead of the "
        "validation examples: for decisions, such as trials of a sweep; none: nothing is held out",
    )
    holdout_seed: int = Field(
        default=0, ge=0, lt=2**32, description="decides which training examples are held out, the same for every run"
    )

    premise: bool = Field(
        default=False,
        description="whether to measure how well scores foretell what modules are worth: the loss without each one's "
        "adapter, a pass over evaluation examples per module",
    )

    @field_validator("metrics")
    @classmethod
    def _our_names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if names is None else tuple(dict.fromkeys(map(_metric, names)))


class Distribution(Section):
    """Where one searched value comes from."""

    type: Literal["float", "int", "categorical"] = Field(description="kind of value")
    low: int | float | None = Field(default=None, description="smallest value (float, int)")
    high: int | float | None = Field(default=None, description="largest value (float, int)")
    log: bool = Field(default=False, description="search on a logarithmic scale (float, int)")
    choices: tuple[Scalar, ...] | None = Field(
        default=None, min_length=1, description="the values to try (categorical)"
    )

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if self.type == "categorical":
            if self.choices is None or self.low is not None or self.high is not None or self.log:
                raise ValueError("a categorical distribution has `choices` and neither low, high nor log")
            return self
        if self.choices is not None or self.low is None or self.high is None:
            raise ValueError(f"a distribution of type {self.type} has `low` and `high` and no `choices`")
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low:g}) must be above 0 on a logarithmic scale")
        if self.type == "int" and (self.low % 1 or self.high % 1):
            raise ValueError(f"low ({self.low:g}) and high ({self.high:g}) of an int must be whole numbers")
        return self

    def holds(self, value: object) -> bool:
        """Whether `value` is one that the search could draw."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low is not None and self.high is not None and self.low <= value <= self.high

    def __str__(self) -> str:
        if self.choices is not None:
            return ", ".join(str(choice) for choice in self.choices)
        return f"{self.low:g} to {self.high:g}"


class SweepConfig(Section):
    """A search over some of the values; no part of what a run is."""

    n_trials: int = Field(default=20, ge=1, description="trials, over all workers together")
    direction: Literal["maximize", "minimize"] | None = Field(
        default=None, description="which way the metric is better; must be the metric's own way, which none stands for"
    )
    metric: str | None = Field(
        default=None, description="metric that decides; none: the first of evaluation.metrics, or of the task"
    )
    sampler: Literal["tpe", "grid"] = Field(
        default="tpe", description="`tpe` draws where earlier trials were good; `grid` tries every combination"
    )
    grid_points: int | None = Field(
        default=None,
        ge=2,
        description="grid: values per float or int range, evenly spaced on its scale, both ends included; none: every "
        "whole number of an int range, and float ranges are refused",
    )
    pruner: Literal["none", "median", "hyperband"] = Field(
        default="none",
        description="stops trials that do worse than others at the same share of training: below the `median` of the "
        "earlier ones, or by successive halving (`hyperband`); judged on the held-out examples",
    )
    measure_every: float = Field(
        default=0.1, gt=0, lt=1, description="share of training between two measurements for the pruner"
    )
    holdout: float = Field(
        default=0.1, gt=0, lt=1, description="share of the training examples that decides between trials"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the sampler's draws")
    seeds: int = Field(
        default=3,
        ge=0,
        le=1000,
        description="how often the best trial is run again, on all training examples and measured on the validation "
        "examples: with the seeds 0, 1, …; 0: not at all",
    )
    search_space: dict[str, Distribution] = Field(
        default_factory=dict, description="dotted path of a field (`training.learning_rate`) to its distribution"
    )

    @field_validator("metric")
    @classmethod
    def _our_name(cls, name: str | None) -> str | None:
        return None if name is None else _metric(name)


class RunConfig(Section):
    """One run: model, task, method, training, evaluation and a seed."""

    model: Annotated[ModelConfig, BeforeValidator(model_section)] = Field(
        default_factory=ModelConfig, description="base model (a plain word is short for its name)"
    )
    task: Annotated[SerializeAsAny[TaskConfig], BeforeValidator(task_config)] = Field(
        default_factory=lambda: task_config({}), description="what is learned (a plain word is short for its name)"
    )
    method: AnyMethod = Field(
        default_factory=lambda: _method({}), description="how the model is adapted (a plain word is short for its name)"
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="length, optimizer, precision")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="metrics")
    seed: int = Field(default=0, ge=0, lt=2**32, description="random seed of data order, initialisation and dropout")
    sweep: SweepConfig | None = Field(default=None, description="search space, for tuning")

    @model_validator(mode="after")
    def _searches_existing_fields(self) -> Self:
        known = {path for path in self.paths() if not path.startswith("sweep")}
        for path in self.sweep.search_space if self.sweep else ():
            if path not in known:
                raise ValueError(f"sweep.search_space: no field '{path}'{did_you_mean(path, known)}")
        return self

    def paths(self) -> tuple[str, ...]:
        """Dotted paths of all fields that hold a value, in order."""
        found: list[str] = []
        for name in type(self).model_fields:
            value = getattr(self, name)
            found += (
                [f"{name}.{inner}" for inner in type(value).model_fields] if isinstance(value, BaseModel) else [name]
            )
        return tuple(found)

    def canonical(self) -> str:
        """Sorted JSON of every value, defaults included; equal configs have equal text, and it validates back."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def run_id(self) -> str:
        """`<method>-<task>-s<seed>-<hash>`; the hash covers every value that decides what the run is."""
        values = {key: value for key, value in json.loads(self.canonical()).items() if key != "sweep"}
        if self.evaluation.holdout is None:
            values["evaluation"] = {k: v for k, v in values["evaluation"].items() if not k.startswith("holdout")}
        if not self.evaluation.premise:
            del values["evaluation"]["premise"]
        del values["training"]["report_to"]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        task = re.sub(r"[^A-Za-z0-9]+", "-", self.task.name).strip("-")[:40].rstrip("-") or "task"
        return f"{self.method.name}-{task}-s{self.seed}-{digest}"
