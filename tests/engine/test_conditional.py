"""The weighted low-rank term against the same thing written out, in float64; and how much of it is computed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from rankwise.engine import conditional
from rankwise.engine.conditional import FEW, add_open, add_weighted
from rankwise.engine.lora_linear import lora_linear


def parts(batch=3, tokens=4, in_=5, out=6, rank=3, columns=None, seed=0, dtype=torch.float64):
    """`result`, x, A, B and weights; `columns` is how many weights an example has, `rank` of them if left out."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    shapes = {"result": (batch, tokens, out), "x": (batch, tokens, in_), "a": (rank, in_), "b": (out, rank)}
    return {n: draw(*shape) for n, shape in shapes.items()} | {"weights": draw(batch, columns or rank)}


def written_out(result, x, a, b, weights, scaling, ranks=None):
    """Example by example."""
    rows = []
    for i in range(len(x)):
        k = len(a) if ranks is None else int(ranks[i])
        hidden = (x[i] @ a[:k].T) * weights[i, : min(k, weights.shape[1])]
        rows.append(result[i] + scaling * hidden @ b[:, :k].T)
    return torch.stack(rows)


def copied(given_):
    return {name: value.clone() for name, value in given_.items()}


sizes = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))


@given(sizes, st.booleans(), st.sampled_from([0.5, 2.0]))
def test_values_and_gradients(size, one_weight, scaling):
    batch, tokens, in_, out, rank = size
    given_ = parts(batch, tokens, in_, out, rank, columns=1 if one_weight else rank)
    trained = ["result", "x", "a", "b", "weights"]
    for name in trained:
        given_[name].requires_grad_()
    y = add_weighted(**(given_ | {"result": given_["result"] * 1}), scaling=scaling)
    expected = written_out(**given_, scaling=scaling)
    torch.testing.assert_close(y, expected)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = [given_[name] for name in trained]
    found, wanted = (torch.autograd.grad((value * weights).sum(), leaves) for value in (y, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("columns", [1, 3])
def test_numerical_gradients(columns):
    given_ = parts(columns=columns)
    values = [value.requires_grad_() for value in given_.values()]

    def function(result, x, a, b, weights):
        return add_weighted(result * 1, x, a, b, weights, 1.5)

    assert torch.autograd.gradcheck(function, values)


def test_a_closed_gate_gets_the_gradient_of_opening_it():
    """⟨∂L/∂y_i, s · B A x_i⟩, although the example was not touched."""
    given_ = parts(columns=1)
    given_["weights"] = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    outside = torch.randn(given_["result"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = add_weighted(**copied(given_ | {"weights": given_["weights"].detach()}), scaling=2.0)
    assert torch.equal(y, given_["result"])
    (add_weighted(**(given_ | {"result": given_["result"].clone()}), scaling=2.0) * outside).sum().backward()
    term = 2.0 * given_["x"] @ given_["a"].T @ given_["b"].T
    torch.testing.assert_close(given_["weights"].grad[:, 0], (outside * term).sum((1, 2)))


@pytest.mark.parametrize("trained", ["x", "a", "b", "weights"])
def test_only_what_is_asked_for_gets_a_gradient(trained):
    given_ = parts()
    given_[trained].requires_grad_()
    add_weighted(**(given_ | {"result": given_["result"].clone()}), scaling=1.5).sum().backward()
    assert {name for name, value in given_.items() if value.grad is not None} == {trained}


@pytest.mark.parametrize("add", [add_weighted, add_open])
@pytest.mark.parametrize("columns", [1, 3])
def test_all_closed_is_the_base_bit_for_bit(add, columns):
    given_ = parts(batch=7, columns=columns, dtype=torch.float32)
    given_["weights"].zero_()
    assert torch.equal(add(**copied(given_), scaling=2.0), given_["result"])


@pytest.mark.parametrize("add", [add_weighted, add_open])
def test_all_open_is_lora_bit_for_bit(add):
    given_ = parts(columns=1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(6, 5, generator=generator), torch.randn(6, generator=generator)
    result = torch.addmm(bias, given_["x"].flatten(0, 1), weight.T).view(3, 4, 6)
    given_ |= {"result": result, "weights": torch.ones(3, 1)}
    expected = lora_linear(given_["x"], weight, bias, given_["a"], given_["b"], None, 2.0)
    assert torch.equal(add(**copied(given_), scaling=2.0), expected)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_rank_k_is_plain_lora_of_the_first_k_components(rank):
    given_ = parts(columns=3, dtype=torch.float32)
    given_["weights"] = torch.ones(3, 3)
    weight = torch.zeros(6, 5)
    given_["result"] = given_["x"] @ weight.T
    expected = lora_linear(given_["x"], weight, None, given_["a"][:rank], given_["b"][:, :rank], None, 2.0)
    assert torch.equal(add_open(**copied(given_), scaling=2.0, ranks=torch.full((3,), rank)), expected)
    masked = given_ | {"weights": (torch.arange(3) < rank).float().expand(3, 3)}
    torch.testing.assert_close(add_weighted(**copied(masked), scaling=2.0), expected)


@st.composite
def some_open(draw):
    """Parts of which some rows are closed, and a rank per row."""
    batch, rank = draw(st.integers(1, 3 * FEW)), draw(st.integers(1, 4))
    given_ = parts(batch=batch, rank=rank, columns=draw(st.sampled_from([1, rank])), seed=draw(st.integers(0, 99)))
    is_open = torch.tensor(draw(st.lists(st.booleans(), min_size=batch, max_size=batch)))
    given_["weights"] *= is_open[:, None]
    ranks = draw(st.none() | st.lists(st.integers(0, rank), min_size=batch, max_size=batch).map(torch.tensor))
    return given_, ranks


@given(some_open())
def test_the_open_rows_alone_give_the_same_as_all(case):
    given_, ranks = case
    expected = written_out(**given_, scaling=0.5, ranks=ranks)
    torch.testing.assert_close(add_open(**copied(given_), scaling=0.5, ranks=ranks), expected)
    if ranks is None:
        torch.testing.assert_close(add_weighted(**copied(given_), scaling=0.5), expected)


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 2 * FEW])
def test_few_rows_are_worked_on_in_place_and_more_are_gathered(monkeypatch, count):
    given_ = parts(batch=2 * FEW, columns=1)
    given_["weights"] = (torch.arange(2 * FEW) < count).double()[:, None]
    seen = []
    inner = conditional._add
    monkeypatch.setattr(conditional, "_add", lambda y, *rest: (seen.append(y), inner(y, *rest)))
    result = given_["result"].clone()
    y = add_open(**(given_ | {"result": result}), scaling=2.0)
    assert y.data_ptr() == result.data_ptr()
    torch.testing.assert_close(y, written_out(**given_, scaling=2.0))
    gathered = FEW < count < 2 * FEW
    assert [len(part) for part in seen] == ([1] * count if count <= FEW else [count])
    assert all((part.untyped_storage().data_ptr() == result.untyped_storage().data_ptr()) != gathered for part in seen)


def test_closed_rows_are_not_touched():
    """Not even by zero times infinity."""
    given_ = parts(batch=9, columns=1)
    given_["x"][1:3], given_["weights"][1:3] = float("inf"), 0.0
    y = add_open(**copied(given_), scaling=2.0)
    assert torch.equal(y[1:3], given_["result"][1:3])
    assert y.isfinite().all()


@pytest.mark.parametrize("count", range(10))
def test_flops_executed_are_those_of_the_open_rows(count):
    """Rows open x tokens x 2 r (in + out): x Aᵀ and its product with Bᵀ."""
    given_ = parts(batch=9, columns=1)
    given_["weights"] = (torch.arange(9) < count).double()[:, None]
    with FlopCounterMode(display=False) as counter:
        add_open(**given_, scaling=2.0)
    assert counter.get_total_flops() == count * 4 * 2 * 3 * (5 + 6)


@given(st.lists(st.integers(0, 4), min_size=9, max_size=9))
def test_flops_executed_follow_the_ranks(ranks):
    given_ = parts(batch=9, rank=4)
    with FlopCounterMode(display=False) as counter:
        add_open(**given_, scaling=2.0, ranks=torch.tensor(ranks))
    assert counter.get_total_flops() == sum(ranks) * 4 * 2 * (5 + 6)


@pytest.mark.parametrize("add", [add_weighted, add_open])
def test_results_that_are_not_contiguous_are_not_corrupted(add):
    given_ = parts(columns=1)
    given_["result"] = given_["result"].transpose(0, 1).contiguous().transpose(0, 1)
    expected = written_out(**given_, scaling=2.0)
    torch.testing.assert_close(add(**given_, scaling=2.0), expected)


def test_no_graph_where_none_is_wanted():
    given_ = parts(columns=1)
    given_["a"].requires_grad_()
    assert add_open(**given_, scaling=1.0).grad_fn is None
