"""Signals that say what every further rank is worth: `activation` and `whitened`.

**activation** (EVA, arXiv 2410.07170): the share of a layer's input variance that component i explains, λ_i(C) / tr C,
as in the paper's singular value decomposition of the inputs (PEFT's EVA centres them first; an update acts on inputs as
they are). Not C (in x in) is averaged but Y = C Ω with an orthonormal Ω (in x columns), Ωᵀ Y and the trace. Ω starts at
random; for the first two steps Y is only used to turn it towards the inputs, without which slowly falling spectra come
out too low: with 24 columns 0.60 of the eighth eigenvalue of MiniLM's inputs, and 0.87 with it.
Nyström's approximation C ≈ Y (Ωᵀ Y)⁺ Yᵀ is exact if C has at most `columns` eigenvalues that are not zero, and its
eigenvalues are never too large (Tropp et al., arXiv 1706.05736).

**whitened**: the singular values of G C^{-1/2}, squared. An update ΔW changes the loss by ⟨G, ΔW⟩ to first order, and
the layer's output by E‖ΔW x‖² = ‖ΔW C^{1/2}‖² on average. With M = ΔW C^{1/2} the loss is linear in M with gradient
G C^{-1/2}, so among updates of rank k the one that minimises

    ⟨G, ΔW⟩ + E‖ΔW x‖² / (2η)

is M = -η·(G C^{-1/2})_k, the leading k singular components (Eckart & Young 1936), and it is worth η/2 · Σ_{i<=k} σ_i²:
σ_i² is the gain of the i-th rank, in one currency for all matrices. It does not change if inputs are scaled, rotated or
mixed, x → T x, and W with them, W → W T⁻¹. C is made invertible by adding `RIDGE` times its mean eigenvalue. Costs
(out + in)·in numbers per matrix while it listens, and a Cholesky factor of C per matrix and decision.
"""

import torch
from torch import Tensor

from rankwise.allocation.signals.base import SIGNALS, Averaged, Observed, Score, Signal

RIDGE = 0.01
"""Added to C, in units of its mean eigenvalue: directions that inputs hardly use must not look cheap."""

CUTOFF = 1e-6
"""Eigenvalues of Ωᵀ C Ω below this share of the largest are rounding errors of float32."""


def sketches(observed: Observed) -> list[Tensor]:
    """Y = C Ω (in, columns) of every matrix, then every core Ωᵀ C Ω, then all traces (matrices,)."""
    return [*observed.moments, *observed.cores, torch.stack(list(observed.traces))]


def explained_variance(averaged: Averaged) -> list[Score]:
    """λ_i(C) / tr C of every matrix from its sketch, as many as the sketch has columns."""
    count = averaged.matrices
    products, cores = averaged.values[:count], averaged.values[count : 2 * count]
    traces = averaged.values[-1].tolist()
    scores: list[Score] = []
    for product, core, trace in zip(products, cores, traces, strict=True):
        scores.append([value / trace if trace > 0 else 0.0 for value in nystrom_eigenvalues(product, core)])
    return scores


def nystrom_eigenvalues(product: Tensor, core: Tensor) -> list[float]:
    """Eigenvalues of Y (Ωᵀ Y)⁺ Yᵀ, non-increasing.

    With Ωᵀ Y = V S Vᵀ they are the squared singular values of Y V S^{-1/2}, zeros for the part of S that is cut off.

    Args:
        product: Y = C Ω, (in, columns).
        core: Ωᵀ Y, (columns, columns).
    """
    y, small = product.cpu().double(), core.cpu().double()
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    kept = values > CUTOFF * values[-1].clamp(min=0)
    factor = (y @ vectors[:, kept]) / values[kept].sqrt()
    found = torch.linalg.svdvals(factor).square().tolist() if bool(kept.any()) else []
    return found + [0.0] * (y.shape[1] - len(found))


def gradients_and_moments(observed: Observed) -> list[Tensor]:
    """G (out, in) of every matrix, then every C (in, in)."""
    return [*observed.gradients, *observed.moments]


def whitened_gains(averaged: Averaged) -> list[Score]:
    """σ_i(G C^{-1/2})² of every matrix, all min(out, in) of them."""
    gradients, moments = averaged.values[: averaged.matrices], averaged.values[averaged.matrices :]
    return [whitened_spectrum(g, c) for g, c in zip(gradients, moments, strict=True)]


def whitened_spectrum(gradient: Tensor, moment: Tensor) -> list[float]:
    """Squared singular values of G C^{-1/2}, non-increasing.

    With C = L Lᵀ, G L⁻ᵀ differs from G C^{-1/2} by a rotation on the right, which leaves singular values alone. They
    are read off the smaller Gram matrix, whose eigenvalues they are.

    Args:
        gradient: G, (out, in).
        moment: C, (in, in), positive semi-definite.
    """
    g, c = gradient.cpu().double(), moment.cpu().double()
    ridge = RIDGE * c.trace() / len(c)
    if not ridge > 0:  # the layer never saw an input other than zero
        return [0.0] * min(g.shape)
    lower = torch.linalg.cholesky((c + c.T) / 2 + ridge * torch.eye(len(c), dtype=c.dtype))
    white = torch.linalg.solve_triangular(lower, g.T, upper=False)  # (in, out), the transpose of G L⁻ᵀ
    gram = white.T @ white if white.shape[1] <= white.shape[0] else white @ white.T
    return list(torch.linalg.eigvalsh(gram).clamp(min=0).flip(0).tolist())


SIGNALS.register("activation")(
    Signal(
        "share of the inputs' variance that each rank explains (EVA), from a sketch",
        sketches,
        explained_variance,
        needs=frozenset({"moment_sketch"}),
        settle=2,
    )
)
SIGNALS.register("whitened")(
    Signal(
        "spectrum of the gradient of W, whitened by the inputs; keeps (out + in) x in numbers per matrix",
        gradients_and_moments,
        whitened_gains,
        needs=frozenset({"gradient", "moment"}),
    )
)
