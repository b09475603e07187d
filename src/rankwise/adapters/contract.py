"""What a method is: a frozen config that builds an object the trainer drives through four hooks.

A method never sees a run config, a task or a store, only a model, the number of optimizer steps and a seed.
The trainer (ours, or a stock `Trainer` with `RankwiseCallback`) promises, once per optimizer step:

    before_optimizer_step(step)   gradients are there, weights have not moved; step counts from 1
    after_optimizer_step(step)    weights have moved, gradients are still there; may ask for a `Resize`

and applies the resize, optimizer state included. `penalty()` is added to the task loss in training only.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rankwise.errors import ConfigError, Finding
from rankwise.registry import Registry

Form = Literal["compact", "uniform", "merged", "static"]
"""`compact`: plain LoRA with rank patterns (a PEFT type of our own, where a method decides per input); `uniform`:
zero-padded to one rank, no patterns; `merged`: the whole model with the adapter added into its weights; `static`: plain
LoRA with every per-input decision at its average (the same as `compact` where there is none)."""

Batches = Callable[[], Iterable[dict[str, Tensor]]]
"""Starts a pass over training batches as the model takes them, in a fixed order, on the model's device."""


@dataclass(frozen=True)
class Resize:
    """A change of ranks that a method asks for.

    `ranks` maps every adapted module's name to its new rank; `scores` is what decided it (for the trace). Where `kept`
    names the components of a module that stay (increasing indices, as many as its rank), exactly those are kept;
    elsewhere a smaller rank keeps the leading singular directions.
    """

    ranks: Mapping[str, int]
    scores: Mapping[str, float] = field(default_factory=dict)
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)


class MethodConfig(BaseModel, ABC):
    """Settings of a method; one subclass per method, registered in `METHODS` under its `name`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="method name, as `rankwise list` prints it")

    def check(self, total_steps: int) -> list[Finding]:
        """What cannot work in a training of `total_steps` optimizer steps; asked before anything is trained."""
        return []

    @abstractmethod
    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Method":
        """Adapt `model` (a Transformers model) in place and return the method that drives it.

        Raises:
            BudgetError: the budget cannot be met on this model.
            ModelError: nothing in this model can be adapted.
            ConfigError: a setting makes no sense for `total_steps`.
        """


class AdapterConfig(MethodConfig, ABC):
    """Settings shared by every method that adds LoRA adapters."""

    budget: str = Field(
        default="r=4",
        description="adapter parameters when training ends: '0.5%' of the base model's parameters, 'r=4' (what uniform "
        "LoRA of rank 4 costs), '200k' parameters, or '144 ranks' in total",
    )
    scaling: float = Field(
        default=2.0, gt=0, description="alpha / rank, the same for every module, kept when ranks change"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: tuple[str, ...] | None = Field(
        default=None,
        description="names (or name endings) of the matrices to adapt; by default every linear layer of the blocks",
    )


@dataclass(frozen=True)
class ParameterCount:
    """Adapter parameters (the task head is not one): `final` is what the checkpoint holds, `peak` the most that
    were trained at once."""

    final: int
    peak: int


class Method(ABC):
    """A model under adaptation. Subclasses are final."""

    model: nn.Module
    """What is trained: a `PeftModel`, or the base model itself for full fine-tuning."""
    config: MethodConfig
    """What it was built from; a saved state is taken up by the same method with the same settings only."""

    def prepare(self, batches: Batches) -> Resize | None:
        """Called once before the first step of a new run (not of a resumed one), with the training data.

        May look at as many batches as it likes; whatever it draws must come from a random stream of its own.
        """
        return None

    def penalty(self) -> Tensor | None:
        """Scalar added to the task loss in training, or None."""
        return None

    def before_optimizer_step(self, step: int) -> None:
        """Called once per optimizer step with gradients present and weights not yet moved; `step` is 1-based."""

    def after_optimizer_step(self, step: int) -> Resize | None:
        """Called once per optimizer step after the weights moved; returns the ranks to change to, if any."""
        return None

    @property
    def cuts_at_the_end(self) -> bool:
        """Whether `conclude` takes adapters off, so that no earlier checkpoint fits the model any more."""
        return False

    def conclude(self, batches: Batches) -> None:
        """Called once after the last step, with the training data: the place to measure and to set what inference
        needs. Like `prepare`, it draws from a random stream of its own."""

    @abstractmethod
    def rank_pattern(self) -> dict[str, int]:
        """Live rank per adapted module, by full module name in the base model; empty for full fine-tuning."""

    @abstractmethod
    def parameter_count(self) -> ParameterCount:
        """Adapter parameters now in the model's final form, and the peak so far."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs: trainable weights with their live shapes, and the method's own memory."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up a saved state, shapes included; called before the optimizer exists."""

    def task_loss_model(self) -> nn.Module:
        """The module whose loss is the task loss alone (PEFT's AdaLoRA adds a penalty inside `forward`)."""
        return self.model

    def check_finished(self) -> None:
        """Called when training ends and before the result is written.

        Raises:
            AllocationError: the budget was not met, or the method never allocated.
        """

    @abstractmethod
    def export(self, directory: Path, form: Form = "compact") -> Path:
        """Write the result so that stock PEFT (or Transformers, for full fine-tuning) loads it.

        Raises:
            AllocationError: see `check_finished`.
            OutputError: `directory` exists and is not empty, or cannot be written.
        """


METHODS: Registry[type[MethodConfig]] = Registry("method")


def refuse_impossible(config: MethodConfig, total_steps: int) -> None:
    """Stop if `config.check` found something.

    Raises:
        ConfigError: with all findings.
    """
    if findings := config.check(total_steps):
        raise ConfigError(config.name, findings)


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable tensors of `model`, by parameter name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def generator_for(seed: int, *salt: int) -> torch.Generator:
    """A CPU random stream of its own, so that drawing from it never shifts the global one."""
    value = seed
    for part in salt:
        value = (value * 1_000_003 + part + 1) % (2**63)
    return torch.Generator().manual_seed(value)
