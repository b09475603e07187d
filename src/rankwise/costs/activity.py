"""Which adapters inputs open, and the FLOPs that follow from it by formula."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rankwise.adapters.conditional.config import ConditionalPeftConfig
from rankwise.adapters.conditional.decisions import Decisions, decisions_of
from rankwise.adapters.conditional.rad_hyper import HYPER
from rankwise.costs.flops import Batch
from rankwise.costs.formulas import adapter_flops, generator_flops


@dataclass(frozen=True)
class Activity:
    """What examples used of the adapters.

    `open` is, by module, the share of examples that used its adapter at all, `ranks` the mean number of components
    that they used, `full` all components of the module. `expected` are the FLOPs of the adapters by formula, for just
    these examples, `all_open` those with every adapter used in full: using factors, and writing them where a network
    does that for each input. `unmerged` are those of plain LoRA of the same ranks, which writes none. `decided` is what
    is decided on: `modules`, `blocks`, or nothing (None) where the adapter is the same for every input.
    """

    examples: int
    open: dict[str, float]
    ranks: dict[str, float]
    full: dict[str, int]
    expected: int
    all_open: int
    unmerged: int
    decided: str | None

    @property
    def share(self) -> float:
        """Of adapters that are used, over modules and examples."""
        return sum(self.open.values()) / len(self.open) if self.open else 0.0

    @property
    def total_rank(self) -> float:
        """Components that an example uses, summed over modules."""
        return sum(self.ranks.values())


def observe(model: nn.Module, batches: Iterable[Batch]) -> Activity:
    """Run `model` on `batches` in inference and look at the decisions; nothing is run where nothing is decided.

    Adapters of a block that an example skips are not used by it.

    Args:
        model: with LoRA layers of any kind, or none.
        batches: keyword arguments of its forward pass, on its device; every token is computed, padding too.
    """
    layers = lora_layers(model)
    each = list(batches)
    tokens = torch.tensor([length for batch in each for length in [_length(batch)] * _examples(batch)])
    used = {name: torch.full((len(tokens),), rank) for name, (_, rank) in layers.items()}
    decided = None
    if isinstance(model, PeftModel) and isinstance(model.active_peft_config, ConditionalPeftConfig):
        decisions = decisions_of(model, each)
        used |= _used(decisions, layers)
        decided = decisions.kind
    expected = unmerged = written = 0
    for name, (layer, rank) in layers.items():
        sizes = layer.in_features, layer.out_features
        expected += adapter_flops(int((tokens * used[name]).sum()), 1, *sizes) + _written(layer, used[name])
        unmerged += adapter_flops(int(tokens.sum()), rank, *sizes)
        written += _written(layer, torch.full_like(used[name], rank))
    return Activity(
        examples=len(tokens),
        open={name: float((ranks > 0).double().mean()) for name, ranks in used.items()},
        ranks={name: float(ranks.double().mean()) for name, ranks in used.items()},
        full={name: rank for name, (_, rank) in layers.items()},
        expected=expected,
        all_open=unmerged + written,
        unmerged=unmerged,
        decided=decided,
    )


def lora_layers(model: nn.Module) -> dict[str, tuple[LoraLayer, int]]:
    """Name in the base model -> (layer, rank of its active adapters together), for layers that have one."""
    root = model.get_base_model() if isinstance(model, PeftModel) else model
    found = {}
    for name, layer in root.named_modules():
        if isinstance(layer, LoraLayer):
            rank = sum(int(layer.r.get(adapter, 0)) for adapter in layer.active_adapters)
            if rank:
                found[name] = (layer, rank)
    return found


def _used(decisions: Decisions, layers: dict[str, tuple[LoraLayer, int]]) -> dict[str, Tensor]:
    """Components per example, by module."""
    columns = dict(zip(decisions.names, decisions.ranks.T, strict=True))
    if decisions.kind == "modules":
        return {name: column for name, column in columns.items() if name in layers}
    inside = {name: block for block in columns for name in layers if name.startswith(f"{block}.")}
    return {name: columns[block] * layers[name][1] for name, block in inside.items()}


def _written(layer: LoraLayer, ranks: Tensor) -> int:
    """FLOPs of writing factors for examples that use so many components, (examples,); 0 where they are just there."""
    networks = getattr(layer, HYPER, {})
    found = [networks[adapter] for adapter in layer.active_adapters if adapter in networks]
    opened, components = int((ranks > 0).sum()), int(ranks.sum())
    total = 0
    for net in found:
        middle = None if net.down is None else len(net.down)
        total += generator_flops(opened, components, layer.in_features, layer.out_features, middle)
    return total


def _examples(batch: Batch) -> int:
    return len(_ids(batch))


def _length(batch: Batch) -> int:
    return int(_ids(batch).shape[1])


def _ids(batch: Batch) -> Tensor:
    return batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"]
