"""GLoRA: gradient-norm aware rank allocation.

Every matrix starts at uniform rank. Over the first `warmup` steps an exponential moving average of each matrix's
gradient norm is kept,

    g_k ← β·g_k + (1 - β)·‖∂L/∂·_k‖_F,

then ranks are handed out once in proportion to g_k at exactly the same budget (largest remainder, with a floor and a
cap), the living adapters are resized without changing what they compute more than they must, and training goes on.

`signal` says which gradient is meant (see `allocation.signals`): the norm of ∂L/∂B as the idea was first written
down (`record`), an unbiased estimate of ‖∂L/∂W‖ that makes matrices of different shapes comparable (`estimate`), the
same of the averaged gradient, which ignores mini-batch noise (`norm_of_mean`), or ‖∂L/∂W‖ itself (`exact`; costs a
weight gradient per matrix while the warm-up lasts). `record` is read where the optimizer reads it, after clipping; the
others before. PEFT ships an unrelated method of the same name (arXiv 2306.07967).
"""

from collections.abc import Mapping
from typing import Annotated, Literal, final

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.contract import METHODS, AdapterConfig, Resize, generator_for, refuse_impossible
from rankwise.adapters.listen import GradientListener
from rankwise.adapters.lora_method import LoraMethod
from rankwise.allocation.budget import allocate, spent
from rankwise.allocation.schedules import Length, in_steps
from rankwise.allocation.signals import SIGNALS, gradient_norms, projection
from rankwise.errors import AllocationError, BudgetError, ConfigError, Finding


def known_signal(name: str) -> str:
    """`name` if a signal of that name is registered.

    Raises:
        ValueError: there is none; says which there are.
    """
    if name not in SIGNALS:
        raise ValueError(SIGNALS.explain(name))
    return name


@METHODS.register("glora")
class GloraConfig(AdapterConfig):
    """Gradient-norm aware rank allocation, once, after a warm-up."""

    name: Literal["glora"] = "glora"
    signal: Annotated[str, AfterValidator(known_signal)] = Field(
        default="estimate",
        description="gradient norm that decides: `record` (as first written down), `estimate`, `norm_of_mean`, `exact`",
    )
    warmup: Length = Field(
        default=0.1, description="when ranks are reallocated: a step (int), or a fraction of all steps (0 to 1)"
    )
    beta: float = Field(
        default=0.9, ge=0, lt=1, description="decay of the moving average (window 1 / (1 - beta) steps)"
    )
    floor: int = Field(default=1, ge=0, description="smallest rank a matrix may get; 0 lets adapters be taken off")
    cap: int | None = Field(default=None, ge=1, description="largest rank a matrix may get (default: its full rank)")

    def check(self, total_steps: int) -> list[Finding]:
        """The warm-up has to end before training does."""
        step = in_steps(self.warmup, total_steps)
        if step < total_steps:
            return []
        message = (
            f"{self.warmup} is step {step} of {total_steps}, so ranks would never be reallocated; "
            f"use at most {total_steps - 1}, or a fraction such as 0.1"
        )
        return [Finding("method.warmup", message)]

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Glora":
        """Wrap the model at uniform rank and plan one reallocation.

        Raises:
            ConfigError: the warm-up would not end before training does.
        """
        refuse_impossible(self, total_steps)
        step = in_steps(self.warmup, total_steps)
        return Glora(model, self, reallocate_at=step, seed=seed)


