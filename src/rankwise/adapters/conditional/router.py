"""A router: a small network from the mean of a module's input to logits.

    logits = W₂ gelu(W₁ norm(x̄) + b₁) + b₂ ,    x̄: the mean over an example's real tokens

It sees what the adapter sees, but gives it no gradient: the backbone is not asked to please its routers. `norm` brings
every x̄ to zero mean and unit variance, so that one learning rate suits all widths and depths. Parameters are direct
attributes, because PEFT takes an adapter's name out of `….lora_router.NAME.parameter` and no deeper.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankwise.adapters.conditional.tokens import full_precision


class Router(nn.Module):
    """x̄: (batch, in) -> (batch, outputs).

    Args:
        in_features: width of what it sees.
        hidden: width of its middle.
        outputs: number of logits.
        initial: logit of every output at first, on average over inputs.
        spread: size of the output weights at first; 0 gives all inputs the same logits.
    """

    def __init__(
        self, in_features: int, hidden: int, outputs: int = 1, *, initial: float = 0.0, spread: float = 0.0
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(hidden, in_features))
        self.down_bias = nn.Parameter(torch.zeros(hidden))
        self.up = nn.Parameter(torch.zeros(outputs, hidden))
        self.up_bias = nn.Parameter(torch.full((outputs,), initial))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        if spread:
            nn.init.normal_(self.up, std=spread)

    def forward(self, pooled: Tensor) -> Tensor:
        """See the class."""
        with full_precision(pooled.device):
            seen = functional.layer_norm(pooled.to(self.down.dtype), pooled.shape[-1:])
            middle = functional.gelu(functional.linear(seen, self.down, self.down_bias))
            return functional.linear(middle, self.up, self.up_bias)


def router_cost(in_features: int, hidden: int, outputs: int = 1) -> int:
    """Its parameters."""
    return hidden * (in_features + 1) + outputs * (hidden + 1)


def logit(chance: float) -> float:
    """log(p / (1 - p)); minus infinity at 0 and below, infinity at 1 and above."""
    if not 0 < chance < 1:
        return math.inf if chance >= 1 else -math.inf
    return math.log(chance) - math.log1p(-chance)


def opened(logits: Tensor, threshold: float) -> Tensor:
    """Where the probability is above the threshold.

    Logits are compared, because in float32 σ(17) is 1 already and inputs could not be told apart any more.
    """
    return logits > logit(threshold)


def stacked_logits(routers: Mapping[str, Router], seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What every router says of its own inputs; routers of one shape in one go.

    Args:
        routers: name -> router.
        seen: name -> (batch, in), the same batch for all.

    Returns:
        name -> (batch, outputs).
    """
    shapes: dict[tuple[torch.Size, torch.Size], list[str]] = {}
    for name, router in routers.items():
        shapes.setdefault((router.down.shape, router.up.shape), []).append(name)
    found: dict[str, Tensor] = {}
    for names in shapes.values():
        group = [routers[name] for name in names]
        found |= dict(zip(names, _stacked(group, [seen[name] for name in names]), strict=True))
    return found


def _stacked(group: Sequence[Router], seen: Sequence[Tensor]) -> Tensor:
    """(routers, batch, outputs) for routers of one shape."""
    with full_precision(seen[0].device):
        x = torch.stack(list(seen)).to(group[0].down.dtype)
        x = functional.layer_norm(x, x.shape[-1:])
        down, up = (torch.stack([getattr(router, part) for router in group]) for part in ("down", "up"))
        down_bias, up_bias = (
            torch.stack([getattr(router, part) for router in group])[:, None] for part in ("down_bias", "up_bias")
        )
        middle = functional.gelu(torch.baddbmm(down_bias, x, down.mT))
        return torch.baddbmm(up_bias, middle, up.mT)
