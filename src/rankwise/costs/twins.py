"""What a model is compared with: its frozen base, plain LoRA of the same ranks, and that LoRA merged.

Copies share the weights of the base model where nothing changes them, so that several fit in memory.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear
from torch import nn

from rankwise.adapters.attach import ADAPTER, adapted_layers, attach_lora
from rankwise.adapters.fused import FusedLinear, fuse
from rankwise.adapters.patterns import set_patterns

UNMERGEABLE = (AttributeError, NotImplementedError, ValueError, TypeError)
"""What PEFT raises where it cannot merge."""


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules around the same weights."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


@torch.no_grad()
def lora_twin(base: nn.Module, ranks: Mapping[str, int]) -> PeftModel:
    """Plain LoRA on `base`, which keeps its weights and is wrapped.

    Its factors are random: what they are worth is of no account here, but they are not zero, so that merging them
    makes weights of its own.

    Args:
        base: without adapters.
        ranks: components per module, by name in the base model; modules of rank 0 are left out.
    """
    live = {name: rank for name, rank in ranks.items() if rank}
    config = LoraConfig(lora_dropout=0.0)
    set_patterns(config, live, {name: float(rank) for name, rank in live.items()})
    twin = attach_lora(base, live, config=config, seed=0)
    generator = torch.Generator().manual_seed(0)
    for layer in adapted_layers(twin).values():
        b = layer.lora_B[ADAPTER].weight
        b.copy_(torch.randn(b.shape, generator=generator) * 1e-3)
    return twin.eval()


def merged(model: PeftModel) -> nn.Module:
    """A copy of the model with the adapter merged, and weights of its own.

    What cannot be unloaded, because it goes on deciding (which blocks an input skips), is merged and stays.

    Raises:
        ValueError, AttributeError, NotImplementedError, TypeError: PEFT cannot merge this type.
    """
    made = copy.deepcopy(model)
    try:
        found: nn.Module = made.merge_and_unload()
    except ValueError as error:
        try:
            made.merge_adapter()
        except UNMERGEABLE:
            raise error from None
        found = made
    return found.eval()


def use_fused(model: PeftModel) -> Callable[[], None]:
    """A function that gives plain LoRA layers this package's forward pass."""
    return lambda: fuse(model)


def use_stock(model: PeftModel) -> Callable[[], None]:
    """A function that gives them PEFT's back."""

    def stock() -> None:
        for layer in adapted_layers(model).values():
            if type(layer) is FusedLinear:
                layer.__class__ = Linear

    return stock