@final
class Glora(LoraMethod):
    """Listens to gradients until `reallocate_at`, then asks for one resize."""

    def __init__(self, model: nn.Module, config: GloraConfig, *, reallocate_at: int, seed: int) -> None:
        super().__init__(model, config, seed=seed)
        self.config = config
        self.signal = SIGNALS[config.signal]
        self.reallocate_at = reallocate_at
        self.allocated = False
        self.average: list[Tensor] = []  # one tensor (matrices,), or with average_first one gradient per matrix
        self._listener = None if self.signal.of_lora_b else self._listen()
        self._check_bounds()

    def before_optimizer_step(self, step: int) -> None:
        """Take this step's gradients into the moving average."""
        if self.allocated:
            return
        gradients = self._lora_b_gradients() if self._listener is None else self._listener.take()
        values = gradients if self.signal.average_first else [gradient_norms(gradients)]
        if not self.average:
            self.average = [torch.zeros_like(v) for v in values]
        torch._foreach_lerp_(self.average, values, 1 - self.config.beta)

    def after_optimizer_step(self, step: int) -> Resize | None:
        """At the end of the warm-up, ask for the new ranks."""
        if self.allocated or step < self.reallocate_at:
            return None
        scores = self.scores(step)
        self.average = []
        self._stop_listening()
        return Resize(self.allocate(scores), scores)

    def scores(self, step: int) -> dict[str, float]:
        """Importance per matrix, in units of a gradient norm: the moving average, corrected for its start at zero."""
        correction = 1 - self.config.beta**step
        norms = gradient_norms(self.average) if self.signal.average_first else self.average[0]
        return dict(zip(self.matrices, (norms / correction).tolist(), strict=True))

    def allocate(self, scores: Mapping[str, float]) -> dict[str, int]:
        """Ranks in proportion to `scores` at exactly the budget."""
        return allocate(scores, self.costs, self.target, floor=self.config.floor, cap=self._caps())

    def check_finished(self) -> None:
        """Ranks were reallocated and the budget is spent to the last parameter."""
        if not self.allocated:
            raise AllocationError(
                f"glora never reallocated: it was to do so after step {self.reallocate_at}. Either training stopped "
                "before, or its hooks were not called: does the trainer have a RankwiseCallback?"
            )
        ranks = self.rank_pattern()
        total = sum(ranks.values()) if self.target.unit == "ranks" else spent(ranks, self.costs)
        if total != self.target.total:
            raise AllocationError(f"glora ended at {total:,} {self.target.unit}, its budget is {self.target.total:,}")

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, the moving average and whether ranks were reallocated already."""
        memory = {f"rankwise.average.{i}": t.clone() for i, t in enumerate(self.average)}
        return super().state_dict() | memory | {"rankwise.allocated": torch.tensor(self.allocated)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up weights, ranks and the moving average."""
        super().load_state_dict(state)
        self.allocated = bool(state["rankwise.allocated"])
        count = sum(key.startswith("rankwise.average.") for key in state)
        device = next(self.model.parameters()).device
        self.average = [state[f"rankwise.average.{i}"].clone().to(device) for i in range(count)]
        if self.allocated:
            self._stop_listening()

    def _stop_listening(self) -> None:
        self.allocated = True
        if self._listener is not None:
            self._listener.stop()

    def _listen(self) -> GradientListener:
        layers = adapted_layers(self.model)
        projections = {}
        if self.signal.projected:
            for index, (name, matrix) in enumerate(self.matrices.items()):
                projections[name] = projection(matrix.in_features, generator_for(self.seed, index))
        return GradientListener({name: layers[name] for name in self.matrices}, projections)

    def _lora_b_gradients(self) -> list[Tensor]:
        layers = adapted_layers(self.model)
        found = [layers[name].lora_B[ADAPTER].weight.grad for name in self.matrices]
        for name, gradient in zip(self.matrices, found, strict=True):
            if gradient is None:
                raise AllocationError(f"{name}: lora_B has no gradient; is this part of the model used in training?")
        return found

    def _caps(self) -> dict[str, int]:
        limit = self.config.cap
        return {n: m.full_rank if limit is None else min(limit, m.full_rank) for n, m in self.matrices.items()}

    def _check_bounds(self) -> None:
        """Fail before training, not at the end of the warm-up, if floor and cap cannot meet the budget."""
        try:
            self.allocate(dict.fromkeys(self.matrices, 1.0))
        except BudgetError as error:
            raise ConfigError("glora", [Finding("method.floor, method.cap", str(error))]) from error
