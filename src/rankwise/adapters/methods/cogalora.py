"""CoGaLoRA: every adapter has a router that decides, per example, whether it is used at all.

See `adapters.conditional.cogalora` for the layer and `adapters.conditional_method` for how gates are trained. The
share of open gates is brought to `active`; an adapter whose gate is closed costs its router alone, and nothing at all
with one shared router. Gating cannot make the whole model much cheaper: adapters are one or two percent of its compute.
"""

from collections import defaultdict
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.conditional.cogalora import CogaloraPeftConfig
from rankwise.adapters.conditional.router import Router, router_cost, stacked_logits
from rankwise.adapters.conditional.tuner import ROUTER
from rankwise.adapters.conditional_method import MEASURED, ConditionalConfig, ConditionalMethod, measured_examples
from rankwise.adapters.contract import METHODS, Batches, refuse_impossible
from rankwise.adapters.lora_method import lora_config
from rankwise.adapters.pairs import Pair, fold
from rankwise.allocation.budget import Target


@METHODS.register("cogalora")
class CogaloraConfig(ConditionalConfig):
    """A router per module opens or closes its adapter for every example; the share that is open meets a target."""

    name: Literal["cogalora"] = "cogalora"
    router: Literal["module", "shared"] = Field(
        default="module",
        description="`module`: a router per module, on its own input; `shared`: one for all, on the first one's input",
    )

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Cogalora":
        """Wrap the model with gated adapters.

        Raises:
            ConfigError: a setting makes no sense for `total_steps`.
            BudgetError: routers leave too little of the budget for ranks.
        """
        refuse_impossible(self, total_steps)
        return Cogalora(model, self, total_steps=total_steps, seed=seed)


@final
class Cogalora(ConditionalMethod):
    """Gated adapters at the uniform allocation of what routers leave of the budget."""

    config: CogaloraConfig

    def peft_config(self, target: Target) -> CogaloraPeftConfig:
        """See `ConditionalMethod.peft_config`."""
        plain = lora_config(self.config, self.uniform_ranks(target))
        return CogaloraPeftConfig(
            lora_dropout=plain.lora_dropout,
            r=plain.r,
            lora_alpha=plain.lora_alpha,
            rank_pattern=plain.rank_pattern,
            alpha_pattern=plain.alpha_pattern,
            router=self.config.router,
            router_hidden=self.config.router_hidden,
        )

    def overhead(self) -> int:
        """Routers."""
        hidden, matrices = self.config.router_hidden, list(self.matrices.values())
        if self.config.router == "shared":
            return router_cost(matrices[0].in_features, hidden, len(matrices))
        return sum(router_cost(matrix.in_features, hidden) for matrix in matrices)

    def logits(self) -> Tensor:
        """See `ConditionalMethod.logits`."""
        return self._routed({name: torch.cat(parts) for (name, _), parts in self.context.recorded.items()})

    @torch.no_grad()
    def observe(self, batches: Batches) -> Tensor:
        """See `ConditionalMethod.observe`."""
        names = list(self._routers())
        parts: dict[str, list[Tensor]] = defaultdict(list)
        context = self.context
        for _ in measured_examples(batches, self.model, MEASURED):
            for name in names:
                parts[name].append(context.seen[name, ADAPTER])
        return self._routed({name: torch.cat(each) for name, each in parts.items()})

    def average_pairs(self) -> dict[str, Pair]:
        """ΔW = ḡ · s · B A with ḡ the share of training examples that open the gate."""
        usage = self.peft.usage or {}
        return {
            name: fold(
                layer.lora_A[ADAPTER].weight.detach(),
                layer.lora_B[ADAPTER].weight.detach(),
                layer.scaling[ADAPTER] * usage[name],
            )
            for name, layer in adapted_layers(self.model).items()
        }

    def _routers(self) -> dict[str, Router]:
        layers = adapted_layers(self.model)
        found = {name: getattr(layer, ROUTER, {}) for name, layer in layers.items()}
        return {name: routers[ADAPTER] for name, routers in found.items() if ADAPTER in routers}

    def _routed(self, seen: dict[str, Tensor]) -> Tensor:
        """(examples, modules) for the routers' inputs, by module."""
        routers = self._routers()
        if self.config.router == "shared":
            ((name, router),) = routers.items()
            logits: Tensor = router(seen[name])
            return logits
        each = stacked_logits({name: routers[name] for name in self.rank_pattern()}, seen)
        return torch.stack([each[name][:, 0] for name in self.rank_pattern()], dim=1)
