"""Listening to a layer's inputs and output gradients while a model trains: ∂L/∂W and the inputs' second moments.

A layer's forward hook runs on every forward pass of every layer, so it does as little as it can: what several layers in
a row would compute from the very same input (query, key and value) is computed once.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.allocation.signals.sketches import Moments, at_least_float32, input_moments, weight_gradient
from rankwise.errors import AllocationError

T = TypeVar("T")


class Once(Generic[T]):
    """Remembers what was computed last, from which tensor and with which `key`."""

    def __init__(self) -> None:
        self._source: Callable[[], Tensor | None] = lambda: None
        self._version, self._key = -1, object()
        self._value: T

    def __call__(self, inputs: Tensor, key: object, compute: Callable[[], T]) -> T:
        """The last value if `inputs` is the tensor it came from, unchanged since, and `key` the same object."""
        if self._source() is not inputs or self._version != inputs._version or self._key is not key:
            self._value = compute()
            self._source, self._version, self._key = weakref.ref(inputs), inputs._version, key
        return self._value


class Listener(ABC, Generic[T]):
    """Sums something of every layer over the micro-batches of a step.

    Only passes in training mode that will be differentiated count, so gradient checkpointing is no problem.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.names = list(layers)
        self._sums: dict[str, T] = {}
        self._hooks: list[RemovableHandle] = [
            layer.register_forward_hook(self._hook(name)) for name, layer in layers.items()
        ]

    def take(self) -> list[T]:
        """The sums since the last call, in the order of the layers.

        Raises:
            AllocationError: a layer took no part in training.
        """
        missing = [name for name in self.names if name not in self._sums]
        if missing:
            raise AllocationError(f"{missing[0]}: no gradient came by; is this part of the model used in training?")
        return [self._sums.pop(name) for name in self.names]

    def stop(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._sums = [], {}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def on_forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad and module.training:
                self._see(name, args[0], output)

        return on_forward

    @abstractmethod
    def _see(self, name: str, inputs: Tensor, output: Tensor) -> None:
        """A layer was run."""


class GradientListener(Listener[Tensor]):
    """Sums ∂L/∂W (out, in), or ∂L/∂W Pᵀ (out, directions), in float32 at least.

    The layer's input is kept, projected at once if there is a P; a hook on the output's gradient multiplies the two.

    Args:
        layers: name -> module whose input and output gradient belong to W.
        projections: name -> P of shape (directions, in); matrices without one are taken in full. Layers that share an
            input should share the same P object.
    """

    def __init__(self, layers: Mapping[str, nn.Module], projections: Mapping[str, Tensor]) -> None:
        super().__init__(layers)
        self.projections = projections
        self._projected = Once[Tensor]()

    def take(self) -> list[Tensor]:
        """The gradients since the last call, in the order of the layers."""
        self._projected = Once()
        return super().take()

    def _see(self, name: str, inputs: Tensor, output: Tensor) -> None:
        directions = self.projections.get(name)
        if directions is None:
            kept = inputs.detach()
        else:
            kept = self._projected(inputs, directions, lambda: inputs.detach() @ directions.to(inputs).T)
        output.register_hook(lambda gradient: self._add(name, kept, gradient))

    @torch.no_grad()
    def _add(self, name: str, kept: Tensor, gradient: Tensor) -> None:
        value = at_least_float32(weight_gradient(kept.to(gradient.dtype), gradient))
        known = self._sums.get(name)
        self._sums[name] = value if known is None else known.add_(value)


class InputListener(Listener[Moments]):
    """Sums second moments of the layers' inputs over tokens, padding left out.

    Non-reentrant gradient checkpointing runs a layer twice and so counts every token twice, which no mean notices.

    Args:
        model: whose `attention_mask` argument says what is padding, where it has the shape of the layer's inputs.
        layers: name -> module.
        bases: name -> Ω (in, columns); matrices without one are taken in full. Layers that share an input should share
            the same Ω object.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], bases: Mapping[str, Tensor]) -> None:
        super().__init__(layers)
        self.bases = bases
        self._mask: Tensor | None = None
        self._moments, self._totals = Once[Moments](), Once[Moments]()
        self._hooks.append(model.register_forward_pre_hook(self._see_mask, with_kwargs=True))

    def take(self) -> list[Moments]:
        """The moments since the last call, in the order of the layers; layers that share an input share the object."""
        self._moments, self._totals = Once(), Once()
        return super().take()

    def _see_mask(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) else None

    @torch.no_grad()
    def _see(self, name: str, inputs: Tensor, output: Tensor) -> None:
        basis = self.bases.get(name)
        mask = self._mask if self._mask is not None and self._mask.shape == inputs.shape[:-1] else None

        def moments() -> Moments:
            with torch.autocast(inputs.device.type, enabled=False):
                return input_moments(inputs, basis, mask)

        value = self._moments(inputs, basis, moments)
        known = self._sums.get(name)
        self._sums[name] = value if known is None else self._totals(inputs, known, lambda: known + value)
