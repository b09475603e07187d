"""RAD-LoRA: adapters whose gate and rank depend on the input, or whole blocks that inputs skip.

`depth: module` is `adapters.rad_method`, `depth: block` is `adapters.block_method`.
"""

from typing import Literal

from pydantic import Field
from torch import nn

from rankwise.adapters.block_method import BlockMethod, check_block
from rankwise.adapters.conditional.block_settings import BlockSettings
from rankwise.adapters.contract import METHODS, AdapterConfig, Method, refuse_impossible
from rankwise.adapters.rad_method import Radlora, RadSettings
from rankwise.errors import Finding


@METHODS.register("radlora")
class RadloraConfig(RadSettings):
    """A router per module opens or closes its adapter for every example and chooses its rank; or, by block, which
    blocks are run at all."""

    name: Literal["radlora"] = "radlora"
    depth: Literal["module", "block"] = Field(
        default="module",
        description="`module`: a gate and a rank per module; `block`: whole blocks are skipped, see `block`",
    )
    block: BlockSettings = Field(default=BlockSettings(), description="settings of `depth: block`")

    def check(self, total_steps: int) -> list[Finding]:
        """See `RadSettings.check`; or what blocks cannot do, and settings of the other depth."""
        found = check_block(self.block, total_steps) if self.depth == "block" else super().check(total_steps)
        return [*self._of_the_other_depth(), *found]

    def _of_the_other_depth(self) -> list[Finding]:
        """Settings that this depth would pass over in silence."""
        fields = type(self).model_fields
        own = fields.keys() - AdapterConfig.model_fields.keys() - {"depth", "block"}
        idle = {"module": {"block"}, "block": own}[self.depth]
        other = "block" if self.depth == "module" else "module"
        return [
            Finding(f"method.{name}", f"belongs to `depth: {other}`, and depth is `{self.depth}`; leave it out")
            for name in fields
            if name in idle and getattr(self, name) != fields[name].default
        ]

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> Method:
        """Wrap the model with adapters of a rank per input, or make its blocks skippable.

        Raises:
            ConfigError: a setting makes no sense for `total_steps`.
            BudgetError: routers and the smallest banks take more than the budget.
        """
        refuse_impossible(self, total_steps)
        if self.depth == "block":
            return BlockMethod(model, self, total_steps=total_steps, seed=seed)
        return Radlora(model, self, total_steps=total_steps, seed=seed)
