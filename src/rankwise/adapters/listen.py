"""Listening to weight gradients of frozen matrices, in full or projected, while a model trains."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from rankwise.allocation.signals import weight_gradient
from rankwise.errors import AllocationError


class GradientListener:
    """Sums ∂L/∂W (or ∂L/∂W Pᵀ) of every layer over the micro-batches of a step.

    A forward hook keeps the layer's input, projected at once if there is a P; a hook on the output's gradient
    multiplies the two. Only passes that will be differentiated count, so gradient checkpointing is no problem.

    Args:
        layers: name -> module whose input and output gradient belong to W.
        projections: name -> P of shape (directions, in); matrices without one are taken in full.
    """

    def __init__(self, layers: Mapping[str, nn.Module], projections: Mapping[str, Tensor]) -> None:
        self.names = list(layers)
        self._projections = dict(projections)
        self._sums: dict[str, Tensor] = {}
        self._hooks = [layer.register_forward_hook(self._hook(name)) for name, layer in layers.items()]

    def take(self) -> list[Tensor]:
        """The gradients since the last call, in the order of the layers.

        Raises:
            AllocationError: a layer took no part in the backward pass.
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
                kept = self._keep(name, args[0])
                output.register_hook(lambda gradient: self._add(name, kept, gradient))

        return on_forward

    @torch.no_grad()
    def _keep(self, name: str, inputs: Tensor) -> Tensor:
        directions = self._projections.get(name)
        if directions is None:
            return inputs.detach()
        if directions.device != inputs.device or directions.dtype != inputs.dtype:
            directions = self._projections[name] = directions.to(inputs)
        return inputs @ directions.T

    @torch.no_grad()
    def _add(self, name: str, kept: Tensor, gradient: Tensor) -> None:
        value = weight_gradient(kept.to(gradient.dtype), gradient)
        known = self._sums.get(name)
        self._sums[name] = value if known is None else known + value
