"""CoGaLoRA as a PEFT type: every adapter has a gate that opens or stays closed for a whole example.

    y_i = W x_i + z_i · s · B A x_i ,    z_i ∈ {0, 1},   P(z_i = 1) = σ((router(x̄_i) - b) / T)

b is the price of being open and T a temperature, both the training method's (0 and 1 without one). In training z_i is
drawn, and passed straight through: ∂z_i/∂p_i = 1 (Bengio, Léonard & Courville 2013, arXiv 1308.3432), which is the
exact gradient of the expected loss where the loss is linear in z_i. In inference z_i = 1 where σ(router(x̄_i)) is above
the config's threshold, and rows with z_i = 0 are not computed.

`router: module` gives every module a router of its own, on its own input. `router: shared` has one, on the input of the
module that runs first, whose outputs are the gates of all: it decides once, before anything was adapted. It lies on the
first module in the order of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from rankwise.adapters.conditional.config import ConditionalPeftConfig
from rankwise.adapters.conditional.context import Context
from rankwise.adapters.conditional.register import register
from rankwise.adapters.conditional.router import Router, opened
from rankwise.adapters.conditional.tuner import ROUTER, ConditionalModel, ConditionalVariant, add_term
from rankwise.errors import TrainingError
from rankwise.registry import did_you_mean

NO_GRAPH = (
    "a shared router gets no gradient from blocks under reentrant gradient checkpointing; pass "
    "gradient_checkpointing_kwargs={'use_reentrant': False}"
)
_RESTORE = "Leave routed out, or restore what was saved with the adapter"
OPEN_AT_FIRST = 2.0
"""Logit of every gate at first, on average over inputs: open for 88 % of the examples."""
APART_AT_FIRST = 0.5
"""Size of a router's output weights at first: gates begin with logits that differ between inputs and modules."""


