"""PEFT's LoRA layer with a faster forward pass where nothing out of the ordinary is asked of it.

A layer is given the class `FusedLinear`, a subclass of its own: names, parameters, saving, merging and several adapters
stay PEFT's. Its `forward` hands over to PEFT's in every case but the plain one: our adapter alone, active and not
merged, a frozen dense base layer, no dropout, one dtype, no autocast, nobody listening to the modules inside.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.gated import gate_of
from rankwise.engine.lora_linear import lora_linear


class FusedLinear(Linear):
    """See the module."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - PEFT's signature
        """x: (..., in) -> (..., out)."""
        if args or kwargs or not self._is_plain(x):
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        base, gated, b = self.base_layer, gate_of(self), self.lora_B[ADAPTER].weight
        a = self.lora_A[ADAPTER].weight if gated is None else gated.raw
        gate = None if gated is None else gated.gate
        return lora_linear(x, base.weight, base.bias, a, b, gate, self.scaling[ADAPTER])

    def _is_plain(self, x: Tensor) -> bool:
        if (
            self._disable_adapters
            or self.merged_adapters
            or self.active_adapters != [ADAPTER]
            or ADAPTER not in self.r
            or self.lora_variant
            or self.lora_bias[ADAPTER]
            or torch.is_autocast_enabled(x.device.type)
        ):
            return False
        base, b = self.base_layer, self.lora_B[ADAPTER]
        dropout = self.lora_dropout[ADAPTER]
        return (
            type(base) is nn.Linear
            and (isinstance(dropout, nn.Identity) or not self.training)
            and not (base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad))
            and x.dtype == base.weight.dtype == b.weight.dtype
            and x.device == base.weight.device == b.weight.device
            and not any(_has_hooks(module) for module in (base, self.lora_A[ADAPTER], b, dropout))
        )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def fuse(model: PeftModel) -> None:
    """Give every plain LoRA layer of `model` the faster forward pass."""
    for layer in adapted_layers(model).values():
        if type(layer) is Linear and type(layer.get_base_layer()) is nn.Linear:
            layer.__class__ = FusedLinear
