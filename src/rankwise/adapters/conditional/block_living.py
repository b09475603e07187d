"""A transformer block that inputs may skip.

    training:   h' = z · Block(h) + (1 - z) · (h + bypass(h)) ,    for every row; exactly one of the two, as z is 0 or 1
    inference:  Block(h) for the kept rows, gathered and run together; h + bypass(h) for the others

A block keeps its place, name and parameters and is given a subclass of its own class, made on the fly. The router
decides in `__call__`, outside of what gradient checkpointing runs again; `forward` carries the decision out, so that
hooks on a block see what the next block will see.
"""

import inspect
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.cache_utils import Cache

from rankwise.adapters.conditional.block_config import RadBlockPeftConfig
from rankwise.adapters.conditional.block_decision import drawn_bits, kept_bits, pattern_rows, settled
from rankwise.adapters.conditional.block_rows import UnknownArgument, cache_among, note_rows, spares_rows, take_rows
from rankwise.adapters.conditional.context import Context
from rankwise.adapters.conditional.tuner import ROUTER
from rankwise.errors import TrainingError

BYPASS = "lora_bypass"
"""Name of the container of bypasses on a layer."""
_RECORD = "_rankwise_record"
NO_GRAPH = (
    "the router that skips blocks gets no gradient from blocks under reentrant gradient checkpointing; pass "
    "gradient_checkpointing_kwargs={'use_reentrant': False}"
)


class Carrier:
    """What is left of a carrier when its LoRA has been merged for good: one adapter, always active."""

    disable_adapters = False

    def __init__(self, layer: LoraLayer) -> None:
        self.active_adapters = list(layer.active_adapters)
        self.lora_bypass = getattr(layer, BYPASS)
        if hasattr(layer, ROUTER):
            self.lora_router = getattr(layer, ROUTER)


