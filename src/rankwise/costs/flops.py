"""FLOPs of forward passes as they were executed, split into base model, adapters and routing.

torch's FlopCounterMode counts products of matrices and attention, whatever runs them, so a path that was skipped is not
counted. Each operation is put down to

- routing: it ran while a decision was being made (`Context.pool`, `Context.decision`), or a router's weights are in it;
- adapters: factors (or banks) are in it, or it ran in an adapted layer without that layer's own weights;
- base: all else, the trained head included.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from rankwise.adapters.conditional.config import ConditionalPeftConfig
from rankwise.adapters.conditional.context import Context, context_of
from rankwise.costs.parameters import Part, sorted_parameters

Batch = Mapping[str, Tensor]
Where = Literal["base", "adapters", "routing"]
ATTENTION_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""FlopCounterMode of torch 2.13 does not know this one, and would count no attention at all on CPUs."""
PLACES: Mapping[Part, Where] = {Part.FACTORS: "adapters", Part.GENERATORS: "adapters", Part.ROUTERS: "routing"}


@dataclass(frozen=True)
class Flops:
    """What some forward passes took, in FLOPs."""

    base: int
    adapters: int
    routing: int

    @property
    def total(self) -> int:
        """All three."""
        return self.base + self.adapters + self.routing

    def share(self, where: Where) -> float:
        """Of the total, 0 to 1."""
        return float(getattr(self, where) / self.total) if self.total else 0.0


def count_flops(model: nn.Module, batches: Sequence[Batch]) -> Flops:
    """Run `model` on `batches` in evaluation mode and count; the first batch runs once before, uncounted, because some
    layers do more in their very first pass.

    Args:
        model: with adapters of any PEFT type, or none.
        batches: keyword arguments of its forward pass, on its device.

    Returns:
        The sums over all batches.
    """
    training = model.training
    model.eval()
    counter = _Counter(model)
    try:
        with torch.no_grad():
            model(**batches[0])
            with _watched(model, counter), counter:
                for batch in batches:
                    model(**batch)
    finally:
        model.train(training)
    return Flops(**counter.found)


class _Counter(FlopCounterMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(display=False, custom_mapping={ATTENTION_ON_CPU: _attention})
        self.found: dict[Where, int] = {"base": 0, "adapters": 0, "routing": 0}
        self.deciding = 0
        self.layers: list[int] = []  # storages of the base weights of the adapted layers that are being run
        self._owners = {_storage(p): PLACES.get(part, "base") for part, p in sorted_parameters(model) if p.numel()}

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:  # noqa: ANN401 - torch's
        if func_packet in self.flop_registry:
            self.found[self._where(args)] += int(self.flop_registry[func_packet](*args, **kwargs, out_val=out))
        return out

    def _where(self, args: Any) -> Where:  # noqa: ANN401 - of any operation
        storages = {_storage(leaf) for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        owners = {self._owners[key] for key in storages if key in self._owners}
        if self.deciding or "routing" in owners:
            return "routing"
        outside = self.layers and self.layers[-1] not in storages
        return "adapters" if "adapters" in owners or outside else "base"


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:  # noqa: ANN401 - shapes, then options
    return int(sdpa_flop_count(query, key, value))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


@contextmanager
def _watched(model: nn.Module, counter: _Counter) -> Iterator[None]:
    """Tell the counter when an adapted layer is being run and when a decision is being made."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    context = _context(model)
    with ExitStack() as stack:
        for layer in layers:
            weight = getattr(layer.get_base_layer(), "weight", None)
            key = _storage(weight) if isinstance(weight, Tensor) else -1
            before = layer.register_forward_pre_hook(lambda *_, key=key: counter.layers.append(key))
            after = layer.register_forward_hook(lambda *_: counter.layers.pop() and None)
            stack.callback(before.remove)
            stack.callback(after.remove)
        if context is not None:
            stack.enter_context(_noticed(context, counter))
        yield


@contextmanager
def _noticed(context: Context, counter: _Counter) -> Iterator[None]:
    def noticed(name: str) -> Any:  # noqa: ANN401 - the method's own signature
        method = getattr(context, name)

        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            counter.deciding += 1
            try:
                return method(*args, **kwargs)
            finally:
                counter.deciding -= 1

        return call

    names = ("pool", "decision")
    context.__dict__.update({name: noticed(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del context.__dict__[name]


def _context(model: nn.Module) -> Context | None:
    """Of a model whose active adapter decides per input."""
    if not isinstance(model, PeftModel) or not isinstance(model.active_peft_config, ConditionalPeftConfig):
        return None
    return context_of(model.base_model.model)
