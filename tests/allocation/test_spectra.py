"""Spectral signals against float64 eigenvalues, SciPy's matrix square root, and direct minimisation."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.allocation.allocate import Target, allocate
from rankwise.allocation.signals import SIGNALS, Averaged, Observed
from rankwise.allocation.signals.sketches import input_moments, sketch_basis, turned_basis
from rankwise.allocation.signals.spectra import RIDGE, nystrom_eigenvalues, whitened_spectrum


def inputs(tokens, width, rank, *, decay=1.0, seed=0):
    """Inputs (tokens, width) whose second moment has `rank` eigenvalues that fall off with the power 2·decay."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(tokens, rank, generator=generator, dtype=torch.float64)
    right = torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64)).Q
    scales = torch.arange(1, rank + 1, dtype=torch.float64) ** -decay
    return (left * scales) @ right.T


def ratios(x):
    """Explained-variance ratios by SVD of the inputs, as EVA defines them."""
    squares = np.linalg.svd(np.asarray(x, dtype=np.float64), compute_uv=False) ** 2
    return squares / squares.sum()


def activation(batches, columns, masks=None, seed=1, settle=()):
    """Scores of `activation` for one matrix that saw these batches, as equally weighted steps, after `settle`."""
    basis = sketch_basis(batches[0].shape[-1], columns, torch.Generator().manual_seed(seed))
    for batch in settle:
        basis = turned_basis(input_moments(batch.float(), basis).product)
    steps = []
    for i, batch in enumerate(batches):
        means = input_moments(batch.float(), basis, None if masks is None else masks[i]).mean()
        steps.append(
            SIGNALS["activation"].statistics(
                Observed(moments=[means.product], cores=[means.core], traces=[means.trace])
            )
        )
    values = [sum(column) / len(steps) for column in zip(*steps, strict=True)]
    (score,) = SIGNALS["activation"].scores(Averaged(values, 1 / len(steps), 1, torch.Generator()))
    return score


@settings(max_examples=40)
@given(st.integers(3, 40), st.integers(1, 12), st.integers(0, 99))
def test_activation_is_exact_where_the_sketch_holds_the_rank(width, rank, seed):
    rank = min(rank, width)
    x = inputs(200, width, rank, seed=seed)
    found = activation([x[:50], x[50:100], x[100:150], x[150:]], columns=12, seed=seed)
    assert len(found) == min(12, width)
    assert found[:rank] == pytest.approx(ratios(x)[:rank], rel=1e-3, abs=1e-6)
    assert found[rank:] == pytest.approx([0.0] * (len(found) - rank), abs=1e-6)
    assert sum(found) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_activation_is_close_and_never_above_where_it_does_not(seed):
    """Eigenvalues that fall off as 1/i², 24 columns of 128, a basis settled on two other batches: the leading twelve
    within 4 % each, and none too large. Without settling they are further off, but not too large either."""
    x = inputs(5000, 128, 128, seed=seed)
    exact = ratios(x[1000:])
    found = activation([x[1000:]], 24, seed=seed, settle=[x[:500], x[500:1000]])
    raw = activation([x[1000:]], 24, seed=seed)
    for spectrum in (found, raw):
        assert len(spectrum) == 24
        assert all(f <= e * (1 + 1e-5) for f, e in zip(spectrum, exact, strict=False))
        assert spectrum == sorted(spectrum, reverse=True)
    assert found[:12] == pytest.approx(exact[:12], rel=0.04)
    assert sum(raw) < sum(found) < 1


def test_padding_and_batch_shape_do_not_matter_and_tokens_count_alike():
    x = inputs(24, 10, 6)
    padded = torch.full((5, 6, 10), 1e3, dtype=torch.float64)
    mask = torch.zeros(5, 6, dtype=torch.int64)
    for row, size in enumerate((6, 5, 5, 4, 4)):
        padded[row, :size] = x[sum((6, 5, 5, 4, 4)[:row]) :][:size]
        mask[row, :size] = 1
    assert activation([padded], 10, [mask]) == pytest.approx(activation([x], 10), rel=1e-4, abs=1e-6)
    full = input_moments(padded, None, mask)
    assert full.product.dtype == torch.float64
    torch.testing.assert_close(full.mean().product, x.T @ x / 24)
    assert float(full.mean().trace) == pytest.approx(float(x.square().sum() / 24))
    uneven = input_moments(x[:20]) + input_moments(x[20:])
    torch.testing.assert_close(uneven.mean().product, x.T @ x / 24)


