"""RAD-LoRA's layer: a depth gate and a rank per input, and factors that are made or looked up for it.

    y_i = W x_i + s · Σ_j z_i m_ij c_ij · b_j (a_j · x_i) ,    j = 1 … r

z_i ∈ {0, 1} is the gate (as in `conditional.cogalora`), m_ij the mask of a nested rank (`conditional.rad_ranks`) and
c_ij = 1 + h_ij a coefficient per component, with h from the same router as gate and rank, 0 at first. a_j and b_j are
components of shared banks (`conditional.rad_bank`), or written by a network for each input (`conditional.rad_hyper`,
where c = 1). While adapters warm up gates are open, and ranks uniform, so that every prefix of components learns to
stand alone (Rippel et al. 2014, arXiv 1402.0915; DyLoRA, arXiv 2210.07558).

A router's outputs: [gate, rank 1 … rank r, and for banks h_1 … h_r].
"""

from typing import Any, NamedTuple, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from rankwise.adapters.conditional.cogalora import straight_through
from rankwise.adapters.conditional.context import Context
from rankwise.adapters.conditional.rad_cache import DecisionCache
from rankwise.adapters.conditional.rad_config import RadloraPeftConfig
from rankwise.adapters.conditional.rad_hyper import HYPER, add_generated
from rankwise.adapters.conditional.rad_ranks import drawn_mask, rank_chances, settled_ranks, uniform_mask
from rankwise.adapters.conditional.router import opened
from rankwise.adapters.conditional.tuner import ROUTER, ConditionalVariant, add_term


class Decision(NamedTuple):
    """What a layer decided for a batch."""

    weights: Tensor
    """z m c, (batch, r)."""
    ranks: Tensor | None
    """(batch,) integers, components in use, 0 for closed gates; None in training."""
    seen: Tensor | None
    """norm(x̄), (batch, in), where factors are written per input."""


class RadloraVariant(ConditionalVariant):
    """One layer under one adapter name.

    Args:
        context: of the model.
        config: of the adapter.
        name: full module name in the base model.
        cache: of decisions, if there is one.
    """

    config: RadloraPeftConfig

    def __init__(
        self, context: Context, config: RadloraPeftConfig, name: str, cache: DecisionCache | None = None
    ) -> None:
        super().__init__(context, config, name)
        self.cache = cache

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:  # noqa: ANN401 - PEFT's signature
        """See `ConditionalVariant.forward`."""
        adapter = active_adapter
        made = self.context.decision(
            (self.name, adapter), lambda: self._decide(module, adapter, x), training=module.training
        )
        weights, ranks, seen = cast(Decision, made)
        x, scaling = module.lora_dropout[adapter](x), module.scaling[adapter]
        if seen is not None:
            return add_generated(result, x, getattr(module, HYPER)[adapter], seen, weights, ranks, scaling)
        a, b = (side[adapter].weight.to(x.device) for side in (module.lora_A, module.lora_B))
        return add_term(result, x, a, b, weights, scaling, ranks)

    def used_ranks(self, decision: Decision, rank: int) -> Tensor:
        """See `ConditionalVariant.used_ranks`."""
        assert decision.ranks is not None
        return decision.ranks

    def _decide(self, module: LoraLayer, adapter: str, x: Tensor) -> Decision:
        if module.training:
            return self._drawn(module, adapter, self.context.pool(x, adapter))
        known = self._known(module, adapter)
        missing = [i for i, entry in enumerate(known) if self.name not in entry]
        if not known or missing:
            pooled = self.context.pool(x, adapter)
            self.context.record((self.name, adapter), pooled, training=False)
            fresh = self.settled(module, adapter, pooled if len(missing) == len(known) else pooled[missing])
            if not known:
                return fresh
            for row, i in enumerate(missing):
                known[i][self.name] = [None if part is None else part[row].detach().clone() for part in fresh]
        weights, ranks, seen = zip(*(entry[self.name] for entry in known), strict=True)
        return Decision(torch.stack(weights), torch.stack(ranks), None if seen[0] is None else torch.stack(seen))

    def settled(self, module: LoraLayer, adapter: str, pooled: Tensor) -> Decision:
        """The decision in inference for x̄, (batch, in)."""
        outputs = getattr(module, ROUTER)[adapter](pooled)
        ranks, weights = decided(outputs, module.r[adapter], self.config)
        return Decision(weights, ranks, self._seen(module, adapter, pooled))

    def _drawn(self, module: LoraLayer, adapter: str, pooled: Tensor) -> Decision:
        rank, context = module.r[adapter], self.context
        outputs = getattr(module, ROUTER)[adapter](pooled)
        if context.all_open:
            weights = uniform_mask(len(pooled), rank, outputs)
        else:
            context.record((self.name, adapter), pooled, training=True)
            gates = straight_through(torch.sigmoid((outputs[:, 0] - context.price) / context.temperature))
            logits = outputs[:, 1 : 1 + rank]
            mask = drawn_mask(rank_chances(logits, self.config.rank_price, self.config.temperature))
            weights = gates[:, None] * mask
        return Decision(weights * coefficients(outputs, rank), None, self._seen(module, adapter, pooled))

    def _seen(self, module: LoraLayer, adapter: str, pooled: Tensor) -> Tensor | None:
        if self.config.generator != "hyper":
            return None
        normalised: Tensor = getattr(module, HYPER)[adapter].normalise(pooled)
        return normalised

    def _known(self, module: LoraLayer, adapter: str) -> list[dict[str, Any]]:
        """What the cache has for these examples; empty where it is not asked: it keeps no graphs."""
        if self.cache is None or self.context.recording or torch.is_grad_enabled():
            return []
        rows = self.context.rows.get(adapter)
        adapters = (adapter,) if rows is not None else tuple(module.active_adapters)
        return self.cache.entries(adapters, rows) or []


def router_outputs(rank: int, generator: str) -> int:
    """Gate, ranks, and coefficients where components come from a bank."""
    return 1 + rank * (2 if generator == "bank" else 1)


def coefficients(outputs: Tensor, rank: int) -> Tensor:
    """c, (…, r), or ones of that shape, from a router's outputs (…, 1 + r [+ r])."""
    if outputs.shape[-1] == 1 + rank:
        return torch.ones_like(outputs[..., 1:])
    return 1 + outputs[..., 1 + rank :]


def decided(outputs: Tensor, rank: int, config: RadloraPeftConfig) -> tuple[Tensor, Tensor]:
    """(ranks in use, 0 where the gate is closed; weights z m c) from a router's outputs, in inference.

    Args:
        outputs: (…, 1 + r [+ r]).
        rank: r.
        config: threshold, price and temperature.
    """
    ranks = settled_ranks(outputs[..., 1 : 1 + rank], config.rank_price, config.temperature)
    ranks = ranks * opened(outputs[..., 0], config.threshold)
    used = torch.arange(rank, device=outputs.device) < ranks[..., None]
    return ranks, coefficients(outputs, rank) * used
