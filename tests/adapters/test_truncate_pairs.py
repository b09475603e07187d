"""Truncation against dense SVDs of ΔW in float64 and against brute force over all allocations."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.adapters.pairs import Pair, fold
from rankwise.adapters.truncate import decompose, largest_target, truncate_pairs, used_ranks
from rankwise.allocation.budget import Target, spent
from rankwise.errors import BudgetError


def pair(rank, in_features, out_features, *, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, in_features, generator=generator)
    return Pair(a, torch.randn(out_features, rank, generator=generator) * scale)


def some_pairs(seed=0, shapes=((4, 10, 8), (3, 6, 20), (4, 8, 10), (0, 5, 5), (6, 4, 12))):
    return {f"layer.{i}.m": pair(*shape, seed=seed + i, scale=1 + i) for i, shape in enumerate(shapes)}


def costs_of(pairs):
    return {name: p.cost for name, p in pairs.items()}


def dense(p):
    return (p.b.double() @ p.a.double()).numpy()


def error(pairs, others):
    squared = sum(np.linalg.norm(dense(pairs[n]) - dense(others[n])) ** 2 for n in pairs)
    return math.sqrt(squared / sum(np.linalg.norm(dense(p)) ** 2 for p in pairs.values()))


@pytest.mark.parametrize("shape", [(3, 10, 8), (12, 10, 8), (12, 4, 20), (1, 1, 5), (0, 6, 7)])
def test_decomposition_is_the_svd_of_the_dense_product(shape):
    """More components than the matrix has rank included."""
    p = pair(*shape)
    part = decompose(p)
    expected = np.linalg.svd(dense(p), compute_uv=False)
    count = min(shape)
    np.testing.assert_allclose(part.values.numpy(), expected[:count], rtol=1e-10, atol=1e-12)
    rebuilt = (part.left * part.values) @ part.right.T if shape[0] else torch.zeros(shape[2], shape[1])
    np.testing.assert_allclose(rebuilt.numpy(), dense(p), atol=1e-10)


@given(seed=st.integers(0, 1000), share=st.floats(0.2, 1.0))
def test_spends_exactly_and_loses_what_it_says(seed, share):
    pairs = some_pairs(seed)
    costs = costs_of(pairs)
    ranks = {name: min(p.rank, *p.a.shape[1:], p.b.shape[0]) for name, p in pairs.items()}
    target = largest_target(int(share * spent(ranks, costs)), ranks, costs)
    cut = truncate_pairs(pairs, target, costs)
    assert spent(cut.ranks, costs) == target.total
    assert {name: p.rank for name, p in cut.pairs.items()} == cut.ranks
    assert cut.total_lost == pytest.approx(error(pairs, cut.pairs), abs=1e-6)
    for name in pairs:
        if pairs[name].rank:
            assert cut.lost[name] == pytest.approx(error({name: pairs[name]}, cut.pairs), abs=1e-6)


@given(seed=st.integers(0, 1000), total=st.integers(1, 15))
def test_in_ranks_it_is_one_threshold_over_all_modules(seed, total):
    pairs = some_pairs(seed)
    cut = truncate_pairs(pairs, Target(total, "ranks"), costs_of(pairs))
    values = {name: np.linalg.svd(dense(p), compute_uv=False)[: p.rank] for name, p in pairs.items()}
    kept = np.concatenate([values[n][: cut.ranks[n]] for n in pairs])
    gone = np.concatenate([values[n][cut.ranks[n] :] for n in pairs])
    live = gone[gone > 1e-9]
    assert len(kept) == total
    assert not len(live) or live.max() <= kept.min() * (1 + 1e-9)


def test_in_ranks_no_allocation_loses_less():
    pairs = some_pairs(shapes=((3, 6, 5), (3, 8, 7), (2, 5, 9)))
    cut = truncate_pairs(pairs, Target(4, "ranks"), costs_of(pairs))
    values = {n: np.linalg.svd(dense(p), compute_uv=False)[: p.rank] for n, p in pairs.items()}
    whole = sum((v**2).sum() for v in values.values())
    losses = [
        math.sqrt(sum((v[r:] ** 2).sum() for v, r in zip(values.values(), ranks, strict=True)) / whole)
        for ranks in itertools.product(*(range(p.rank + 1) for p in pairs.values()))
        if sum(ranks) == 4
    ]
    assert cut.total_lost == pytest.approx(min(losses), rel=1e-9)


def test_everything_kept_is_the_same_adapter():
    pairs = some_pairs(shapes=((4, 10, 8), (3, 6, 20)))
    costs = costs_of(pairs)
    cut = truncate_pairs(pairs, Target(spent({n: p.rank for n, p in pairs.items()}, costs), "parameters"), costs)
    assert cut.total_lost == 0
    assert error(pairs, cut.pairs) < 1e-6
    for name, p in cut.pairs.items():
        assert (p.a.dtype, p.b.dtype) == (torch.float32, torch.float32)
        np.testing.assert_allclose(p.a.norm(), p.b.norm(), rtol=1e-5)  # σ is shared evenly
        assert p.rank == pairs[name].rank


def test_copies_of_one_component_become_one():
    """Rank 4 in name, 1 in truth: the other three cost nothing to drop, and go first."""
    one = pair(1, 10, 8)
    copies = Pair(one.a.repeat(4, 1), one.b.repeat(1, 4))
    pairs = {"copies": copies, "full": pair(4, 10, 8, seed=1, scale=1e-3)}
    cut = truncate_pairs(pairs, Target(5, "ranks"), costs_of(pairs))
    assert cut.ranks == {"copies": 1, "full": 4}
    assert cut.total_lost < 1e-7


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e4])
def test_components_in_use_are_those_that_do_something(scale):
    p = pair(3, 10, 8, scale=scale)
    padded = Pair(torch.cat([p.a, torch.zeros(5, 10)]), torch.cat([p.b, torch.zeros(8, 5)], 1))
    twice = Pair(torch.cat([p.a, p.a]), torch.cat([p.b, p.b], 1))
    nothing = Pair(p.a, torch.zeros(8, 3))
    found = used_ranks({"p": p, "padded": padded, "twice": twice, "nothing": nothing, "none": pair(0, 4, 4)})
    assert found == {"p": 3, "padded": 3, "twice": 3, "nothing": 0, "none": 0}


def test_half_precision_keeps_its_type():
    p = pair(4, 10, 8)
    cut = truncate_pairs({"m": Pair(p.a.bfloat16(), p.b.bfloat16())}, Target(2, "ranks"), {"m": 18})
    assert (cut.pairs["m"].a.dtype, cut.pairs["m"].b.dtype) == (torch.bfloat16, torch.bfloat16)


def test_a_module_that_does_nothing_loses_nothing():
    zero = Pair(torch.randn(2, 5), torch.zeros(5, 2))
    cut = truncate_pairs({"zero": zero, "m": pair(3, 5, 5)}, Target(2, "ranks"), {"zero": 10, "m": 10})
    assert (cut.ranks["zero"], cut.lost["zero"]) == (0, 0.0)


def test_nothing_to_cut_is_an_error():
    with pytest.raises(BudgetError, match="every module has rank 0"):
        truncate_pairs({"m": pair(0, 5, 5)}, Target(1, "ranks"), {"m": 10})


@given(
    ranks=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    costs=st.lists(st.integers(2, 30), min_size=5, max_size=5),
    asked=st.integers(1, 200),
)
def test_largest_target_is_that_of_brute_force(ranks, costs, asked):
    have = {f"m{i}": rank for i, rank in enumerate(ranks)}
    price = {f"m{i}": cost for i, cost in enumerate(costs)}
    sums = {
        spent(dict(zip(have, chosen, strict=True)), price)
        for chosen in itertools.product(*(range(rank + 1) for rank in ranks))
    }
    best = max(total for total in sums if total <= asked)
    if best == 0:
        with pytest.raises(BudgetError, match=r"less than one component costs|nothing is left to cut"):
            largest_target(asked, have, price)
    else:
        assert largest_target(asked, have, price) == Target(best, "parameters")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scaling", [0.25, 2.0, 1.7])
def test_folding_never_rounds(dtype, scaling):
    b = torch.randn(8, 3).to(dtype)
    folded = fold(torch.randn(3, 5).to(dtype), b, scaling)
    exact = b.double() * torch.tensor(scaling, dtype=torch.float32).double()
    assert torch.allclose(folded.b.double(), exact, rtol=2e-7)
    assert folded.b.dtype == (torch.float32 if scaling == 1.7 else dtype)
