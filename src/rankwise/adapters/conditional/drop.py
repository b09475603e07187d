"""Taking a gated adapter off modules that hardly any example opens."""

from collections.abc import Mapping

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from rankwise.adapters.attach import ADAPTER
from rankwise.adapters.conditional.cogalora import CogaloraPeftConfig
from rankwise.adapters.conditional.tuner import ROUTER
from rankwise.adapters.patterns import set_patterns
from rankwise.errors import AllocationError


def drop_unused(model: PeftModel, adapter: str = ADAPTER, *, below: float = 0.0) -> list[str]:
    """Take a CoGaLoRA adapter off the modules that at most a share `below` of the training examples opens.

    That share is the config's `usage`, measured on 64 to 256 training examples when training ended, so it is an
    estimate: others may open a module that none of these did. With 0, outputs of the measured examples stay what they
    were, bit for bit; those of others can change. The module whose input a shared router reads stays, and so does the
    most used one.

    Args:
        model: carries the adapter, perhaps among others; it is changed, its config included.
        adapter: name of the adapter.
        below: a share.

    Returns:
        Names of the modules, in model order.

    Raises:
        AllocationError: the adapter is no CoGaLoRA adapter, or its usage was never measured or is that of another.
    """
    config = model.peft_config[adapter]
    if not isinstance(config, CogaloraPeftConfig):
        raise AllocationError(
            f"adapter '{adapter}' is {config.peft_type.value}, not {CogaloraPeftConfig.TYPE}: it has no gates"
        )
    if not config.usage:
        raise AllocationError(f"adapter '{adapter}' was never measured: its config holds no usage of its gates")
    usage = {name: _share(config.usage, name, adapter) for name in gated_layers(model, adapter)}
    stay = {max(usage, key=lambda name: usage[name]), *(config.routed or ())[:1]}
    gone = [name for name, share in usage.items() if share <= below and name not in stay]
    take_off(model, gone, adapter)
    return gone


def _share(usage: Mapping[str, object], name: str, adapter: str) -> float:
    share = usage.get(name)
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        what = f"says {share!r}, which is no share from 0 to 1" if name in usage else "does not name it"
        raise AllocationError(
            f"cannot tell how often adapter '{adapter}' is used on {name}: its config's usage {what}; restore the "
            "usage that was saved with the adapter, or train again"
        )
    return share


def gated_layers(model: PeftModel, adapter: str = ADAPTER) -> dict[str, LoraLayer]:
    """Full module name in the base model -> layer, for the layers that carry `adapter`, in model order."""
    modules = model.base_model.model.named_modules()
    return {name: module for name, module in modules if isinstance(module, LoraLayer) and adapter in module.r}


def take_off(model: PeftModel, names: list[str], adapter: str = ADAPTER) -> None:
    """Take the adapter off these modules; its config describes what is left.

    Where no other adapter is on a module, the base layer takes its place again.
    """
    if not names:
        return
    layers = gated_layers(model, adapter)
    for name in names:
        _remove(model, name, layers.pop(name), adapter)
    config = model.peft_config[adapter]
    ranks = {name: layer.r[adapter] for name, layer in layers.items()}
    set_patterns(config, ranks, {name: layer.lora_alpha[adapter] for name, layer in layers.items()})
    config.target_modules = set(layers)
    if config.usage:
        config.usage = {name: share for name, share in config.usage.items() if name in layers}
    if config.routed:
        _shrink(layers[config.routed[0]], adapter, [i for i, name in enumerate(config.routed) if name in layers])
        config.routed = [name for name in config.routed if name in layers]


def _remove(model: PeftModel, name: str, layer: LoraLayer, adapter: str) -> None:
    if set(layer.lora_A) == {adapter}:
        parent, _, leaf = name.rpartition(".")
        setattr(model.base_model.model.get_submodule(parent), leaf, layer.get_base_layer())
        return
    # not `layer.delete_adapter`, which would make another adapter active in place of an active one
    for container in (*layer.adapter_layer_names, *layer.other_param_names):
        if adapter in getattr(layer, container):
            del getattr(layer, container)[adapter]
    layer.lora_variant.pop(adapter, None)


def _shrink(owner: LoraLayer, adapter: str, kept: list[int]) -> None:
    """Keep these outputs of a shared router."""
    router = getattr(owner, ROUTER)[adapter]
    for part in ("up", "up_bias"):
        old = getattr(router, part)
        index = torch.tensor(kept, device=old.device)
        setattr(router, part, nn.Parameter(old.detach()[index].clone(), requires_grad=old.requires_grad))
