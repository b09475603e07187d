"""What adapters that decide per input decided: for every example and every module the rank that was used.

Read after each forward pass in inference from what the layers kept (`Context.kept`), so it is what was computed, not
what routers say. A decision depends on its example alone, so neither order, batch size nor padding changes it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rankwise.adapters.conditional.context import Key, context_of
from rankwise.adapters.conditional.tuner import ConditionalVariant
from rankwise.errors import ModelError

Kind = Literal["modules", "blocks"]
"""What is decided on: adapters of modules, or whole blocks (open: the block is computed)."""
Kept = Mapping[Key, Any]
"""`Context.kept`."""


@dataclass(frozen=True)
class Decisions:
    """What was decided for some examples.

    Args:
        names: modules (or blocks), in model order.
        full: the most that each can use: its rank; 1 for a block.
        ranks: (examples, names) int64, what each example used; 0 is closed.
        kind: what `names` are.
    """

    names: tuple[str, ...]
    full: tuple[int, ...]
    ranks: Tensor
    kind: Kind = "modules"

    @property
    def opened(self) -> Tensor:
        """(examples, names), whether each is open."""
        return self.ranks > 0

    @property
    def share(self) -> float:
        """Share of open ones over examples and names."""
        return float(self.opened.double().mean())


@torch.no_grad()
def decisions_of(
    model: PeftModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    adapter: str | None = None,
    on_output: Callable[[Any], None] | None = None,
) -> Decisions:
    """Run `model` in inference over `batches` and collect what its adapter decided.

    Args:
        model: carries an adapter that decides per input; its training mode is left as it was.
        batches: as the model takes them, on its device.
        adapter: name of the adapter; the active one if left out.
        on_output: called with the model's output for every batch, in order.

    Raises:
        ModelError: no adapter of that name, or one that decides nothing per input or was not used in a forward pass;
            no batches.
    """
    name = adapter or str(model.active_adapter)
    reader = _reader(model, name)
    context = context_of(model.base_model.model)
    parts: list[Tensor] = []
    with _inference(model):
        for batch in batches:
            output = model(**batch)
            parts.append(reader.read(context.kept).cpu().long())
            if on_output is not None:
                on_output(output)
    if not parts:
        raise ModelError("there are no batches to decide about")
    return Decisions(reader.names, reader.full, torch.cat(parts), reader.kind)


def deciding_layers(model: PeftModel, adapter: str) -> dict[str, LoraLayer]:
    """Full name in the base model -> layer, for those that decide per input under `adapter`, in model order."""
    return {
        name: module
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, LoraLayer) and isinstance(module.lora_variant.get(adapter), ConditionalVariant)
    }


@dataclass(frozen=True)
class _Reader:
    """How the decisions of one forward pass are read: `read` maps what was kept to (batch, names)."""

    names: tuple[str, ...]
    full: tuple[int, ...]
    kind: Kind
    read: Callable[[Kept], Tensor]


def _reader(model: PeftModel, adapter: str) -> _Reader:
    """For the adapter's type: one that names `blocks` in its config keeps the bits of all under the first of them."""
    if adapter not in model.peft_config:
        raise ModelError(f"there is no adapter '{adapter}'; there are: {', '.join(model.peft_config)}")
    config = model.peft_config[adapter]
    if blocks := getattr(config, "blocks", None):
        return _Reader(tuple(blocks), (1,) * len(blocks), "blocks", lambda kept: _of(kept, blocks[0], adapter))
    layers = deciding_layers(model, adapter)
    if not layers:
        raise ModelError(f"adapter '{adapter}' decides nothing per input: it is the same for all of them")

    def read(kept: Kept) -> Tensor:
        ranks = [
            layer.lora_variant[adapter].used_ranks(_of(kept, name, adapter), int(layer.r[adapter]))
            for name, layer in layers.items()
        ]
        return torch.stack(ranks, dim=1)

    return _Reader(tuple(layers), tuple(int(layer.r[adapter]) for layer in layers.values()), "modules", read)


def _of(kept: Kept, name: str, adapter: str) -> Any:  # noqa: ANN401 - what the layer decided
    if (name, adapter) not in kept:
        raise ModelError(
            f"{name} decided nothing in a forward pass under adapter '{adapter}': is the adapter disabled or not the "
            "active one, or does this model not use it?"
        )
    return kept[name, adapter]


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
