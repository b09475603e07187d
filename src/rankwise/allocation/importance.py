"""Importance of the rank-1 components of P Λ Q, from weights and gradients.

After AdaLoRA (Zhang et al. 2023, arXiv 2303.10512). Every entry w with gradient g has a sensitivity I = |w·g| (eq. 8).
Mini-batches make it noisy, so it is averaged, and so is how far it strays from its average (eq. 9 and 10):

    Ī ← β₁·Ī + (1 - β₁)·I            Ū ← β₂·Ū + (1 - β₂)·|I - Ī|        (with the new Ī)

The score of an entry is s = Ī·Ū (eq. 11). A component is a triplet of one λ, one row of A (the paper's Q) and one
column of B (its P); its score adds that of λ to the means over the row and the column (eq. 7):

    S_i = s(λ_i) + mean_j s(A_ij) + mean_j s(B_ji)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Triplets:
    """The components of one matrix: `values` (rank,), `a` (rank, in), `b` (out, rank), all on one device."""

    values: Tensor
    a: Tensor
    b: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.values, self.a, self.b))

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.values.shape[0]


def update_averages(average: Tensor, deviation: Tensor, sensitivity: Tensor, *, beta1: float, beta2: float) -> None:
    """One step of Ī and Ū, in place; all three of one shape. `sensitivity` (I, >= 0) is used up as scratch space.

    A step with any I that is not finite (an overflow under mixed precision) is passed over as a whole. That is
    decided on the device, without waiting for it.
    """
    finite = torch.isfinite(sensitivity.sum())
    torch.where(finite, sensitivity, average, out=sensitivity)
    average.lerp_(sensitivity, 1 - beta1)
    sensitivity.sub_(average).abs_()
    torch.where(finite, sensitivity, deviation, out=sensitivity)
    deviation.lerp_(sensitivity, 1 - beta2)


class Importance:
    """Ī and Ū of many matrices, and the scores of all their components.

    All entries live in one flat tensor per average, factors of one shape next to each other. A step then costs a
    dozen kernels however many matrices there are (beside reading every weight and gradient once), and a scoring one
    mean per shape. One more flat tensor is scratch space: nothing of this size is allocated after the start.

    Args:
        triplets: the matrices' components; read again at every update, so they have to be the living parameters.
        beta1: decay of Ī.
        beta2: decay of Ū.
    """

    def __init__(self, triplets: Sequence[Triplets], *, beta1: float, beta2: float) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.ranks = [triplet.rank for triplet in triplets]
        by_device: dict[torch.device, list[int]] = {}
        for index, triplet in enumerate(triplets):
            by_device.setdefault(triplet.values.device, []).append(index)
        self._blocks = [(members, _Block([triplets[i] for i in members])) for members in by_device.values()]

    @torch.no_grad()
    def update(self, gradients: Sequence[Triplets]) -> None:
        """Take one step's gradients, of the shapes and in the order of the triplets, into the averages."""
        for members, block in self._blocks:
            block.fill_sensitivity([gradient for index in members for gradient in gradients[index]])
            update_averages(block.average, block.deviation, block.scratch, beta1=self.beta1, beta2=self.beta2)

    def scores(self) -> list[Tensor]:
        """S (rank,) per matrix, on its device: nothing is waited for."""
        found: dict[int, Tensor] = {}
        for members, block in self._blocks:
            parts = block.scores().split([self.ranks[index] for index in members])
            found |= dict(zip(members, parts, strict=True))
        return [found[index] for index in range(len(self.ranks))]

    def averages(self) -> list[tuple[Triplets, Triplets]]:
        """Views of (Ī, Ū) per matrix: what a resumed run has to be given back."""
        found: dict[int, tuple[Triplets, Triplets]] = {}
        for members, block in self._blocks:
            pairs = zip(block.triplets_of(block.average), block.triplets_of(block.deviation), strict=True)
            found |= dict(zip(members, pairs, strict=True))
        return [found[index] for index in range(len(self.ranks))]


@dataclass(frozen=True)
class _Run:
    """Factors of one kind and shape, one after the other from `start` on; `members` says whose."""

    start: int
    shape: torch.Size
    members: list[int]

    def of(self, flat: Tensor) -> Tensor:
        """A view of shape (members, *shape)."""
        size = len(self.members) * self.shape.numel()
        return flat[self.start : self.start + size].view(len(self.members), *self.shape)


class _Block:
    """The flat tensors of the matrices on one device: all λ, then all A, then all B, equal shapes together."""

    def __init__(self, triplets: Sequence[Triplets]) -> None:
        self._weights = [factor for triplet in triplets for factor in triplet]
        self._runs: list[list[_Run]] = []
        size = 0
        for kind in range(3):
            by_shape: dict[torch.Size, list[int]] = {}
            for index in range(len(triplets)):
                by_shape.setdefault(self._weights[3 * index + kind].shape, []).append(index)
            self._runs.append([])
            for shape, members in by_shape.items():
                self._runs[kind].append(_Run(size, shape, members))
                size += len(members) * shape.numel()
        dtype = torch.promote_types(self._weights[0].dtype, torch.float32)
        device = self._weights[0].device
        self.average, self.deviation, self.scratch = (torch.zeros(size, dtype=dtype, device=device) for _ in range(3))
        self._products = [view for triplet in self.triplets_of(self.scratch) for view in triplet]
        self._order = [_component_order(runs, triplets).to(device) for runs in self._runs]

    def fill_sensitivity(self, gradients: Sequence[Tensor]) -> None:
        """I = |w·g| into the scratch space."""
        torch._foreach_copy_(self._products, self._weights)
        torch._foreach_mul_(self._products, list(gradients))
        self.scratch.abs_()

    def scores(self) -> Tensor:
        """S of all components, in the order of the matrices; uses the scratch space."""
        entries = torch.mul(self.average, self.deviation, out=self.scratch)
        values = torch.cat([run.of(entries).flatten() for run in self._runs[0]])
        a = torch.cat([run.of(entries).mean(2).flatten() for run in self._runs[1]])
        b = torch.cat([run.of(entries).mean(1).flatten() for run in self._runs[2]])
        return values[self._order[0]] + (a[self._order[1]] + b[self._order[2]])

    def triplets_of(self, flat: Tensor) -> list[Triplets]:
        """Views of a flat tensor in the shapes of the parameters, per matrix."""
        kinds = [{m: v for run in runs for m, v in zip(run.members, run.of(flat), strict=True)} for runs in self._runs]
        return [Triplets(*(views[index] for views in kinds)) for index in range(len(kinds[0]))]


def _component_order(runs: Sequence[_Run], triplets: Sequence[Triplets]) -> Tensor:
    """Where each component, matrix by matrix, stands among the runs' components."""
    places: dict[int, range] = {}
    start = 0
    for member in (member for run in runs for member in run.members):
        places[member] = range(start, start + triplets[member].rank)
        start = places[member].stop
    return torch.tensor([place for index in range(len(triplets)) for place in places[index]])
