"""The fused adapter layer against the same thing written out, values and gradients, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.engine.lora_linear import lora_linear


def parts(in_, out, rank, gates, bias, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": draw(*batch, in_),
        "weight": draw(out, in_),
        "bias": draw(out) if bias else None,
        "a": draw(rank, in_),
        "b": draw(out, rank),
        "gate": None if gates is None else draw(gates),
    }


def written_out(x, weight, bias, a, b, gate, scaling):
    hidden = x @ a.T
    if gate is not None:
        hidden = hidden * gate
    y = x @ weight.T + hidden @ b.T * scaling
    return y if bias is None else y + bias


@st.composite
def cases(draw):
    rank = draw(st.integers(1, 5))
    batch = draw(st.sampled_from([(3,), (2, 3), (1, 1, 2)]))
    gates = draw(st.sampled_from([None, 1, rank]))
    return draw(st.integers(1, 7)), draw(st.integers(1, 7)), rank, gates, draw(st.booleans()), batch


@given(cases(), st.sampled_from([0.5, 2.0]))
def test_values_and_gradients(case, scaling):
    given_ = parts(*case)
    trained = ["x", "a", "b", *(["gate"] if given_["gate"] is not None else [])]
    for name in trained:
        given_[name].requires_grad_()
    y, expected = lora_linear(**given_, scaling=scaling), written_out(**given_, scaling=scaling)
    torch.testing.assert_close(y, expected)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for one, two in zip(
        torch.autograd.grad((y * weights).sum(), [given_[n] for n in trained]),
        torch.autograd.grad((expected * weights).sum(), [given_[n] for n in trained]),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("gates", [None, 1, 3])
def test_numerical_gradients(gates):
    given_ = parts(5, 4, 3, gates, True, (2, 3))
    names = ["x", "a", "b", *([] if gates is None else ["gate"])]
    for name in names:
        given_[name].requires_grad_()

    def function(*values):
        return lora_linear(**(given_ | dict(zip(names, values, strict=True))), scaling=1.5)

    assert torch.autograd.gradcheck(function, [given_[name] for name in names])


@pytest.mark.parametrize("trained", ["x", "a", "b", "gate"])
def test_only_what_is_asked_for_gets_a_gradient(trained):
    given_ = parts(5, 4, 3, 3, True, (2, 3))
    given_[trained].requires_grad_()
    lora_linear(**given_, scaling=1.5).sum().backward()
    assert {name for name, value in given_.items() if value.grad is not None} == {trained}


def test_gradient_of_an_expanded_tensor():
    """`.sum()` hands back one number expanded over the output; a transposed consumer a strided one."""
    given_ = parts(5, 4, 3, None, False, (2, 3))
    given_["b"].requires_grad_()
    lora_linear(**given_, scaling=1.0).transpose(0, 1).tanh().sum().backward()
    found, given_["b"].grad = given_["b"].grad, None
    written_out(**given_, scaling=1.0).transpose(0, 1).tanh().sum().backward()
    torch.testing.assert_close(found, given_["b"].grad)


def test_nothing_is_kept_without_gradients():
    given_ = parts(5, 4, 3, None, True, (2, 3))
    assert lora_linear(**given_, scaling=1.0).grad_fn is None
