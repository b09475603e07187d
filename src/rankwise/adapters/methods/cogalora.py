"""CoGaLoRA: every adapter has a router that decides, per example, whether it is used at all.

See `adapters.conditional.cogalora` for the layer and `adapters.conditional_method` for how gates are trained. The
share of open gates is brought to `active`; an adapter whose gate is closed costs its router alone, and nothing at all
with one shared router. Gating cannot make the whole model much cheaper: adapters are one or two percent of its compute.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.conditional.cogalora import CogaloraPeftConfig
from rankwise.adapters.conditional.drop import drop_unused, take_off
from rankwise.adapters.conditional.router import Router, router_cost, stacked_logits
from rankwise.adapters.conditional.tuner import ROUTER
from rankwise.adapters.conditional_method import ConditionalConfig, ConditionalMethod
from rankwise.adapters.contract import METHODS, Batches, refuse_impossible
from rankwise.adapters.deciding_method import measured_examples, sample_size
from rankwise.adapters.distributed import all_mean
from rankwise.adapters.lora_method import lora_config
from rankwise.adapters.pairs import Pair, fold
from rankwise.allocation.budget import Target
from rankwise.errors import TrainingError

RATE = 0.2
"""How fast the unit of the temperature follows the logits."""
HARDNESS = 0.9
"""How much colder than the draws, at the end, is what the price is set by."""
NARROWEST = 0.01
"""It is never smaller."""


@METHODS.register("cogalora")
class CogaloraConfig(ConditionalConfig):
    """A router per module opens or closes its adapter for every example; the share that is open meets a target."""

    name: Literal["cogalora"] = "cogalora"
    router: Literal["module", "shared"] = Field(
        default="module",
        description="`module`: a router per module, on its own input; `shared`: one for all, on the first one's input",
    )
    temperature: tuple[float, float] = Field(
        default=(2.0, 0.1),
        description="what routers' logits are divided by in training, at first and at the end, in units of their "
        "standard deviation: the smaller, the nearer are draws to the hard gates of inference",
    )
    drop_below: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="when training ends, take the adapter off modules that at most this share of the training split "
        "opens (0: those never used); what that changes on it is measured. By default none is taken off",
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
    spread = 0.0
    """Standard deviation of the gates' logits, smoothed over steps: the unit of the temperature. 0: not known yet."""

    def before_optimizer_step(self, step: int) -> None:
        """See `ConditionalMethod.before_optimizer_step`; the unit of the temperature follows the logits."""
        if self._logits is not None:
            found = self._logits.double().std(correction=0)
            all_mean([found])
            wide = max(float(found), NARROWEST)
            self.spread = self.spread + RATE * (wide - self.spread) if self.spread else wide
        super().before_optimizer_step(step)

    @property
    def cuts_at_the_end(self) -> bool:
        """See `Method.cuts_at_the_end`."""
        return self.config.drop_below is not None

    def gate_biases(self) -> list[Tensor]:
        """See `ConditionalMethod.gate_biases`."""
        return [router.up_bias for router in self._routers().values()]

    def price_temperature(self) -> float:
        """See `ConditionalMethod.price_temperature`; towards the end the share is that of hard gates."""
        return self.context.temperature * (1 - HARDNESS * self._progress(self.step + 1))

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
    def conclude(self, batches: Batches) -> None:
        """See `ConditionalMethod.conclude`; takes adapters off, if `drop_below` says so."""
        super().conclude(batches)
        if self.config.drop_below is None:
            return
        before, self.peft.usage = self._measure(batches)
        gone = drop_unused(self.model, below=self.config.drop_below)
        after, _ = self._measure(batches)
        self.peft.dropped = {"modules": gone, "before": before, "after": after}

    def state_dict(self) -> dict[str, Tensor]:
        """See `ConditionalMethod.state_dict`; with the unit of the temperature, and what was taken off."""
        dropped = torch.tensor(list(json.dumps(self.peft.dropped).encode()), dtype=torch.uint8)
        spread = torch.tensor(self.spread, dtype=torch.float64)
        return super().state_dict() | {"rankwise.spread": spread, "rankwise.dropped": dropped}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `ConditionalMethod.load_state_dict`; adapters that had been taken off are taken off again."""
        held = {name for name in self.matrices if f"base_model.model.{name}.lora_A.{ADAPTER}.weight" in state}
        live = self.live()
        if back := held.difference(live):
            raise TrainingError(
                f"{self.config.name}: the state to go on from holds {len(back)} adapters that were taken off since, "
                f"first: {min(back)}; build the method anew"
            )
        take_off(self.model, [name for name in live if name not in held])
        self.spread = float(state["rankwise.spread"])
        self.peft.dropped = json.loads(bytes(state["rankwise.dropped"].tolist()))
        super().load_state_dict(state)

    @torch.no_grad()
    def observe(self, batches: Batches) -> Tensor:
        """See `ConditionalMethod.observe`."""
        names = list(self._routers())
        parts: dict[str, list[Tensor]] = defaultdict(list)
        context = self.context
        for _batch, _output in measured_examples(batches, self.model, sample_size(self.total_steps)):
            for name in names:
                parts[name].append(context.seen[name, ADAPTER])
        return self._routed({name: torch.cat(each) for name, each in parts.items()})

    def static_pairs(self) -> dict[str, Pair]:
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

    def _at(self, step: int) -> None:
        super()._at(step)
        self.context.temperature *= self.spread or 1.0

    def _measure(self, batches: Batches) -> tuple[dict[str, float], dict[str, float]]:
        """Over the whole training split: its size, loss and accuracy (of classifiers), and how often gates open."""
        count, loss, right, classified = 0, 0.0, 0, True
        opened = dict.fromkeys(self.live(), 0.0)
        for batch, output in measured_examples(batches, self.model):
            labels, logits = batch["labels"], output.logits
            count += len(labels)
            loss += float(output.loss) * len(labels)
            classified = classified and labels.dim() == 1 and not labels.is_floating_point() and logits.shape[-1] > 1
            right += int((logits.argmax(-1) == labels).sum()) if classified else 0
            for name in opened:
                opened[name] += float(self.context.kept[name, ADAPTER].sum())
        found = {"examples": count, "loss": loss / count} | ({"accuracy": right / count} if classified else {})
        return found, {name: total / count for name, total in opened.items()}

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
        each = stacked_logits(routers, seen)
        return torch.stack([each[name][:, 0] for name in routers], dim=1)
