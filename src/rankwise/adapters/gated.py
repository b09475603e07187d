"""A gate in the rank dimension of a stock PEFT LoRA layer.

PEFT computes `lora_B(lora_A(x)) · scaling` and merges `lora_B.weight @ lora_A.weight`. A `GatedLinear` in the place of
`lora_A` therefore puts a learned factor between the two without touching anything else of PEFT: every layer type
(quantised ones too), mixed batches, merging and conversion go through these two ways in.

- In `forward` the gate multiplies the `rank` outputs, not the `rank x in` weight.
- `weight`, read from outside, is the folded weight `gate · A`, and so is what `state_dict` holds: saved anywhere, by
  anybody, the adapter is plain LoRA. The raw factors are what `named_parameters` yields.
"""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from rankwise.adapters.attach import ADAPTER, adapted_layers


class GatedLinear(nn.Linear):
    """`x -> gate * (x Aᵀ)`, A: (rank, in), gate: (rank,) with `per_component`, else (1,).

    Args:
        linear: the plain layer whose weight becomes the raw A (the same Parameter).
        initial: value every gate starts from.
        per_component: one gate per rank-1 component, or one for the whole module.
    """

    def __init__(self, linear: nn.Linear, *, initial: float, per_component: bool) -> None:
        nn.Module.__init__(self)  # not Linear's, which would draw a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        raw = linear._parameters["weight"]
        assert raw is not None
        self._parameters["weight"] = raw
        self.register_parameter("bias", None)
        count = linear.out_features if per_component else 1
        self.gate = nn.Parameter(torch.full((count,), initial, dtype=raw.dtype, device=raw.device))
        self.gate.requires_grad_(raw.requires_grad)
        self.per_component = per_component

    @property
    def raw(self) -> nn.Parameter:
        """A as it is trained, without the gate."""
        parameter = self._parameters["weight"]
        assert parameter is not None
        return parameter

    @property
    @torch.no_grad()
    def weight(self) -> Tensor:  # type: ignore[override] # read by PEFT where it merges, converts or asks for the dtype
        """`gate · A`, a new tensor without a graph."""
        return self.raw * self.gate[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., rank)."""
        return functional.linear(x, self.raw) * self.gate

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """A plain adapter carries no gates: they become 1."""
        with torch.no_grad():
            self.gate.fill_(1.0)
        super()._load_from_state_dict({**state_dict, f"{prefix}gate": self.gate.data}, prefix, *args)


def add_gates(model: PeftModel, *, initial: float, per_component: bool) -> None:
    """Put a gate into every adapted layer of `model`."""
    for layer in adapted_layers(model).values():
        layer.lora_A[ADAPTER] = GatedLinear(layer.lora_A[ADAPTER], initial=initial, per_component=per_component)


def gate_of(layer: LoraLayer) -> GatedLinear | None:
    """The gated `lora_A` of a layer, if it has one."""
    linear = layer.lora_A[ADAPTER]
    return linear if isinstance(linear, GatedLinear) else None
