"""Signals: what one step shows of a matrix, and what its average says about the rank the matrix should get.

One small file per group; importing this package registers them all, so a new signal is a new file. Notation: a frozen
matrix W (out, in) with an adapter s·B·A, B (out, rank), A (rank, in), acts as W + s·B·A; G = ∂L/∂W (out, in) is the
gradient W would get, x (in,) an input of the layer, and C = E[x xᵀ] (in, in) the second moment of its inputs.
"""

from importlib import import_module
from pkgutil import iter_modules

from rankwise.allocation.signals.base import SIGNALS, Averaged, Need, Observed, Score, Signal, score_total
from rankwise.allocation.signals.norms import gradient_norms
from rankwise.allocation.signals.sketches import DIRECTIONS, FRESH_DIRECTIONS, projection, weight_gradient

__all__ = [
    "DIRECTIONS",
    "FRESH_DIRECTIONS",
    "SIGNALS",
    "Averaged",
    "Need",
    "Observed",
    "Score",
    "Signal",
    "gradient_norms",
    "projection",
    "score_total",
    "weight_gradient",
]

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")
