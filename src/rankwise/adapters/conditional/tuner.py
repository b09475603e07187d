"""What tuners of conditional adapters have in common: PEFT's LoRA, with a forward pass of its own in every layer.

Every LoRA layer gets a `LoraVariant`, through which PEFT runs the adapter part of any layer type (quantised ones too)
and of mixed batches. What a layer needs beside A and B lies in containers on the layer itself, one entry per adapter,
so that PEFT saves, loads, activates and deletes it like A and B. What layers share lies on the first of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer, LoraModel
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

from rankwise.adapters.conditional.config import ConditionalPeftConfig
from rankwise.adapters.conditional.context import Context, context_of, drop_context
from rankwise.adapters.conditional.tokens import by_example
from rankwise.engine.conditional import add_open, add_weighted
from rankwise.errors import ModelError

ROUTER = "lora_router"
"""Name of the container of routers on a layer."""
NO_MERGE = (
    "{kind} adapters decide per input, so they cannot be merged into weights that all inputs share; "
    "`rankwise export --form static` writes plain LoRA with every gate at its average, which can"
)

_NOT_LINEAR = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


class ConditionalVariant(LoraVariant, ABC):
    """The adapter of one layer under one name.

    Args:
        context: of the model.
        config: of the adapter.
        name: full module name in the base model.
    """

    def __init__(self, context: Context, config: ConditionalPeftConfig, name: str) -> None:
        self.context, self.config, self.name = context, config, name

    @abstractmethod
    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:  # noqa: ANN401 - PEFT's signature
        """`result` of the base layer with this adapter's part added.

        Args:
            module: the layer.
            active_adapter: this adapter's name.
            x: (batch, tokens, in).
            result: (batch, tokens, out).
            **kwargs: PEFT's, for variants of its own.
        """

    @abstractmethod
    def used_ranks(self, decision: Any, rank: int) -> Tensor:  # noqa: ANN401 - what `Context.decision` kept
        """How many components every example used, (batch,) integers, 0 where the gate is closed.

        Args:
            decision: of one forward pass in inference (`Context.kept`).
            rank: the layer's.
        """

    def init(self, module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:  # noqa: ANN401
        """PEFT's hook; everything is set up when the layer is made."""

    def supports_lora_conversion(self) -> bool:
        """Plain LoRA cannot say what this does. PEFT asks when it converts.

        Raises:
            TypeError: always; says why.
        """
        raise TypeError(NO_MERGE.format(kind=self.config.TYPE))

    def merge_safe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Not possible.

        Raises:
            ValueError: always; says why.
        """
        raise ValueError(NO_MERGE.format(kind=self.config.TYPE))

    def merge_unsafe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Not possible.

        Raises:
            ValueError: always; says why.
        """
        raise ValueError(NO_MERGE.format(kind=self.config.TYPE))

    def unmerge(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Not possible: it was never merged.

        Raises:
            ValueError: always; says why.
        """
        raise ValueError(NO_MERGE.format(kind=self.config.TYPE))


PREFILLS = ("prefill_chunk_size", "assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens")
"""Kinds of generation whose first pass does not see the prompt and nothing else."""


def _refuse_other_prefills(kwargs: Mapping[str, Any]) -> None:
    config = kwargs.get("generation_config")
    for name in PREFILLS:
        if kwargs.get(name) is not None or getattr(config, name, None) is not None:
            raise ValueError(
                f"`{name}` is set: adapters that decide per input decide once, from the whole prompt and nothing else, "
                "and this kind of generation shows them a part of it or more; leave it out"
            )


def add_term(
    result: Tensor, x: Tensor, a: Tensor, b: Tensor, weights: Tensor, scaling: float, ranks: Tensor | None = None
) -> Tensor:
    """Add s · ((x Aᵀ) ∘ weights) Bᵀ to `result`: all rows where gradients are wanted, else the open ones only.

    Dtypes are what PEFT would use: autocast's where it is on, else those of A and B. `result` and `x` may come
    flattened to (batch · tokens, …). See `engine.conditional`.
    """
    shape, count = result.shape, len(weights)
    rows = shape.numel() // shape[-1]
    if rows % max(count, 1) or (rows and not count) or (result.dim() == 3 and len(result) != count):
        raise ModelError(
            f"a target module gets {tuple(x.shape)}, which is not an input of its own for each of {count} "
            "examples; leave it out of target_modules"
        )
    result, x = by_example(result, count), by_example(x, count)
    if not result.dtype == x.dtype == a.dtype == b.dtype == weights.dtype:
        dtype = result.dtype if torch.is_autocast_enabled(result.device.type) else a.dtype
        result, x, a, b, weights = (t.to(dtype) for t in (result, x, a, b, weights))
    if torch.is_grad_enabled() and any(t.requires_grad for t in (result, x, a, b, weights)):
        return add_weighted(result, x, a, b, weights, scaling).view(shape)
    return add_open(result, x, a, b, weights, scaling, ranks).view(shape)


class ConditionalModel(LoraModel, ABC):
    """PEFT's tuner; subclasses say what a layer gets."""

    @abstractmethod
    def condition(self, layer: LoraLayer, adapter_name: str, config: ConditionalPeftConfig, name: str) -> None:
        """Give a layer its variant and whatever it needs beside A and B (see `put`).

        Args:
            layer: with A and B already there.
            adapter_name: the adapter's name.
            config: its config.
            name: full module name in the base model.
        """

    def _pre_injection_hook(self, model: nn.Module, config: ConditionalPeftConfig, adapter_name: str) -> None:
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise ModelError(
                f"{type(model).__name__} is an encoder-decoder model; {config.TYPE} adapters decide once per example, "
                "from one sequence of tokens: use a model that is an encoder or a decoder alone"
            )

    def _create_and_replace(
        self,
        lora_config: ConditionalPeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,  # noqa: ANN401 - PEFT's
    ) -> None:
        base = target.get_base_layer() if isinstance(target, LoraLayer) else target
        if isinstance(base, _NOT_LINEAR):
            raise ModelError(
                f"{lora_config.TYPE} adapts linear layers alone; '{current_key}' is {type(base).__name__}: leave it "
                "out of target_modules"
            )
        super()._create_and_replace(
            lora_config, adapter_name, target, target_name, parent, current_key=current_key, **kwargs
        )
        self.condition(getattr(parent, target_name), adapter_name, lora_config, current_key)

    def put(self, layer: LoraLayer, container: str, adapter_name: str, module: nn.Module) -> None:
        """Put a module of parameters (direct ones, no deeper) on a layer for one adapter."""
        if not hasattr(layer, container):
            setattr(layer, container, nn.ModuleDict())
            layer.adapter_layer_names = (*layer.adapter_layer_names, container)
        like = layer.lora_A[adapter_name].weight
        getattr(layer, container)[adapter_name] = module.to(like.device)
        active = adapter_name in layer.active_adapters and adapter_name in self.active_adapters
        module.requires_grad_(active and bool(like.requires_grad))

    @property
    def context(self) -> Context:
        """Of the base model."""
        return context_of(self.model)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:  # noqa: ANN401 - PEFT's
        names = kwargs.get("adapter_names")
        _refuse_other_prefills(kwargs)
        beams = kwargs.get("num_beams")
        if names is not None and isinstance(beams, int) and beams > 1:  # generate repeats every example so many times
            names = [name for name in names for _ in range(beams)]
        with super()._enable_peft_forward_hooks(*args, **kwargs), self.context.session(names):
            yield

    def _check_merge_allowed(self) -> None:
        raise ValueError(NO_MERGE.format(kind=next(iter(self.peft_config.values())).TYPE))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Plain LoRA cannot say what these adapters do."""
        return False

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - PEFT's
        """Not possible.

        Raises:
            ValueError: always; says why.
        """
        raise ValueError("adapters that decide per input cannot be combined by adding their factors: gates differ")

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:  # noqa: ANN401 - PEFT's
        base: nn.Module = super()._unload_and_optionally_merge(*args, **kwargs)
        drop_context(base)
        return base