class Record:
    """What a living block knows of itself.

    Args:
        name: its full name in the base model.
        carrier: its first adapted layer, which holds its bypasses and, for the first skippable block, the router.
        context: of the model.
        configs: adapter -> its config; the tuner's own, so it is always current.
    """

    def __init__(
        self, name: str, carrier: LoraLayer | Carrier, context: Context, configs: Mapping[str, RadBlockPeftConfig]
    ) -> None:
        self.name, self.carrier, self.context, self.configs = name, carrier, context, configs
        self.parameters: tuple[str, ...] = ()
        self.imitation: list[Tensor] | None = None  # of this pass, where bypasses are to learn from their blocks
        self.rest: tuple[None, ...] | None = None  # what the block returns beside hidden states; known once it has run
        self.more = False  # some of it is not None: the next block may need it of all rows, so all are run

    def note(self, result: Any) -> None:  # noqa: ANN401 - the block's
        """See what the block returns beside hidden states."""
        beside = result[1:] if isinstance(result, tuple) else ()
        self.rest, self.more = (None,) * len(beside), any(part is not None for part in beside)

    def router_parameters(self) -> list[nn.Parameter]:
        """Of all routers that lie in this block."""
        return list(getattr(self.carrier, ROUTER, nn.ModuleDict()).parameters())

    def imitate(self, hidden: Tensor, result: Tensor) -> None:
        """Note how far the bypass is from the block, relative to leaving the block out."""
        if self.imitation is None or torch._C._current_graph_task_id() != -1:
            return
        hidden, result = hidden.detach(), result.detach()
        missed = (result - hidden).float().square().sum().clamp_min(1e-12)
        self.imitation.append((self.around(hidden) - result).float().square().sum() / missed)

    def adapters(self) -> list[str]:
        """Those that may skip this block in the pass that goes on.

        Raises:
            ValueError: more than one is active for the same rows.
        """
        if self.carrier.disable_adapters or not hasattr(self.carrier, BYPASS):
            return []
        present = getattr(self.carrier, BYPASS)
        if self.context.rows:
            return [name for name in self.context.rows if name in present]
        found = [name for name in self.carrier.active_adapters if name in present]
        if len(found) > 1:
            raise ValueError(f"adapters {found} all decide which blocks to skip; activate one of them at a time")
        return found

    def decide(self, hidden: Tensor, *, training: bool) -> None:
        """Ask the router of every adapter whose first skippable block this is."""
        for adapter in self.adapters():
            if training and self.context.all_open:
                continue
            if self._blocks(adapter)[0] == self.name:
                key = (self.name, adapter)
                rows = self.context.rows.get(adapter)
                seen = hidden if rows is None else hidden[rows.to(hidden.device)]
                decide = partial(self._bits, seen, adapter, training)
                self.context.shared[adapter] = self.context.decision(key, decide, training=training)

    def keep(self, batch: int, *, training: bool) -> Tensor | None:
        """z of this block, (batch,); None if every row keeps it anyway."""
        parts = []
        for adapter in self.adapters():
            if adapter in self.context.shared and not (training and self.context.all_open):
                bits = self.context.shared[adapter][:, self._blocks(adapter).index(self.name)]
                parts.append((self.context.rows.get(adapter), bits))
        if not parts:
            return None
        if parts[0][0] is None:
            return parts[0][1]
        keep = parts[0][1].new_ones(batch)
        for rows, bits in parts:
            keep[rows] = bits
        return keep

    def around(self, hidden: Tensor) -> Tensor:
        """h + bypass(h); in a mixed batch `hidden` is all of it, and every row takes its own adapter's path."""
        bypasses = getattr(self.carrier, BYPASS)
        if not self.context.rows:
            around: Tensor = bypasses[self.adapters()[0]](hidden)
            return around
        result = hidden.clone()
        for adapter in self.adapters():
            rows = self.context.rows[adapter].to(hidden.device)
            result[rows] = bypasses[adapter](hidden[rows])
        return result

    def _blocks(self, adapter: str) -> list[str]:
        blocks = self.configs[adapter].blocks
        assert blocks
        return blocks

    def _bits(self, hidden: Tensor, adapter: str, training: bool) -> Tensor:
        """z, (rows, blocks)."""
        config, context = self.configs[adapter], self.context
        pooled = context.pool(hidden, adapter, self.name)
        context.record((self.name, adapter), pooled, training=training)
        logits = settled(getattr(self.carrier, ROUTER)[adapter](pooled), exit_early=config.exit)
        if training:
            return drawn_bits(
                logits, context.price, context.temperature, exit_early=config.exit, full_rows=context.full_rows
            )
        return kept_bits(logits, config.threshold, pattern_rows(config.kept_patterns))


class LivingBlock(nn.Module):
    """Mixed into a block's own class; see the module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the block's
        """Decide, if this is where that happens; then run as ever."""
        record: Record = getattr(self, _RECORD)
        record.decide(args[0] if args else kwargs["hidden_states"], training=self.training)
        result = super().__call__(*args, **kwargs)
        if record.imitation is not None and self.training:
            record.imitate(args[0] if args else kwargs["hidden_states"], _first(result))
        return result

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the block's
        """The block for rows that keep it, the bypass for the others."""
        record: Record = getattr(self, _RECORD)
        given = dict(zip(record.parameters, args, strict=False)) | kwargs
        hidden: Tensor = given.pop("hidden_states")
        keep = record.keep(len(hidden), training=self.training)
        if keep is None:
            return super().forward(*args, **kwargs)
        if self.training and record.context.sees_no_graph:
            raise TrainingError(NO_GRAPH)
        split = None if self.training else _split(record, given, keep, len(hidden))
        if split is not None and not len(split[1]):
            result = super().forward(*args, **kwargs)
            if record.rest is None and not given.get("output_attentions"):
                record.note(result)
            return result
        if split is not None and record.rest is None:
            with torch.no_grad():  # one row once, without a cache, to see what the block returns
                record.note(super().forward(hidden[:1], **_alone(given, hidden)))
        if split is None or record.more:
            result = super().forward(*args, **kwargs)
            if record.rest is None and not given.get("output_attentions"):
                record.note(result)
            return _with(result, mixed(_first(result), record.around(hidden), keep))
        kept, skipped, some = split
        if not len(kept):
            around = record.around(hidden)
            return (around, *record.rest) if record.rest else around
        result = super().forward(hidden.index_select(0, kept), **some)
        note_rows(cache_among([*given.values()]), kept, len(hidden))
        through = _first(result)
        whole = torch.empty_like(hidden, dtype=through.dtype).index_copy_(0, kept, through)
        around = record.around(hidden.index_select(0, skipped))
        return _with(result, whole.index_copy_(0, skipped, around.to(through.dtype)))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401 - object's
        """For pickle and copies: the class is made again from the block's own."""
        made: Any = super().__reduce_ex__(2)
        return _made_again, (_plain_class(self),), *made[2:]


