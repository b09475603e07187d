"""Adding an adapter to the weights of its base model: W' = W + B A, computed in float32, rounded once to W's dtype."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.adapters.attach import ADAPTER
from rankwise.adapters.pairs import Pair
from rankwise.errors import ConfigError, Finding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def merged_copy(model: PeftModel, pairs: Mapping[str, Pair]) -> nn.Module:
    """A copy of the base model with `pairs` merged and our adapter's trained head in place; `model` stays as it is.

    Raises:
        ConfigError: see `merge_into`.
    """
    check_mergeable(model.base_model.model, pairs)
    twin = copy.deepcopy(model)
    twin.set_adapter(ADAPTER)
    base: nn.Module = twin.unload()
    merge_into(base, pairs)
    return base


@torch.no_grad()
def merge_into(model: nn.Module, pairs: Mapping[str, Pair]) -> None:
    """Add every pair to its module's weight, in place.

    Raises:
        ConfigError: a module is missing, its weight is quantised or tied to another, or the result is not finite.
    """
    check_mergeable(model, pairs)
    for name, pair in pairs.items():
        if pair.rank == 0:
            continue
        module = model.get_submodule(name)
        weight: Any = module.weight
        delta = pair.b.to(weight.device, torch.float32) @ pair.a.to(weight.device, torch.float32)
        merged = weight.float() + (delta.T if isinstance(module, Conv1D) else delta)
        if not torch.isfinite(merged).all():
            raise _refuse(f"merging {name} gives weights that are not finite; is the checkpoint damaged?")
        weight.copy_(merged)


def check_mergeable(model: nn.Module, pairs: Mapping[str, Pair]) -> None:
    """Look at every weight that would change before any does.

    A weight that two modules share cannot be merged: its twin would change with it, which the adapter does not do.
    (Untying is no way out in general: T5 for one also scales its output by whether the two are tied.)

    Raises:
        ConfigError: see `merge_into`.
    """
    live = {name: pair for name, pair in pairs.items() if pair.rank > 0}
    for name, pair in live.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise _refuse(f"{type(model).__name__} has no module {name}; is this the adapter's base model?") from None
        module = getattr(module, "base_layer", module)
        _check_weight(name, module, getattr(module, "weight", None), pair)
    refuse_tied(model, live)


def refuse_tied(model: nn.Module, names: Iterable[str]) -> None:
    """Stop if a module's weight is another module's too.

    Raises:
        ConfigError: with the name of that other module.
    """
    users: dict[int, list[str]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(key.replace(".base_layer.", ".").removesuffix(".weight"))
    for name in names:
        for sharing in users.values():
            if name in sharing and len(sharing) > 1:
                twin = next(other for other in sharing if other != name)
                raise _refuse(
                    f"{name} shares its weight with {twin} (tied weights): merging would change both. Use the adapter "
                    "unmerged ('compact' or 'uniform')"
                )


def add_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put a checkpoint's further tensors (the trained head) into the model, in place.

    Raises:
        ConfigError: the model has no tensor of that name and shape.
    """
    own = model.state_dict()
    for name, value in tensors.items():
        if name not in own or own[name].shape != value.shape:
            there = f"is {tuple(own[name].shape)}" if name in own else "does not exist"
            raise _refuse(f"the checkpoint's {name} is {tuple(value.shape)}, in {type(model).__name__} it {there}")
    model.load_state_dict(dict(tensors), strict=False)


def save_model(model: nn.Module, folder: Path, tokenizer: "PreTrainedTokenizerBase | None" = None) -> None:
    """Write a Transformers folder, with the tokenizer if there is one."""
    model.save_pretrained(str(folder))  # type: ignore[operator]
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))


def _check_weight(name: str, module: nn.Module, weight: Tensor | None, pair: Pair) -> None:
    if (
        not isinstance(module, nn.Linear | Conv1D)
        or weight is None
        or weight.dtype not in FLOATS
        or type(weight) not in (nn.Parameter, Tensor)
        or type(weight.data) is not Tensor
    ):
        raise _refuse(
            f"{name} is quantised or no linear layer ({type(module).__name__}): merging would have to round ΔW to its "
            "grid. Merge into the unquantised base model, or use the adapter unmerged ('compact' or 'uniform')"
        )
    shape = (pair.b.shape[0], pair.a.shape[1])
    expected = shape[::-1] if isinstance(module, Conv1D) else shape
    if tuple(weight.shape) != expected:
        raise _refuse(
            f"{name}: the adapter is for a weight of {shape[0]} x {shape[1]}, this model has "
            f"{tuple(weight.shape)}; is this its base model?"
        )


def _refuse(message: str) -> ConfigError:
    return ConfigError("export", [Finding("form", f"cannot merge: {message}")])
