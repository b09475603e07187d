"""Gates: the straight-through gradient against the exact one of the expectation; routers together and one by one."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from tiny import batch, tiny_model

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.conditional import CogaloraPeftConfig
from rankwise.adapters.conditional import cogalora as gates
from rankwise.adapters.conditional.router import Router, router_cost, stacked_logits
from rankwise.adapters.conditional.tuner import ROUTER

chances = st.lists(st.floats(0.02, 0.98), min_size=1, max_size=4)


def drawing(monkeypatch, pattern):
    """Lets the next draws come out as `pattern`, of ones and zeros."""
    values = iter(pattern)

    def fixed(like):
        return torch.tensor([1.0 - next(values) for _ in range(like.numel())], dtype=like.dtype).view_as(like)

    monkeypatch.setattr(gates.torch, "rand_like", fixed)


def patterns(count):
    return list(itertools.product((0.0, 1.0), repeat=count))


def likelihood(pattern, p):
    value = torch.ones((), dtype=p.dtype)
    for z, each in zip(pattern, p, strict=True):
        value = value * (each if z else 1 - each)
    return value


def expected_gradients(loss, p):
    """(mean of the straight-through gradient over all patterns, exact gradient of the expected loss)."""
    through = torch.zeros_like(p)
    with pytest.MonkeyPatch.context() as patch:
        for pattern in patterns(len(p)):
            drawing(patch, pattern)
            leaf = p.clone().requires_grad_()
            drawn = gates.straight_through(leaf)
            assert drawn.tolist() == pytest.approx(list(pattern))
            (gradient,) = torch.autograd.grad(loss(drawn), leaf)
            through += likelihood(pattern, p) * gradient
    leaf = p.clone().requires_grad_()
    mean = sum(likelihood(pattern, leaf) * loss(torch.tensor(pattern, dtype=p.dtype)) for pattern in patterns(len(p)))
    return through, torch.autograd.grad(mean, leaf)[0]


@given(chances, st.integers(0, 99))
def test_exact_in_expectation_where_the_loss_is_linear_in_every_gate(values, seed):
    p = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(p), generator=generator, dtype=torch.float64)
    pairs = torch.randn(len(p), len(p), generator=generator, dtype=torch.float64).triu(1)

    def loss(z):
        return weight @ z + z @ pairs @ z

    through, exact = expected_gradients(loss, p)
    torch.testing.assert_close(through, exact)


LOSSES = {
    "logistic": lambda z, m: torch.nn.functional.softplus(-m * z),
    "square, aim beyond": lambda z, m: (z - (1.5 + abs(m))).square() * torch.tensor(m).sign(),
    "exponential": lambda z, m: torch.exp(m * z / 4),
}


@pytest.mark.parametrize("name", LOSSES)
@given(p=st.floats(0.02, 0.98), m=st.floats(0.1, 6), up=st.booleans())
def test_its_sign_is_right_where_the_loss_rises_or_falls_all_the_way(name, p, m, up):
    """∂E[L]/∂p = L(1) - L(0), also as a finite difference of the expected loss."""
    slope = m if up else -m
    through, exact = expected_gradients(lambda z: LOSSES[name](z, slope).sum(), torch.tensor([p], dtype=torch.float64))
    ends = [float(LOSSES[name](torch.tensor(z, dtype=torch.float64), slope)) for z in (0.0, 1.0)]
    step = 1e-4
    around = [(p + d) * ends[1] + (1 - p - d) * ends[0] for d in (-step, step)]
    assert float(exact) == pytest.approx((around[1] - around[0]) / (2 * step), rel=1e-5)
    assert through.sign() == exact.sign()


def one_gated(kind="module"):
    """A BERT in float64 with one gated matrix, its B filled, its logit far from certain."""
    model = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
    config = CogaloraPeftConfig(
        r=3, target_modules=["encoder.layer.1.output.dense"], init_lora_weights=False, router=kind
    )
    found = get_peft_model(model, config, autocast_adapter_dtype=False).double().train()
    (layer,) = adapted_layers(found).values()
    with torch.no_grad():
        layer.lora_router[ADAPTER].up.copy_(torch.randn(1, 4, generator=torch.Generator().manual_seed(1)))
        layer.lora_router[ADAPTER].up_bias.fill_(0.3)
    return found, layer


@pytest.mark.parametrize("kind", ["module", "shared"])
def test_a_router_of_a_model_gets_the_exact_gradient_of_the_expectation(monkeypatch, kind):
    """Loss linear in what the last matrix before a linear readout gives: enumerate which of two examples open it."""
    model, layer = one_gated(kind)
    inputs = {name: value for name, value in batch(2).items() if name != "labels"}
    kept, readout = {}, {}
    layer.register_forward_hook(lambda module, args, output: kept.update(y=output))

    def run(pattern):
        drawing(monkeypatch, pattern)
        model(**inputs)
        readout.setdefault("w", torch.randn(kept["y"].shape, generator=torch.Generator().manual_seed(2)).double())
        return (kept["y"] * readout["w"]).sum()

    router = [p for n, p in layer.named_parameters() if ROUTER in n]
    context = model.base_model.context
    context.recording = True
    losses = {pattern: run(pattern) for pattern in patterns(2)}
    logits = layer.lora_router[ADAPTER](context.recorded[next(iter(context.recorded))][0])[:, 0]
    p = torch.sigmoid(logits)
    mean = sum(likelihood(pattern, p) * loss.detach() for pattern, loss in losses.items())
    exact = torch.autograd.grad(mean, router)
    for pattern in patterns(2):  # linear in both gates, so every single draw gives it
        found = torch.autograd.grad(run(pattern), router)
        torch.testing.assert_close(found, exact)
    assert all(float(gradient.abs().max()) > 0 for gradient in exact)


def test_price_and_temperature_act_on_the_chance(monkeypatch):
    """P(open) = σ((logit - price) / temperature): compare what is drawn with a threshold just beside it."""
    model, layer = one_gated()
    context = model.base_model.context
    context.recording, context.price, context.temperature = True, 0.7, 1.9
    seen = []
    inner = gates.straight_through
    monkeypatch.setattr(gates, "straight_through", lambda p: (seen.append(p.detach()), inner(p))[1])
    model(**batch(4))
    logits = layer.lora_router[ADAPTER](next(iter(context.recorded.values()))[0])[:, 0]
    torch.testing.assert_close(seen[0], 1 / (1 + torch.exp(-(logits - 0.7) / 1.9)))


def test_draws_come_as_often_as_their_chance():
    torch.manual_seed(0)
    p = torch.tensor([0.1, 0.5, 0.9])
    mean = torch.stack([gates.straight_through(p) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, p, rtol=0, atol=0.03)  # 4 standard deviations


def test_a_router_written_out():
    torch.manual_seed(0)
    router = Router(6, 3, 2, initial=1.5).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    assert torch.equal(router(x), torch.full((4, 2), 1.5, dtype=torch.float64))
    torch.nn.init.normal_(router.up)
    centred = x - x.mean(1, keepdim=True)
    seen = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    middle = seen @ router.down.T + router.down_bias
    middle = middle * 0.5 * (1 + torch.erf(middle / math.sqrt(2)))
    torch.testing.assert_close(router(x), middle @ router.up.T + router.up_bias)
    assert sum(p.numel() for p in router.parameters()) == router_cost(6, 3, 2)


def test_routers_in_one_go_give_what_each_gives(monkeypatch):
    torch.manual_seed(0)
    routers = {f"m{i}": Router(width, 4, 1).double() for i, width in enumerate((6, 8, 6, 6, 8))}
    seen = {name: torch.randn(3, router.down.shape[1], dtype=torch.float64) for name, router in routers.items()}
    for router in routers.values():
        for parameter in router.parameters():
            torch.nn.init.normal_(parameter)
    together = stacked_logits(routers, seen)
    assert together.keys() == routers.keys()
    for name, router in routers.items():
        torch.testing.assert_close(together[name], router(seen[name]))
        gradient = torch.autograd.grad(together[name].sum(), list(router.parameters()), retain_graph=True)
        torch.testing.assert_close(gradient, torch.autograd.grad(router(seen[name]).sum(), list(router.parameters())))