def _split(
    record: Record, given: Mapping[str, Any], keep: Tensor, batch: int
) -> tuple[Tensor, Tensor, dict[str, Any]] | None:
    """Rows kept, rows skipped, and the block's other arguments for the kept ones; None if all have to be run."""
    bits = keep.tolist()
    if all(bits):
        return torch.arange(batch), torch.empty(0), {}
    kept, skipped = (
        torch.tensor([row for row in range(batch) if bool(bits[row]) is wanted], dtype=torch.long, device=keep.device)
        for wanted in (True, False)
    )
    found = cache_among([*given.values()])
    if given.get("output_attentions") or not (found is None or spares_rows(found)):
        return None
    if record.context.rows and (len(kept) or record.rest is None):
        return None  # in a mixed batch PEFT tells every layer the adapter of every row
    try:
        return kept, skipped, take_rows(given, kept, batch)
    except UnknownArgument:
        return None


def _alone(given: Mapping[str, Any], hidden: Tensor) -> dict[str, Any]:
    """The block's arguments for the first row, and no cache."""
    bare = {name: None if isinstance(value, Cache) else value for name, value in given.items()}
    return take_rows(bare, torch.zeros(1, dtype=torch.long, device=hidden.device), len(hidden))


def mixed(through: Tensor, around: Tensor, keep: Tensor) -> Tensor:
    """What the block gave where `keep` is 1, the way around where it is 0; differentiable in all three."""
    keep = keep.to(through.dtype)[:, None, None]
    return keep * through + (1 - keep) * around


def _first(result: Any) -> Tensor:  # noqa: ANN401 - a tensor, or a tuple that begins with one
    first: Tensor = result[0] if isinstance(result, tuple) else result
    return first


def _with(result: Any, hidden: Tensor) -> Any:  # noqa: ANN401
    return (hidden, *result[1:]) if isinstance(result, tuple) else hidden


@cache
def _living_class(plain: type[nn.Module]) -> type[nn.Module]:
    return type(plain.__name__, (LivingBlock, plain), {"__module__": plain.__module__, "__doc__": plain.__doc__})


def _plain_class(block: nn.Module) -> Any:  # noqa: ANN401 - type[nn.Module]; mypy lets nobody assign a class
    return type(block).__mro__[2]


def _made_again(plain: Any) -> nn.Module:  # noqa: ANN401 - type[nn.Module]
    living: Any = _living_class(plain)
    made: nn.Module = living.__new__(living)
    return made


def enliven(block: nn.Module, record: Record) -> None:
    """Make a block one that inputs may skip; a second call changes nothing.

    Raises:
        ValueError: it takes its hidden states by another name.
    """
    if isinstance(block, LivingBlock):
        return
    names = list(inspect.signature(block.forward).parameters)
    if names[:1] != ["hidden_states"]:
        raise ValueError(f"{record.name}: {type(block).__name__} takes no hidden_states first; it cannot be skipped")
    record.parameters = tuple(names)
    object.__setattr__(block, _RECORD, record)
    plain: Any = type(block)
    block.__class__ = _living_class(plain)


def living_blocks(model: nn.Module) -> dict[str, Record]:
    """The records of all blocks of a base model that can be skipped, by full name, in order."""
    return {name: getattr(m, _RECORD) for name, m in model.named_modules() if isinstance(m, LivingBlock)}


def revert(model: nn.Module) -> None:
    """Give every living block of `model` its own class back."""
    for module in model.modules():
        if isinstance(module, LivingBlock):
            module.__class__ = _plain_class(module)
            object.__delattr__(module, _RECORD)
