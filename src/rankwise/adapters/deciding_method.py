"""What methods that decide per input share: adapters per module (`conditional_method`), whole blocks (`block_method`).

Both follow a share of what is open down to its target by a price (`allocation.tracking`), put the threshold of
inference where that price stands, and measure the share on training examples when training ends. What decides (routers,
bypasses) counts as adapter parameters: it is taken off the budget before ranks are bought.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, Matrix
from rankwise.adapters.conditional.config import ConditionalPeftConfig
from rankwise.adapters.conditional.context import Context, context_of
from rankwise.adapters.contract import AdapterConfig, Batches, Form, Method, trainable_state
from rankwise.adapters.export import export_adapter, new_directory
from rankwise.adapters.pairs import Pair
from rankwise.allocation.budget import Target, allocate, largest_reachable
from rankwise.allocation.schedules import Length, in_steps
from rankwise.allocation.tracking import Tracker
from rankwise.errors import AllocationError, BudgetError, ConfigError, Finding

TOLERANCE = 0.05
"""How far the share of what is open on training examples may end from its target."""
MEASURED = 256
"""Training examples that are measured on when training ends, at most."""
FAR = 8.0
"""A price beyond this goes into the routers' biases: nearer to 1 than σ(8), chances cannot be told apart for long."""


class DecidingMethod(Method, ABC):
    """Drives a model whose routers open a part of it per input.

    A class derived from it sets `config`, `matrices`, `costs`, `target`, `model`, `tracker`, `step` and `measured`.
    """

    model: PeftModel
    config: AdapterConfig
    matrices: Mapping[str, Matrix]
    costs: Mapping[str, int]
    target: Target
    tracker: Tracker
    step: int
    measured: float | None
    opened: ClassVar[str]
    """What a share is a share of, in messages."""
    failed: ClassVar[str]
    """Why a share may be missed, and what helps."""
    unmerged: ClassVar[str]
    """Why there is no merged form; `{kind}` is the method's name."""

    @property
    def context(self) -> Context:
        """What the layers share."""
        return context_of(self.model.base_model.model)

    @property
    def peft(self) -> ConditionalPeftConfig:
        """The adapter's PEFT config."""
        found = self.model.peft_config[ADAPTER]
        assert isinstance(found, ConditionalPeftConfig)
        return found

    @abstractmethod
    def deciders(self) -> Iterable[str]:
        """Names of what is opened or not, in the order of `peft.usage`."""

    @abstractmethod
    def static_pairs(self) -> dict[str, Pair]:
        """Plain LoRA factors that come nearest to it without decisions."""

    def left_after(self, overhead: int, takers: str, advice: str) -> Target:
        """The budget without `overhead` parameters, in whole ranks (at most one of them is left over).

        Raises:
            BudgetError: less is left than rank 1 everywhere takes; says who takes it and what to change.
        """
        if self.target.unit == "ranks":
            return self.target
        left, cheapest = self.target.total - overhead, sum(self.costs.values())
        if left < cheapest:
            raise BudgetError(
                f"{self.config.name}: of the budget '{self.config.budget}' ({self.target.total:,} parameters) {takers} "
                f"take {overhead:,}, and {left:,} are left; rank 1 everywhere takes {cheapest:,}. Raise the budget, "
                f"or {advice}"
            )
        return Target(cheapest + largest_reachable(left - cheapest, list(self.costs.values())), "parameters")

    def uniform_ranks(self, target: Target) -> dict[str, int]:
        """The uniform allocation of `target`."""
        caps = {name: matrix.full_rank for name, matrix in self.matrices.items()}
        return allocate(dict.fromkeys(self.matrices, 1.0), self.costs, target, floor=1, cap=caps)

    def check_finished(self) -> None:
        """The share of what is open is within `TOLERANCE` of its target."""
        if self.measured is None:
            raise AllocationError(
                f"{self.config.name} never measured its share of open gates: training stopped before its last step, or "
                "its hooks were not called: does the trainer have a RankwiseCallback?"
            )
        if abs(self.measured - self.tracker.target) > TOLERANCE:
            raise AllocationError(
                f"{self.config.name} ended with {self.measured:.1%} of {self.opened}, its target is "
                f"{self.tracker.target:.1%}: {self.failed}"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Trainable weights, the price, and what was measured."""
        usage = self.peft.usage or {}
        memory = {
            "price": torch.tensor(self.tracker.price, dtype=torch.float64),
            "step": torch.tensor(self.step),
            "threshold": torch.tensor(self.peft.threshold, dtype=torch.float64),
            "measured": torch.tensor([] if self.measured is None else [self.measured], dtype=torch.float64),
            "usage": torch.tensor(list(usage.values()), dtype=torch.float64),
        }
        return trainable_state(self.model) | {f"rankwise.{key}": value for key, value in memory.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up weights, price and measurements; what the layers need to know follows from `_at`."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])
        self.tracker.price = float(state["rankwise.price"])
        self.step = int(state["rankwise.step"])
        self.peft.threshold = float(state["rankwise.threshold"])
        self.measured = next(iter(state["rankwise.measured"].tolist()), None)
        usage = state["rankwise.usage"].tolist()
        self.peft.usage = dict(zip(self.deciders(), usage, strict=True)) if usage else None
        self.context.recording = self.measured is None
        self._at(self.step + 1)

    def export(self, directory: Path, form: Form = "compact") -> Path:
        """Write a checkpoint of our own PEFT type (`compact`), or plain LoRA without decisions (`static`).

        Raises:
            ConfigError: another form; what decides per input has none.
        """
        self.check_finished()
        if form == "static":
            return export_adapter(self.model, self.static_pairs(), directory)
        if form != "compact":
            why = self.unmerged.format(kind=self.config.name)
            raise ConfigError("export", [Finding("form", f"'{form}' is not possible: {why}")])
        with new_directory(directory) as folder:
            self.model.save_pretrained(str(folder), save_embedding_layers=False)  # PEFT would ask the hub about them
        return directory

    @abstractmethod
    def _at(self, step: int) -> None:
        """Set what the layers need to know of training step `step`."""

    def _progress(self, step: int) -> float:
        """0 until the tracker's first step, 1 from its last one."""
        first, last = self.tracker.first, self.tracker.last
        return min(max((step - first) / (last - first), 0.0), 1.0)


def check_schedule(
    settings: str, phase: tuple[str, Length], annealing: Length, temperature: tuple[float, float], total_steps: int
) -> list[Finding]:
    """What cannot work in a training of `total_steps` optimizer steps.

    Args:
        settings: where the settings are, such as `method`.
        phase: name and length of the phase in which everything is open.
        annealing: when the share reaches its target.
        temperature: at first and at the end.
        total_steps: optimizer steps.
    """
    found = []
    name, length = phase
    first, last = in_steps(length, total_steps), in_steps(annealing, total_steps)
    if not first < last <= total_steps:
        found.append(
            Finding(
                f"{settings}.{name}, {settings}.annealing",
                f"{length} and {annealing} are steps {first} and {last} of {total_steps}; {name} has to end before the "
                "annealing, and the annealing with training at the latest, e.g. 0.1 and 0.7",
            )
        )
    if not all(0 < value < math.inf for value in temperature):
        text = f"{temperature} must be positive and finite, such as [2.0, 0.5]"
        found.append(Finding(f"{settings}.temperature", text))
    return found


def sample_size(total_steps: int) -> int:
    """Examples to measure on: two per optimizer step, 64 to 256, so that measuring costs little beside training."""
    return min(max(2 * total_steps, 64), MEASURED)


def measured_examples(batches: Batches, model: nn.Module, limit: float = math.inf) -> Iterator[tuple[Any, Any]]:
    """Run `model` on the first `limit` examples or so; yields every batch and what the model returned."""
    seen = 0
    for batch in batches():
        yield batch, model(**batch)
        seen += len(next(iter(batch.values())))
        if seen >= limit:
            return
