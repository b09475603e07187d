"""Ranks decided before training by a rule that looks at nothing: the base of the controls. Abstract."""

from abc import ABC, abstractmethod

from pydantic import Field
from torch import nn

from rankwise.adapters.contract import AdapterConfig
from rankwise.adapters.lora_method import LoraMethod
from rankwise.allocation.budget import Target, allocate
from rankwise.errors import BudgetError, ConfigError, Finding


class FixedConfig(AdapterConfig, ABC):
    """Settings of a control: the bounds that `glora` has."""

    floor: int = Field(default=1, ge=0, description="smallest rank a matrix may get; 0 leaves adapters out")
    cap: int | None = Field(default=None, ge=1, description="largest rank a matrix may get (default: its full rank)")


class FixedRanks(LoraMethod, ABC):
    """Attached at its final ranks from the beginning: the budget's parameters in proportion to `scores`.

    Raises:
        ConfigError: floor and cap leave no way to spend the budget exactly.
    """

    def __init__(self, model: nn.Module, config: FixedConfig, *, seed: int) -> None:
        self.bounds = config
        super().__init__(model, config, seed=seed)

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Share of the ranks that every matrix should get, in any unit."""

    def start_ranks(self, target: Target) -> dict[str, int]:
        """Ranks in proportion to the scores, within floor and cap, at exactly `target`."""
        limit = self.bounds.cap
        caps = {n: m.full_rank if limit is None else min(limit, m.full_rank) for n, m in self.matrices.items()}
        try:
            return allocate(self.scores(), self.costs, target, floor=self.bounds.floor, cap=caps)
        except BudgetError as error:
            raise ConfigError(self.bounds.name, [Finding("method.floor, method.cap", str(error))]) from error
