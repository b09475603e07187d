"""Collects from a training model what a signal needs to see of one step."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from rankwise.adapters.attach import ADAPTER, Matrix, adapted_layers
from rankwise.adapters.contract import generator_for
from rankwise.adapters.distributed import all_mean
from rankwise.adapters.listen import GradientListener, InputListener
from rankwise.allocation.signals import Observed, Signal
from rankwise.allocation.signals.sketches import FRESH_DIRECTIONS, Moments, projection, sketch_basis, turned_basis
from rankwise.errors import AllocationError

FIXED = 0
"""The step that random directions are drawn for which all steps share."""

_OBSERVER = 1
"""Salt of the random streams."""


class Observer:
    """Listens to the steps it is told to, and hands out what they showed; remembers how far bases have settled.

    What hooks collect is that of one process and is averaged over all; gradients of parameters are averaged already.

    Args:
        model: the adapted model.
        matrices: name -> matrix, the order of everything that is handed out.
        signal: says what is needed.
        seed: decides the random directions.
        columns: width of a sketch of the inputs' second moment.
    """

    def __init__(
        self, model: PeftModel, matrices: Mapping[str, Matrix], signal: Signal, *, seed: int, columns: int
    ) -> None:
        self.model, self.matrices, self.signal = model, matrices, signal
        self.seed, self.columns = seed, columns
        self._leaders = leaders(matrices)
        self.gradients: GradientListener | None = None
        self.inputs: InputListener | None = None
        self.settled = 0
        self.bases: dict[str, Tensor] = {}
        self._layers: dict[str, LoraLayer] = {}

    def start(self, step: int) -> None:
        """Listen to step `step`, from its first forward pass on."""
        if not self._layers:
            self._begin()
        if self.gradients is not None and "projected_gradient" in self.signal.needs:
            if self.signal.fresh_directions:
                self.gradients.projections = self._drawn(_few, step)
            elif not self.gradients.projections:
                self.gradients.projections = self._drawn(projection, FIXED)

    def stop(self) -> None:
        """Listen no more until the next `start`."""
        for listener in (self.gradients, self.inputs):
            if listener is not None:
                listener.stop()
        self.gradients, self.inputs, self._layers = None, None, {}

    def take(self) -> Observed | None:
        """What the step has shown, or None if it only served to settle; call it once gradients are there.

        Raises:
            AllocationError: a matrix took no part in training.
        """
        observed = self._adapter() if "adapter" in self.signal.needs else Observed()
        if "weight" in self.signal.needs:
            observed = replace(observed, weights=[_weight(layer) for layer in self._layers.values()])
        if self.gradients is not None:
            gradients = self.gradients.take()
            all_mean(gradients)
            observed = replace(observed, gradients=gradients)
        if self.inputs is not None:
            sums = self.inputs.take()
            if self.settled < self.signal.settle:
                self._settle(sums)
                return None
            observed = _with_moments(observed, sums)
        return observed

    def state_dict(self) -> dict[str, Tensor]:
        """Bases as far as they have settled."""
        if not self.settled:
            return {}
        bases = {f"basis.{i}": self.bases[name].clone() for i, name in enumerate(self.matrices)}
        return bases | {"settled": torch.tensor(self.settled)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave, and listen to nothing until the next `start`."""
        self.stop()
        self.settled, self.bases = int(state.get("settled", 0)), {}
        if self.settled:
            device = next(self.model.parameters()).device
            saved = [state[f"basis.{i}"].to(device) for i in range(len(self.matrices))]
            for name, basis in zip(self.matrices, saved, strict=True):  # those that were one object are one again
                leader = self.bases.get(self._leaders[name], basis)
                self.bases[name] = leader if torch.equal(leader, basis) else basis

    def _begin(self) -> None:
        layers = adapted_layers(self.model)
        self._layers = {name: layers[name] for name in self.matrices}
        needs = self.signal.needs
        if needs & {"gradient", "projected_gradient"}:
            self.gradients = GradientListener(self._layers, {})
        if needs & {"moment", "moment_sketch"}:
            if "moment_sketch" in needs and not self.bases:
                self.bases = self._drawn(self._basis, FIXED)
            self.inputs = InputListener(self.model, self._layers, self.bases)

    def _basis(self, width: int, stream: torch.Generator) -> Tensor:
        return sketch_basis(width, self.columns, stream)

    def _adapter(self) -> Observed:
        pairs = {n: (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for n, layer in self._layers.items()}
        for name, (a, b) in pairs.items():
            if a.grad is None or b.grad is None:
                part = "lora_B" if b.grad is None else "lora_A"
                raise AllocationError(f"{name}: {part} has no gradient; is this part of the model used in training?")
        return Observed(
            lora_a=[a.detach() for a, _ in pairs.values()],
            lora_b=[b.detach() for _, b in pairs.values()],
            lora_a_gradients=[a.grad for a, _ in pairs.values()],
            lora_b_gradients=[b.grad for _, b in pairs.values()],
        )

    def _settle(self, sums: list[Moments]) -> None:
        """Turn every basis towards the inputs of the step; layers that share an input go on sharing a basis."""
        distinct = _averaged(sums)
        turned = {key: turned_basis(moments.product) for key, moments in distinct.items()}
        self.bases = {name: turned[id(moments)] for name, moments in zip(self.matrices, sums, strict=True)}
        self.settled += 1
        if self.inputs is not None:
            self.inputs.bases = self.bases

    def _drawn(self, draw: Callable[[int, torch.Generator], Tensor], step: int) -> dict[str, Tensor]:
        """One random matrix per group of matrices that may share their input."""
        device = next(self.model.parameters()).device
        drawn = {
            leader: draw(self.matrices[leader].in_features, generator_for(self.seed, _OBSERVER, index, step)).to(device)
            for index, leader in enumerate(self.matrices)
            if self._leaders[leader] == leader
        }
        return {name: drawn[leader] for name, leader in self._leaders.items()}


def _few(width: int, stream: torch.Generator) -> Tensor:
    return projection(width, stream, directions=FRESH_DIRECTIONS)


def leaders(matrices: Mapping[str, Matrix]) -> dict[str, str]:
    """Name -> the first matrix in the same parent module with inputs of the same width: as they may get the same input,
    they get the same random directions."""
    first: dict[tuple[str, int], str] = {}
    return {
        name: first.setdefault((name.rpartition(".")[0], matrix.in_features), name) for name, matrix in matrices.items()
    }


def _averaged(sums: list[Moments]) -> dict[int, Moments]:
    """Means per token over all processes, by the identity of the sums: what layers share travels once."""
    distinct = {id(moments): moments for moments in sums}
    all_mean([tensor for moments in distinct.values() for tensor in vars(moments).values()])
    return {key: moments.mean() for key, moments in distinct.items()}


def _with_moments(observed: Observed, sums: list[Moments]) -> Observed:
    means = _averaged(sums)
    found = [means[id(moments)] for moments in sums]
    return replace(
        observed,
        moments=[m.product for m in found],
        cores=[m.core for m in found],
        traces=[m.trace for m in found],
    )


def _weight(layer: LoraLayer) -> Tensor:
    """W of shape (out, in), dequantised."""
    base = layer.get_base_layer()
    weight: Tensor = dequantize_module_weight(base).detach()
    return weight.T if isinstance(base, Conv1D) else weight
