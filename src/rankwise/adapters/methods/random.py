"""Ranks drawn at random: the control that any method which claims to choose them well has to beat.

Nothing is looked at, neither data nor gradients. Shares are drawn once from a symmetric Dirichlet distribution
(independent Gamma variables of shape `concentration`, which need no normalising here), then handed out like every
other method's scores, at exactly the same budget. The AdaLoRA paper (arXiv 2303.10512) has no such control; reviews of
rank allocation ask for it, because unequal ranks as such may help or hurt.
"""

from typing import Literal, final

import torch
from pydantic import Field
from torch import nn

from rankwise.adapters.contract import METHODS, generator_for
from rankwise.adapters.fixed import FixedConfig, FixedRanks

SALT = 0x5EED
"""Keeps the draw of ranks apart from whatever else is drawn from the run's seed."""


@METHODS.register("random")
class RandomConfig(FixedConfig):
    """Ranks drawn at random before training, from the run's seed (control)."""

    name: Literal["random"] = "random"
    concentration: float = Field(
        default=1.0,
        gt=0,
        description="of the Dirichlet distribution of the shares: 1 is any split alike, large values come near uniform",
    )

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Random":
        """Wrap the model at random ranks.

        Raises:
            ConfigError: floor and cap cannot meet the budget.
        """
        return Random(model, self, seed=seed)


@final
class Random(FixedRanks):
    """Nothing to decide after the draw."""

    def __init__(self, model: nn.Module, config: RandomConfig, *, seed: int) -> None:
        self.concentration = config.concentration
        super().__init__(model, config, seed=seed)

    def scores(self) -> dict[str, float]:
        """A Gamma(`concentration`) draw per matrix, in model order."""
        shape = torch.full((len(self.matrices),), self.concentration, dtype=torch.float64)
        drawn = torch._standard_gamma(shape, generator=generator_for(self.seed, SALT))
        return dict(zip(self.matrices, drawn.tolist(), strict=True))