def test_inputs_that_are_all_zero_explain_nothing():
    assert activation([torch.zeros(8, 6)], 4) == [0.0] * 4
    assert whitened_spectrum(torch.randn(3, 6), torch.zeros(6, 6)) == [0.0] * 3
    assert nystrom_eigenvalues(torch.zeros(6, 4), torch.zeros(4, 4)) == [0.0] * 4


def ridged(moment):
    return moment + RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 30), st.integers(0, 99))
def test_whitened_is_the_singular_values_of_g_times_the_inverse_root(out, width, tokens, seed):
    """Fewer tokens than `width` make C singular."""
    rng = np.random.default_rng(seed)
    g, x = rng.normal(size=(out, width)), rng.normal(size=(tokens, width)) * rng.uniform(0.1, 3, width)
    c = x.T @ x / tokens
    white = g @ np.linalg.inv(scipy.linalg.sqrtm(ridged(c)).real)
    expected = np.linalg.svd(white, compute_uv=False) ** 2
    found = whitened_spectrum(torch.tensor(g), torch.tensor(c))
    assert len(found) == min(out, width)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9 * expected[0])
    assert found == sorted(found, reverse=True)


def test_whitened_gain_is_what_the_best_update_of_that_rank_is_worth():
    """min over rank k of ⟨G, ΔW⟩ + E‖ΔW x‖² / (2η), found by descent on the factors of ΔW = B A, is -η/2 · Σ σ²."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator, dtype=torch.float64) * torch.tensor([3, 2, 1, 1, 0.5, 0.3])
    g = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    c = torch.tensor(ridged((x.T @ x / 60).numpy()))
    gains, eta = whitened_spectrum(g, x.T @ x / 60), 0.7
    for rank in (1, 2, 4):
        b, a = (
            torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
            for shape in ((5, rank), (rank, 6))
        )
        optimizer = torch.optim.LBFGS([b, a], lr=1, max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def loss(b=b, a=a, optimizer=optimizer):
            optimizer.zero_grad()
            update = b @ a
            value = (g * update).sum() + (update @ c * update).sum() / (2 * eta)
            value.backward()
            return value

        optimizer.step(loss)
        assert loss().item() == pytest.approx(-eta / 2 * sum(gains[:rank]), rel=1e-5)


def test_whitened_does_not_change_when_inputs_are_mixed_and_weights_with_them():
    """x -> T x, W -> W T⁻¹ turns G into G Tᵀ and C into T C Tᵀ; the gradient norm does change."""
    generator = torch.Generator().manual_seed(0)
    g, t = torch.randn(5, 6, generator=generator), torch.randn(6, 6, generator=generator)
    x = torch.randn(500, 6, generator=generator)
    c = x.T @ x / 500
    rotation = torch.linalg.qr(t).Q  # leaves the ridge as it is
    for change, tolerance in ((3 * rotation, 1e-4), (torch.diag(torch.tensor([1, 2, 1, 2, 1, 2.0])), 0.1)):
        found = whitened_spectrum(g @ change.T, change @ c @ change.T)
        factor = 1.0
        assert found == pytest.approx([factor * v for v in whitened_spectrum(g, c)], rel=tolerance)
    assert float((g @ (3 * rotation).T).norm()) == pytest.approx(3 * float(g.norm()), rel=1e-4)


def test_spectra_are_what_allocate_takes_and_eva_keeps_the_top_components():
    """Rank for rank, `activation` keeps the components with the largest ratios over all matrices, as EVA does."""
    spectra = {f"layer.{i}": activation([inputs(300, 20, 20, decay=0.4 * (i + 1), seed=i)], 16) for i in range(4)}
    ranks = allocate(spectra, dict.fromkeys(spectra, 40), Target(14, "ranks"), floor=0)
    pooled = sorted(((ratio, name) for name, values in spectra.items() for ratio in values), reverse=True)[:14]
    assert ranks == {name: sum(owner == name for _, owner in pooled) for name in spectra}
    assert len(set(ranks.values())) > 2
