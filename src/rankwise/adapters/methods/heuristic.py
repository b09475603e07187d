"""A fixed pattern, heavy in feed-forward matrices and in upper blocks: the control that costs nothing.

AdaLoRA (Zhang et al. 2023, arXiv 2303.10512, section 4.4 and figure 3) ends with most of its rank in the feed-forward
matrices and the upper layers, much the same for every task, model and budget. If that pattern is all there is to
learn, it can be written down:

    score = (`ffn` for a feed-forward matrix, else 1) · (1 + (`top` - 1) · b / (blocks - 1)),    b = 0 … blocks - 1.
"""

from typing import Literal, final

from pydantic import Field
from torch import nn

from rankwise.adapters.contract import METHODS
from rankwise.adapters.families import block_index, is_attention
from rankwise.adapters.fixed import FixedConfig, FixedRanks


@METHODS.register("heuristic")
class HeuristicConfig(FixedConfig):
    """A fixed pattern: more rank in feed-forward matrices and upper blocks (control)."""

    name: Literal["heuristic"] = "heuristic"
    ffn: float = Field(default=2.0, gt=0, description="rank of a feed-forward matrix over that of an attention matrix")
    top: float = Field(
        default=3.0, gt=0, description="rank in the highest block over that in the lowest, linear between them"
    )

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Heuristic":
        """Wrap the model at the pattern's ranks.

        Raises:
            ConfigError: floor and cap cannot meet the budget.
        """
        return Heuristic(model, self, seed=seed)


@final
class Heuristic(FixedRanks):
    """Nothing to decide."""

    config: HeuristicConfig

    def __init__(self, model: nn.Module, config: HeuristicConfig, *, seed: int) -> None:
        super().__init__(model, config, seed=seed)

    def scores(self) -> dict[str, float]:
        """The pattern; a matrix outside the numbered blocks counts as one in the middle."""
        found = {name: block_index(name) for name in self.matrices}
        blocks = sorted({block for block in found.values() if block is not None})
        depth = {block: i / (len(blocks) - 1) if len(blocks) > 1 else 0.5 for i, block in enumerate(blocks)}
        return {
            name: (1.0 if is_attention(name) else self.config.ffn)
            * (1 + (self.config.top - 1) * (0.5 if block is None else depth[block]))
            for name, block in found.items()
        }
