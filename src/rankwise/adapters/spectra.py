"""What the singular values of ΔW say about how much of an adapter's rank is in use."""

import math
from dataclasses import dataclass

from torch import Tensor

from rankwise.adapters.pairs import Pair
from rankwise.adapters.truncate import decompose


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one module's ΔW, falling; `norm` is its Frobenius norm.

    `effective_rank` is exp of the entropy of σ / Σσ (Roy & Vetterli 2007), `stable_rank` is ‖ΔW‖² / σ_max²
    (Rudelson & Vershynin 2007): both are the rank where all σ are equal, less where few dominate, 0 where ΔW is 0.
    """

    values: tuple[float, ...]
    norm: float
    effective_rank: float
    stable_rank: float

    @property
    def largest(self) -> float:
        """σ_max; 0 without components."""
        return self.values[0] if self.values else 0.0

    @property
    def smallest(self) -> float:
        """The least of the singular values; 0 without components."""
        return self.values[-1] if self.values else 0.0


def spectrum_of(pair: Pair) -> Spectrum:
    """The spectrum of `pair.b @ pair.a`, through its r x r core in float64."""
    return summarise_spectrum(decompose(pair).values)


def summarise_spectrum(values: Tensor) -> Spectrum:
    """From singular values (k,), falling."""
    each = tuple(float(value) for value in values)
    total, squares = math.fsum(each), math.fsum(value * value for value in each)
    if total == 0:
        return Spectrum(each, 0.0, 0.0, 0.0)
    entropy = -math.fsum(value / total * math.log(value / total) for value in each if value > 0)
    return Spectrum(each, math.sqrt(squares), math.exp(entropy), squares / each[0] ** 2)
