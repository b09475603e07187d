"""Which blocks an input keeps: draws, thresholds and limited patterns, against brute force."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.adapters.conditional.block_decision import (
    drawn_bits,
    fitting_level,
    frequent_patterns,
    kept_bits,
    pattern_rows,
    settled,
)


def some_logits(rows=50, blocks=4, seed=0):
    return torch.randn(rows, blocks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_logits_of_an_early_exit_fall():
    raw = some_logits()
    found = settled(raw, exit_early=True)
    falls = (1 + raw.exp()).log()
    for j in range(4):
        torch.testing.assert_close(found[:, j], raw[:, 0] - sum(falls[:, i] for i in range(1, j + 1)))
    assert torch.equal(settled(raw, exit_early=False), raw)


@pytest.mark.parametrize("exit_early", [False, True])
def test_draws_have_their_probabilities(exit_early):
    """Every block its own; under an early exit the draws of an input are monotone, not independent."""
    torch.manual_seed(0)
    logits = settled(some_logits(1), exit_early=exit_early)
    bits = drawn_bits(logits.expand(20_000, -1), 0.3, 0.7, exit_early=exit_early)
    expected = torch.sigmoid((logits - 0.3) / 0.7)[0]
    assert set(bits.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(bits.mean(0), expected, atol=0.015, rtol=0)
    together = float((bits[:, 0] * bits[:, 1]).mean())
    alone = float(expected[1] if exit_early else expected[0] * expected[1])
    assert together == pytest.approx(alone, abs=0.015)
    assert bool((bits.diff(dim=1) <= 0).all()) is exit_early


@pytest.mark.parametrize("exit_early", [False, True])
def test_gradient_is_that_of_the_expectation_where_the_loss_is_linear(exit_early):
    """Σ c z: its expectation is Σ c p whatever the dependence between draws; finite differences in float64."""
    raw, weights = some_logits(3), some_logits(3, seed=1)

    def expected(values):
        return (weights * torch.sigmoid((settled(values, exit_early=exit_early) - 0.2) / 1.5)).sum()

    variable = raw.clone().requires_grad_()
    (weights * drawn_bits(settled(variable, exit_early=exit_early), 0.2, 1.5, exit_early=exit_early)).sum().backward()
    for row, block in itertools.product(range(3), range(4)):
        step = torch.zeros_like(raw)
        step[row, block] = 1e-6
        slope = (expected(raw + step) - expected(raw - step)) / 2e-6
        assert float(variable.grad[row, block]) == pytest.approx(float(slope), abs=1e-8)


def test_few_patterns_are_chosen_by_likelihood():
    logits, threshold = some_logits(40), 0.6
    patterns = ["1100", "0110", "1111"]
    found = kept_bits(logits, threshold, pattern_rows(patterns))
    shift = torch.logit(torch.tensor(threshold, dtype=torch.float64))
    chances = torch.sigmoid(logits - shift)
    for row, bits in zip(chances, found, strict=True):
        each = [torch.where(p > 0, row, 1 - row).log().sum() for p in pattern_rows(patterns)]
        best = patterns[max(range(3), key=lambda k: float(each[k]))]
        assert "".join(str(int(b)) for b in bits) == best


def test_all_patterns_allowed_is_no_limit():
    logits = some_logits(100)
    every = ["".join(bits) for bits in itertools.product("01", repeat=4)]
    assert torch.equal(kept_bits(logits, 0.4, pattern_rows(every)), kept_bits(logits, 0.4))


def test_ends_of_the_threshold():
    assert kept_bits(some_logits(), -1.0).all()
    assert not kept_bits(some_logits(), 1.0).any()


def test_frequent_patterns_bracket_the_share():
    rows = ["1100"] * 5 + ["1010"] * 4 + ["0110"] * 3 + ["1111"] * 1
    assert frequent_patterns(pattern_rows(rows), 3, 0.55) == ["1100", "1010", "1111"]
    assert frequent_patterns(pattern_rows(rows), 2, 0.5) == ["1100", "1010"]
    assert frequent_patterns(pattern_rows(rows), 9, 0.5) == ["1100", "1010", "0110", "1111"]


@given(st.integers(0, 50), st.floats(0.1, 0.9), st.sampled_from([None, 2, 3, 5]))
def test_level_meets_the_share(seed, share, limit):
    """However far up all logits have drifted."""
    logits = some_logits(120, seed=seed) + seed
    patterns = None
    if limit is not None:
        free = kept_bits(logits - fitting_level(logits, share), 0.5)
        patterns = pattern_rows(frequent_patterns(free, limit, share))
    kept = kept_bits(logits - fitting_level(logits, share, patterns), 0.5, patterns).mean()
    assert abs(float(kept) - share) <= 0.5 / 120 + 1e-9


def test_some_inputs_keep_every_block_while_others_skip():
    torch.manual_seed(0)
    logits = torch.full((4000, 3), -30.0, requires_grad=True)  # by themselves these inputs skip everything
    bits = drawn_bits(logits, 0.0, 1.0, exit_early=False, full_rows=0.25)
    whole = bits.detach().sum(1) == 3
    assert whole.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert bits.detach()[~whole].sum() == 0
    near = torch.zeros((400, 3), requires_grad=True)
    kept = drawn_bits(near, 0.0, 1.0, exit_early=False, full_rows=0.999999)
    kept.sum().backward()
    assert kept.detach().min() == 1
    assert not near.grad.any(), "these inputs give the router no gradient"
