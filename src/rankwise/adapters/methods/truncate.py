"""Train uniform LoRA at a higher rank, then cut once: one singular-value threshold over all matrices.

Source: PARA (arXiv 2604.27796). The threshold is whatever leaves exactly the budget: the singular values of every
module's s·B A compete over all modules (`allocation.allocate` with their squares as gains), so a module may lose
everything. The cut keeps the leading singular directions, the nearest adapter of these ranks (Eckart & Young 1936).

It is the cheapest strong rival of methods that decide while training. Its price is paid in training: with `keep: 50%`
twice the budget's parameters are trained, which is reported as the peak.
"""

from collections.abc import Mapping
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from rankwise.adapters.contract import METHODS, AdapterConfig, Resize, refuse_impossible
from rankwise.adapters.distributed import broadcast_object
from rankwise.adapters.export import lora_pairs
from rankwise.adapters.lora_method import LoraMethod, enlarged_target
from rankwise.adapters.truncate import decompose
from rankwise.allocation.allocate import allocate
from rankwise.allocation.budget import spent
from rankwise.allocation.schedules import Length, in_steps
from rankwise.allocation.shares import Share
from rankwise.errors import AllocationError, Finding


@METHODS.register("truncate")
class TruncateConfig(AdapterConfig):
    """Train uniform LoRA above the budget, then cut by one singular-value threshold (PARA; control)."""

    name: Literal["truncate"] = "truncate"
    keep: Share = Field(
        default=0.5,
        description="share of what is trained that is kept, '50%' or 0.5, which trains uniform LoRA at twice the "
        "budget's rank (rounded up to a whole rank, at most full rank)",
    )
    final: Length | Literal[0] = Field(
        default=0,
        description="steps (int) or fraction trained at the final ranks; 0 cuts after the last step",
    )

    def check(self, total_steps: int) -> list[Finding]:
        """The cut has to come after a step."""
        steps = in_steps(self.final, total_steps)
        if steps < total_steps:
            return []
        message = (
            f"{self.final} is {steps} of {total_steps} steps, so nothing would be trained before the cut; use at most "
            f"{total_steps - 1}, or 0"
        )
        return [Finding("method.final", message)]

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Truncate":
        """Wrap the model above the budget and plan one cut.

        Raises:
            ConfigError: the cut would come before the first step.
            BudgetError: the budget is more than the matrices can hold.
        """
        refuse_impossible(self, total_steps)
        return Truncate(model, self, cut_at=total_steps - in_steps(self.final, total_steps), seed=seed)


@final
class Truncate(LoraMethod):
    """Uniform LoRA until `cut_at`, then one resize."""

    def __init__(self, model: nn.Module, config: TruncateConfig, *, cut_at: int, seed: int) -> None:
        initial = enlarged_target(model, config, 1 / float(config.keep))
        super().__init__(model, config, seed=seed, initial=initial)
        self.cut_at = cut_at
        self.cut = False

    def after_optimizer_step(self, step: int) -> Resize | None:
        """At `cut_at`, ask for the ranks above the threshold."""
        if self.cut or step < self.cut_at:
            return None
        self.cut = True
        spectra = self.spectra()
        ranks = allocate(
            {name: values.square().tolist() for name, values in spectra.items()},
            self.costs,
            self.target,
            floor=0,
            cap={name: len(values) for name, values in spectra.items()},
        )
        scores = {name: float(values.norm()) for name, values in spectra.items()}
        return Resize(*broadcast_object((ranks, scores)))

    @torch.no_grad()
    def spectra(self) -> dict[str, Tensor]:
        """Singular values of every module's delta weight, (rank,), descending, float64 on the CPU."""
        return {name: decompose(pair).values.cpu() for name, pair in lora_pairs(self.model).items()}

    def check_finished(self) -> None:
        """The cut was made, and the budget is spent to the last parameter."""
        if not self.cut:
            raise AllocationError(
                f"truncate never cut: it was to do so after step {self.cut_at}. Either training stopped before, or "
                "its hooks were not called: does the trainer have a RankwiseCallback?"
            )
        ranks = self.rank_pattern()
        total = sum(ranks.values()) if self.target.unit == "ranks" else spent(ranks, self.costs)
        if total != self.target.total:
            raise AllocationError(
                f"truncate ended at {total:,} {self.target.unit}, its budget is {self.target.total:,}"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, and whether the cut was made."""
        return super().state_dict() | {"rankwise.cut": torch.tensor(self.cut)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up weights and ranks."""
        super().load_state_dict(state)
        self.cut = bool(state["rankwise.cut"])
