"""Block mode as a PEFT type: plain LoRA, one router, and a bypass around every block after it.

LoRA is the same for all inputs, so `merge_adapter` can add it into the base weights: router and bypasses stay and go on
deciding. `merge_static` does so for good, for inference. Merging and unloading in one would leave the full-depth model
behind, and is refused.

The tensors of a block (its bypass; the router on the first block that can be skipped) lie on the first adapted layer
inside it. Every block that can be skipped therefore has to hold one.
"""

from collections.abc import Sequence
from typing import Any, cast

from peft.tuners.lora import LoraLayer, LoraModel
from torch import nn

from rankwise.adapters.conditional.block_bypass import Bypass
from rankwise.adapters.conditional.block_config import RadBlockPeftConfig
from rankwise.adapters.conditional.block_living import BYPASS, Carrier, Record, enliven, living_blocks, revert
from rankwise.adapters.conditional.config import ConditionalPeftConfig
from rankwise.adapters.conditional.register import register
from rankwise.adapters.conditional.router import Router
from rankwise.adapters.conditional.tuner import ROUTER, ConditionalModel
from rankwise.errors import ModelError

KEPT_AT_FIRST = 2.0
"""Logit of every block at first: kept by 88 % of the inputs."""
NO_UNLOAD = (
    "merging and unloading would leave every block to every input; `merge_adapter()` and `merge_static()` merge LoRA "
    "into the base weights and go on skipping blocks, `rankwise export --form static` writes plain LoRA at full depth"
)

NOT_SAVED = (
    "a model merged by merge_static cannot be saved by save_pretrained: loaded again it would have neither router nor "
    "bypasses and leave every block to every input. Save the adapter before merging, and after loading it call "
    "merge_static again; torch.save writes the merged model whole"
)


def block_of(name: str) -> str | None:
    """The transformer block that a module is in (`encoder.layer.3`), by its name; None outside numbered lists."""
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if place is None else ".".join(parts[: place + 1])


def skippable_blocks(names: Sequence[str], model: nn.Module, router_after: int, keep_last: int) -> list[str]:
    """The blocks between the router's and the last `keep_last` that hold one of the modules `names`, in order.

    Raises:
        ModelError: there are none, or the modules are in several lists of blocks.
    """
    blocks = [block for name in names if (block := block_of(name)) is not None]
    lists = sorted({block.rpartition(".")[0] for block in blocks})
    if len(lists) != 1 or not isinstance(model.get_submodule(lists[0]), nn.ModuleList):
        raise ModelError(
            f"blocks can be skipped where all adapted modules are in one list of blocks; {type(model).__name__} has "
            f"them in {', '.join(lists) or 'none'}"
        )
    count = len(cast(nn.ModuleList, model.get_submodule(lists[0])))
    found = [f"{lists[0]}.{i}" for i in range(router_after + 1, count - keep_last) if f"{lists[0]}.{i}" in set(blocks)]
    if not found:
        raise ModelError(
            f"router_after is {router_after}, keep_last {keep_last}, and {type(model).__name__} has no adapted block "
            f"in between: its blocks are 0 to {count - 1}"
        )
    return found


def hidden_width(model: nn.Module) -> int:
    """Width of the hidden states between blocks.

    Raises:
        ModelError: the model's config does not say.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int):
        raise ModelError(f"the config of {type(model).__name__} has no hidden_size: blocks cannot be bypassed")
    return width


class RadBlockModel(ConditionalModel):
    """PEFT's tuner for `RADBLOCK`."""

    def condition(self, layer: LoraLayer, adapter_name: str, config: ConditionalPeftConfig, name: str) -> None:
        """See `ConditionalModel.condition`: the first adapted layer of a block gets what the block needs."""
        config = cast(RadBlockPeftConfig, config)
        targets = self._targets(config)
        if config.blocks is None:
            config.blocks = skippable_blocks(targets, self.model, config.router_after, config.keep_last)
        block = block_of(name)
        if block not in config.blocks or name != next(n for n in targets if block_of(n) == block):
            return
        width = hidden_width(self.model)
        module = self.model.get_submodule(block)
        enliven(module, Record(block, layer, self.context, self.peft_config))
        self.put(layer, BYPASS, adapter_name, Bypass(width, config.bypass_rank))
        if block == config.blocks[0]:
            router = Router(width, config.router_hidden, len(config.blocks), initial=KEPT_AT_FIRST)
            self.put(layer, ROUTER, adapter_name, router)

    def merge_static(self) -> nn.Module:
        """Merge LoRA into the base weights and take its layers off; blocks go on being skipped.

        Returns:
            The base model, changed in place; routers and bypasses have moved into its blocks. Its `save_pretrained`
            refuses, as what it writes would be loaded as another model.

        Raises:
            ValueError: there is another adapter, or PEFT cannot merge into these weights.
        """
        if len(self.peft_config) > 1:
            raise ValueError(
                f"one adapter can be merged for good, there are {list(self.peft_config)}; delete the others"
            )
        base: nn.Module = LoraModel._unload_and_optionally_merge(self)
        for name, record in living_blocks(base).items():
            for container in (BYPASS, ROUTER):
                if hasattr(record.carrier, container):
                    base.get_submodule(name).add_module(container, getattr(record.carrier, container))
            record.carrier = Carrier(record.carrier)
        vars(base)["save_pretrained"] = _not_saved
        return base

    def _targets(self, config: RadBlockPeftConfig) -> list[str]:
        """Modules that PEFT adapts, in model order."""
        found = [name for name, _ in self.model.named_modules() if self._check_target_module_exists(config, name)]
        return [name for name in found if ".base_layer" not in name and ".lora_" not in name]

    def _check_merge_allowed(self) -> None:
        LoraModel._check_merge_allowed(self)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> nn.Module:  # noqa: ANN401
        if merge:
            raise ValueError(NO_UNLOAD)
        base = super()._unload_and_optionally_merge(False, *args, **kwargs)
        revert(base)
        return base


def _not_saved(*_: object, **__: object) -> None:
    raise ValueError(NOT_SAVED)


register(RadBlockPeftConfig.TYPE, RadBlockPeftConfig, RadBlockModel)
