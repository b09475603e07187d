"""What methods that decide per input have in common. Abstract: methods derive from it and are final.

Training warms the adapters up with every gate open; then gates are drawn, the expected share of open ones follows a
cubic down to its target (`allocation.tracking`) and probabilities grow sharper. The threshold of inference is where the
price stands. When training ends, the share is measured on training examples; if it is off, the threshold is moved to
where it is met.

Routers count as adapter parameters: what they cost is taken off the budget before ranks are bought.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, Matrix, adapted_layers, attach_lora, find_matrices
from rankwise.adapters.conditional.config import ConditionalPeftConfig
from rankwise.adapters.conditional.router import opened
from rankwise.adapters.conditional.tuner import NO_MERGE
from rankwise.adapters.contract import AdapterConfig, Batches, ParameterCount
from rankwise.adapters.deciding_method import FAR, DecidingMethod, check_schedule
from rankwise.adapters.distributed import all_mean
from rankwise.adapters.lora_method import resolve_budget
from rankwise.adapters.peft_types import trained_parameters
from rankwise.allocation.budget import Target
from rankwise.allocation.schedules import Length, in_steps
from rankwise.allocation.shares import Share
from rankwise.allocation.tracking import Search, Tracker
from rankwise.errors import Finding

CLOSE = 0.01
"""How far it may be off before the threshold is moved."""
LASTING = 0.2
"""What stays of the bonus for gates that tell inputs apart when the annealing has ended."""
_LOG = logging.getLogger(__name__)
PASSES = 8
"""Over them, at most: moving the threshold changes what later routers see."""


class ConditionalConfig(AdapterConfig, ABC):
    """Settings of every method that decides per input."""

    active: Share = Field(
        default=0.5, description="target share of adapters that are open, over modules and examples: '20%' or 0.2"
    )
    warmup: Length = Field(
        default=0.1, description="how long all gates are held open at first: steps, or a fraction of all steps"
    )
    annealing: Length = Field(
        default=0.7,
        description="when the share reaches its target and the temperature its end: a step, or a fraction of all steps",
    )
    temperature: tuple[float, float] = Field(
        default=(2.0, 0.5), description="what routers' logits are divided by in training, at first and at the end"
    )
    entropy: float = Field(
        default=0.05,
        ge=0,
        allow_inf_nan=False,
        description="weight of a bonus for gates that some inputs open and others do not (entropy of a gate's mean "
        "over the batch), fading to a fifth with the annealing; against gates that end always or never open",
    )
    router_hidden: int = Field(default=4, ge=1, description="width of the middle of every router")

    def check(self, total_steps: int) -> list[Finding]:
        """The share needs steps to come down in, and temperatures must be positive."""
        return check_schedule("method", ("warmup", self.warmup), self.annealing, self.temperature, total_steps)


class ConditionalMethod(DecidingMethod, ABC):
    """Drives a model with conditional adapters of one PEFT type."""

    config: ConditionalConfig
    opened = "its adapters open"
    failed = "gates do not tell inputs apart well enough; train longer or aim elsewhere"
    unmerged = NO_MERGE

    def __init__(self, model: nn.Module, config: ConditionalConfig, *, total_steps: int, seed: int) -> None:
        self.matrices: dict[str, Matrix] = find_matrices(model, config.target_modules)
        self.costs = {name: matrix.cost for name, matrix in self.matrices.items()}
        self.target: Target = resolve_budget(model, config, self.matrices)
        self.config, self.seed, self.total_steps = config, seed, total_steps
        peft_config = self.peft_config(self.left_for_ranks())
        self.model = attach_lora(model, self.matrices, config=peft_config, seed=seed)
        self.tracker = Tracker(
            target=float(config.active),
            first=in_steps(config.warmup, total_steps),
            last=in_steps(config.annealing, total_steps),
        )
        self.step = 0
        self.measured: float | None = None
        self._logits: Tensor | None = None  # of the step that goes on
        self.peak = self.parameter_count().final
        if self.target.unit == "parameters" and self.peak > self.target.total:
            _LOG.warning(
                "%s: its generator has %s parameters; the budget '%s' (%s parameters) does not bind it",
                config.name,
                f"{self.peak:,}",
                config.budget,
                f"{self.target.total:,}",
            )
        self.context.recording = True
        self._at(1)

    @abstractmethod
    def peft_config(self, target: Target) -> ConditionalPeftConfig:
        """PEFT's config, with what is left of the budget for ranks.

        Raises:
            BudgetError: too little is left.
        """

    @abstractmethod
    def overhead(self) -> int:
        """Parameters beside the factors A and B."""

    @abstractmethod
    def logits(self) -> Tensor:
        """Of the gates, (examples, modules), with a graph to the routers, for what was recorded since the last step."""

    def left_for_ranks(self) -> Target:
        """The budget without what routers cost, in whole ranks."""
        advice = "make the routers smaller (router_hidden, or router: shared)"
        return self.left_after(self.overhead(), "routers", advice)

    def penalty(self) -> Tensor | None:
        """What the expected share costs, and the fading bonus for gates that are open for a part of the inputs."""
        if self.context.all_open or not self.context.recorded:
            return None
        logits = self.logits()
        self._logits = logits.detach()
        chances = torch.sigmoid((logits - self.tracker.price) / self.context.temperature)
        penalty = self.tracker.penalty(chances.mean(), self.step + 1)
        bonus = self.config.entropy * max(1 - self._progress(self.step + 1), LASTING)
        return penalty - bonus * _entropy(chances.mean(0)) if bonus else penalty

    def before_optimizer_step(self, step: int) -> None:
        """A new price; what was recorded of this step is forgotten."""
        if self._logits is not None:
            self.tracker.update(self._logits, self.price_temperature(), step)
            price = torch.tensor(self.tracker.price, dtype=torch.float64, device=self._logits.device)
            all_mean([price])
            self.tracker.price = float(price)
            if abs(self.tracker.price) > FAR:
                self.charge()
        self._logits = None
        self.context.recorded.clear()
        self.step = step
        self._at(step + 1)

    @torch.no_grad()
    def charge(self) -> None:
        """Take the price off the routers' biases, once and for all: the logits minus the price stay what they were."""
        for bias in self.gate_biases():
            bias -= self.tracker.price
        self.tracker.price = 0.0

    @abstractmethod
    def gate_biases(self) -> list[Tensor]:
        """What the routers add to the logits of gates, to be changed in place."""

    def price_temperature(self) -> float:
        """The temperature at which the share that the price has to meet is taken."""
        return self.context.temperature

    @torch.no_grad()
    def conclude(self, batches: Batches) -> None:
        """Measure the share of open gates; move the threshold until it is met."""
        self.start_inference()
        search = Search(self.tracker.target)
        for number in range(PASSES + 1):
            logits = self.observe(batches)
            gates = opened(logits, self.peft.threshold).double()
            self.measured = float(gates.mean())
            search.tried.append((self.peft.threshold, self.measured))
            if search.off() <= CLOSE or number == PASSES:
                break
            read = between(logits, self.tracker.target)
            self.peft.threshold = search.next(read) if number < PASSES - 1 else search.best()
        self.context.recording = False
        self.context.seen.clear()
        self.peft.usage = dict(zip(self.live(), gates.mean(0).tolist(), strict=True))

    def start_inference(self) -> None:
        """From now on gates are what they will be in use, and their threshold is 0.5."""
        self.context.all_open = False
        self.charge()
        self.context.price, self.peft.threshold = 0.0, 0.5

    @abstractmethod
    def observe(self, batches: Batches) -> Tensor:
        """Logits of the gates in inference, (examples, modules), on `sample_size` training examples or so."""

    def rank_pattern(self) -> dict[str, int]:
        """Largest rank per module; 0 where the adapter has been taken off."""
        layers = adapted_layers(self.model)
        return {name: layers[name].r[ADAPTER] if name in layers else 0 for name in self.matrices}

    def live(self) -> list[str]:
        """Modules that carry the adapter, in model order."""
        return list(adapted_layers(self.model))

    def deciders(self) -> list[str]:
        """The modules that carry the adapter."""
        return self.live()

    def parameter_count(self) -> ParameterCount:
        """Everything that is trained but the head, routers and generators included."""
        count = trained_parameters(self.model)
        self.peak = max(getattr(self, "peak", 0), count)
        return ParameterCount(count, self.peak)

    def state_dict(self) -> dict[str, Tensor]:
        """See `DecidingMethod.state_dict`; with the most parameters so far."""
        return super().state_dict() | {"rankwise.peak": torch.tensor(self.peak)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `DecidingMethod.load_state_dict`."""
        super().load_state_dict(state)
        self.peak = int(state["rankwise.peak"])

    def _at(self, step: int) -> None:
        """Set what the layers need to know of training step `step`."""
        first, last = self.config.temperature
        self.context.all_open = step <= self.tracker.first and self.measured is None
        self.context.temperature = first * (last / first) ** self._progress(step)
        self.context.price = self.tracker.price
        if self.measured is None:
            self.peft.threshold = 1 / (1 + math.exp(-self.tracker.price))


def between(logits: Tensor, share: float) -> float:
    """The threshold above which a share of these lies, half-way between two chances: far from flipping either."""
    values = torch.sigmoid(logits.flatten().double()).sort(descending=True).values
    above = min(max(round(share * len(values)), 1), len(values) - 1) if len(values) > 1 else 1
    return float(values[above - 1 : above + 1].mean())


def _entropy(chances: Tensor) -> Tensor:
    """Mean entropy of gates that are open with these chances, in nats."""
    p = chances.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()
