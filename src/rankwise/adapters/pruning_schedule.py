"""Settings of methods that start larger and prune on AdaLoRA's schedule: ours and PEFT's own."""

from abc import ABC

from pydantic import Field

from rankwise.adapters.contract import AdapterConfig
from rankwise.allocation.schedules import Length, in_steps
from rankwise.errors import Finding


class PruningConfig(AdapterConfig, ABC):
    """When components are pruned, and how their scores are averaged (Zhang et al. 2023, arXiv 2303.10512, table 8)."""

    warmup: Length = Field(
        default=0.1, description="steps (int) or fraction before pruning starts (the paper's t_i, PEFT's tinit)"
    )
    final: Length = Field(
        default=0.3, description="steps (int) or fraction trained at the final ranks (the paper's t_f, PEFT's tfinal)"
    )
    every: int = Field(default=1, ge=1, description="steps between two allocations (the paper's ΔT, PEFT's deltaT)")
    beta1: float = Field(default=0.85, gt=0, lt=1, description="decay of the sensitivity average")
    beta2: float = Field(default=0.85, gt=0, lt=1, description="decay of the uncertainty average")

    def phases(self, total_steps: int) -> tuple[int, int]:
        """Steps before pruning starts, and steps at the final ranks."""
        return in_steps(self.warmup, total_steps), in_steps(self.final, total_steps)

    def check(self, total_steps: int) -> list[Finding]:
        """Warm-up and final phase have to leave steps for pruning."""
        warmup, final_steps = self.phases(total_steps)
        if warmup < total_steps - final_steps:
            return []
        message = (
            f"warm-up {self.warmup} (step {warmup}) and final phase {self.final} ({final_steps} steps) leave no "
            f"step of {total_steps} for pruning; their sum must be below {total_steps}, or use fractions such as "
            "0.1 and 0.3"
        )
        return [Finding("method.warmup, method.final", message)]
