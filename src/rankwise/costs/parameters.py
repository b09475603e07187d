"""Parameters by what they are for, read off a living model of any PEFT type.

PEFT keeps an adapter's parameters in containers on its layers (`lora_A`, `lora_B`, …), one entry per adapter. Those
that are not PEFT's own belong to adapters that decide per input: routers, low-rank bypasses around blocks, and banks or
networks that make factors from an input.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn import Parameter

from rankwise.adapters.attach import head_modules

SAVED_COPIES = "modules_to_save"


class Part(Enum):
    """What a parameter is for."""

    BASE = "base"
    HEAD = "head"
    FACTORS = "factors"
    ROUTERS = "routers"
    GENERATORS = "generators"


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    `base` is the frozen model (a quantised matrix counts in x out), `head` what is trained whole beside the adapter,
    `factors` low-rank factors and whatever else a PEFT type has of its own, `routers` what decides, `generators` what
    makes factors from an input: banks and networks. `trained` is all of them but the base.
    """

    base: int
    head: int
    factors: int
    routers: int
    generators: int

    @property
    def adapter(self) -> int:
        """Everything that the adapter added."""
        return self.factors + self.routers + self.generators

    @property
    def trained(self) -> int:
        """Adapter and head."""
        return self.adapter + self.head

    def as_dict(self) -> dict[str, int]:
        """With the sums."""
        return asdict(self) | {"adapter": self.adapter, "trained": self.trained}


def parameters_of(model: nn.Module) -> Parameters:
    """Count the parameters of a PEFT model, or of a model without adapters; tied ones once.

    The copy of a head that PEFT keeps beside the trained one is not counted: no checkpoint holds it.
    """
    sizes = _packed_sizes(model)
    counts = dict.fromkeys(Part, 0)
    for part, parameter in sorted_parameters(model):
        counts[part] += sizes.get(id(parameter), parameter.numel())
    return Parameters(**{part.value: count for part, count in counts.items()})


def sorted_parameters(model: nn.Module) -> Iterator[tuple[Part, Parameter]]:
    """Every parameter once, with what it is for."""
    replaced = _replaced_heads(model)
    own, ignored = _containers(model), _bookkeeping(model)
    root = model.get_base_model() if isinstance(model, PeftModel) else model
    heads = tuple(f"{name}." for name in head_modules(root))
    inner = {id(p): name for name, p in root.named_parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in replaced and not ignored.intersection(name.split(".")):
            yield _part(name, inner.get(id(parameter)), own, heads), parameter


def _part(name: str, inner: str | None, own: Mapping[str, Part], heads: tuple[str, ...]) -> Part:
    """By the names of the containers that a parameter lies in; `inner` is its name in the base model, if it has one."""
    pieces = name.split(".")
    if SAVED_COPIES in pieces:
        return Part.HEAD
    if inner is None:  # prompts and their encoders lie beside the base model
        return Part.FACTORS
    for piece in pieces:
        if piece in own:
            return own[piece]
    return Part.HEAD if f"{inner}.".startswith(heads or ("\0",)) else Part.BASE


def _containers(model: nn.Module) -> dict[str, Part]:
    """Names of the containers on adapted layers, with what they hold."""
    found: dict[str, Part] = {}
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            plain = type(layer).adapter_layer_names
            if isinstance(layer, LoraLayer):
                plain = (*plain, *LoraLayer.adapter_layer_names, "lora_magnitude_vector")
            for name in (*plain, *layer.adapter_layer_names):
                found.setdefault(name, Part.FACTORS if name in plain else _own_kind(name))
    return found


def _own_kind(container: str) -> Part:
    """What a container holds that is not PEFT's own."""
    if "router" in container:
        return Part.ROUTERS
    return Part.FACTORS if "bypass" in container else Part.GENERATORS


def _bookkeeping(model: nn.Module) -> set[str]:
    """Names of frozen parameters that only remember a setting: AdaLoRA's `ranknum`."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return {
        name
        for layer in layers
        for name in layer.other_param_names
        if isinstance(getattr(layer, name, None), nn.Module)
    }


def _replaced_heads(model: nn.Module) -> set[int]:
    """Parameters of heads that a trained copy stands in for."""
    wrappers = (module for module in model.modules() if isinstance(module, ModulesToSaveWrapper))
    return {id(p) for wrapper in wrappers for p in wrapper.original_module.parameters()}


def _packed_sizes(model: nn.Module) -> dict[int, int]:
    """Quantised matrices by id: in x out, however their bits are packed."""
    return {
        id(module.weight): module.in_features * module.out_features
        for module in model.modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    }
