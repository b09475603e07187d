"""Uniform LoRA (Hu et al. 2021, arXiv 2106.09685): the same rank everywhere. The reference of every comparison."""

from typing import Literal, final

from torch import nn

from rankwise.adapters.contract import METHODS, AdapterConfig
from rankwise.adapters.lora_method import LoraMethod


@METHODS.register("lora")
class LoraConfig(AdapterConfig):
    """Uniform LoRA at the budget."""

    name: Literal["lora"] = "lora"

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Lora":
        """Wrap the model at uniform rank."""
        return Lora(model, self, seed=seed)


@final
class Lora(LoraMethod):
    """Nothing to decide: ranks stay what they are."""