@dataclass
class CogaloraPeftConfig(ConditionalPeftConfig):
    """See the module.

    Args:
        router: `module` or `shared`.
        routed: with `shared`, the modules in the order of the router's outputs; filled in when the adapter is made.
        dropped: what was taken off when training ended, and what that changed on the training split.
    """

    TYPE: ClassVar[str] = "COGALORA"

    router: str = field(default="module", metadata={"help": "`module`: one per module; `shared`: one for all"})
    routed: list[str] | None = field(
        default=None, metadata={"help": "modules in the order of a shared router's outputs"}
    )
    dropped: dict[str, Any] | None = field(
        default=None, metadata={"help": "modules taken off, and loss and accuracy before and after"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.router not in ("module", "shared"):
            raise ValueError(f"router is '{self.router}'; it must be 'module' or 'shared'")
        if self.routed is None:
            return
        if self.router != "shared":
            raise ValueError(f"routed is given with router '{self.router}'; it belongs to 'shared'. Leave it out")
        if not isinstance(self.routed, list) or not all(isinstance(name, str) for name in self.routed):
            raise ValueError(f"routed is {self.routed!r}; it is a list of modules, or left out")
        if self.target_modules in (None, "all-linear"):
            return
        strange = next((name for name in self.routed if not check_target_module_exists(self, name)), None)
        if strange is not None:
            near = did_you_mean(strange, self.target_modules if isinstance(self.target_modules, set) else ())
            raise ValueError(f"routed has '{strange}', which target_modules do not match{near or '.'} {_RESTORE}")


class CogaloraVariant(ConditionalVariant):
    """One gated layer.

    Args:
        context: see `ConditionalVariant`.
        config: of the adapter.
        name: full module name in the base model.
        model: the base model, in which a shared router is looked up.
    """

    config: CogaloraPeftConfig

    def __init__(self, context: Context, config: CogaloraPeftConfig, name: str, model: nn.Module) -> None:
        super().__init__(context, config, name)
        self.model = model

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:  # noqa: ANN401 - PEFT's signature
        """See `ConditionalVariant.forward`."""
        gates = self.context.decision(
            (self.name, active_adapter), lambda: self.gates(module, active_adapter, x), training=module.training
        )
        a, b = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        x = module.lora_dropout[active_adapter](x)
        return add_term(result, x, a, b, gates[:, None], module.scaling[active_adapter])

    def used_ranks(self, decision: Tensor, rank: int) -> Tensor:
        """See `ConditionalVariant.used_ranks`."""
        return (decision * rank).long()

    def gates(self, module: LoraLayer, adapter: str, x: Tensor) -> Tensor:
        """z, (batch,): drawn and passed straight through in training, thresholded in inference."""
        if module.training and self.context.all_open:
            return x.new_ones(len(x))
        if self.config.router == "module":
            pooled = self.context.pool(x, adapter, self.name)
            self.context.record((self.name, adapter), pooled, training=module.training)
            return self._opened(getattr(module, ROUTER)[adapter](pooled)[:, 0], module.training)
        routed = self.config.routed
        assert routed
        if self.context.decides(self.name, adapter):
            if self.context.sees_no_graph:
                raise TrainingError(NO_GRAPH)
            router = getattr(self.model.get_submodule(routed[0]), ROUTER)[adapter]
            pooled = self.context.pool(x, adapter, self.name)
            self.context.record((routed[0], adapter), pooled, training=module.training)
            self.context.shared[adapter] = self._opened(router(pooled), module.training)
        return self.context.shared[adapter][:, routed.index(self.name)]

    def _opened(self, logits: Tensor, training: bool) -> Tensor:
        if not training:
            return opened(logits, self.config.threshold).to(logits.dtype)
        return straight_through(torch.sigmoid((logits - self.context.price) / self.context.temperature))


def _check_routed(routed: Sequence[str], layers: Sequence[str]) -> None:
    if strange := [name for name in routed if name not in layers]:
        near = did_you_mean(strange[0], layers) or "."
        raise ValueError(f"routed has '{strange[0]}', and the model has no adapter there{near} {_RESTORE}")
    if left := [name for name in layers if name not in routed]:
        near = did_you_mean(left[0], routed) or "."
        raise ValueError(f"routed does not have '{left[0]}', which has an adapter{near} {_RESTORE}")


def straight_through(probability: Tensor) -> Tensor:
    """A draw of 0 or 1 whose gradient with respect to its probability is 1."""
    drawn = (torch.rand_like(probability) < probability).to(probability.dtype)
    return drawn + (probability - probability.detach())


class CogaloraModel(ConditionalModel):
    """PEFT's tuner for `COGALORA`."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - PEFT's
        """PEFT's; a shared router has to have one output for each layer.

        Raises:
            ValueError: the config's `routed` names other modules than those that were adapted.
        """
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        routed = cast(CogaloraPeftConfig, self.peft_config[adapter_name]).routed
        if routed is not None:
            layers = [n for n, m in model.named_modules() if isinstance(m, LoraLayer) and adapter_name in m.r]
            _check_routed(routed, layers)

    def condition(self, layer: LoraLayer, adapter_name: str, config: ConditionalPeftConfig, name: str) -> None:
        """See `ConditionalModel.condition`."""
        config = cast(CogaloraPeftConfig, config)
        layer.lora_variant[adapter_name] = CogaloraVariant(self.context, config, name, self.model)
        outputs = 1
        if config.router == "shared":
            config.routed = config.routed or self._targets(config)
            outputs = len(config.routed)
            if name != config.routed[0]:
                return
        router = Router(layer.in_features, config.router_hidden, outputs, initial=OPEN_AT_FIRST, spread=APART_AT_FIRST)
        self.put(layer, ROUTER, adapter_name, router)

    def _targets(self, config: CogaloraPeftConfig) -> list[str]:
        """Modules that PEFT adapts, in model order."""
        found = [name for name, _ in self.model.named_modules() if self._check_target_module_exists(config, name)]
        return [name for name in found if ".base_layer" not in name and ".lora_" not in name]


register(CogaloraPeftConfig.TYPE, CogaloraPeftConfig, CogaloraModel)
