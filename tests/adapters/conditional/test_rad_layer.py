"""The layer: what it computes against plain LoRA, in closed, open and nested form; its gradients and its FLOPs."""

import pytest
import torch
from gated import TARGETS, context, padded, rows_of, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from ranked import KINDS, made, out, ranked, ranked_config, ranks
from tiny import tiny_model
from torch.utils.flop_counter import FlopCounterMode

from rankwise.adapters.conditional import rad_layer
from rankwise.adapters.conditional.rad_hyper import HYPER
from rankwise.adapters.conditional.tuner import ROUTER

QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
R = 4


def layers(model):
    return [m for m in model.modules() if isinstance(m, LoraLayer)]


def classifier(kind, **fields):
    return ranked(tiny_model(**QUIET), ranked_config(kind, **fields))


@pytest.fixture(params=KINDS)
def model(request):
    found = classifier(request.param)
    out(found, tokens())
    used = ranks(found)
    assert 0 in used
    assert len(used.unique()) >= 4, "ranks differ"
    assert len(used.unique(dim=0)) > 1, "all examples are treated alike"
    return found


@torch.no_grad()
def fixed(model, rank):
    """Lets every gate be open, every rank `rank`, every coefficient 1."""
    for layer in layers(model):
        router = layer.lora_router["default"]
        router.up.zero_()
        router.up_bias.zero_()
        router.up_bias[0], router.up_bias[rank] = 100, 100
    return model


def plain(model, rank):
    """Stock LoRA of the first `rank` components, by hand."""
    found = get_peft_model(tiny_model(**QUIET), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS["bert"]))
    for own, other in zip(layers(model), layers(found), strict=True):
        other.lora_A["default"].weight.data = own.lora_A["default"].weight.detach()[:rank].clone()
        other.lora_B["default"].weight.data = own.lora_B["default"].weight.detach()[:, :rank].clone()
    return found


def without_inputs(model):
    """Generators that write the same for every input."""
    for layer in layers(model):
        if hasattr(layer, HYPER):
            layer.lora_hyper["default"].weight.data.zero_()
    return model


@pytest.mark.parametrize("rank", range(1, R + 1))
def test_rank_k_is_plain_lora_of_the_first_k_components(model, rank):
    fixed(without_inputs(model), rank)
    found, expected = out(model, tokens()), out(plain(model, rank), tokens())
    assert set(ranks(model).unique().tolist()) == {rank}
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert float((expected - out(tiny_model(**QUIET), tokens())).abs().max()) > 1e-3


def test_all_closed_is_the_base_model_exactly(model):
    model.peft_config["default"].threshold = 1.0
    assert torch.equal(out(model, tokens()), out(tiny_model(**QUIET), tokens()))
    assert not ranks(model).any()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_written_out(kind):
    """Every example by itself, from the formulas, in float64."""
    model = classifier(kind).double()
    inputs = tokens() | {"attention_mask": torch.ones(6, 9, dtype=torch.long)}
    inputs["attention_mask"][1:3, 5:] = 0
    seen = []
    layer = layers(model)[-1]
    layer.register_forward_hook(lambda module, args, result: seen.append((args[0], result)))
    out(model, inputs)
    x, result = seen[0]
    router, scaling = layer.lora_router["default"], layer.scaling["default"]
    for i in range(6):
        mean = x[i, : int(inputs["attention_mask"][i].sum())].mean(0)
        normal = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt()
        said = router.up @ torch.nn.functional.gelu(router.down @ normal + router.down_bias) + router.up_bias
        p = said[1 : 1 + R].softmax(0)
        k = 1 + sum(float(p[j:].sum()) > 0.5 for j in range(1, R))
        expected = layer.base_layer(x[i])
        if torch.sigmoid(said[0]) > 0.5:
            a, b = factors(layer, normal)
            for j in range(k):
                c = 1 + said[1 + R + j] if kind == "bank" else 1.0
                expected = expected + scaling * c * torch.outer(x[i] @ a[j], b[:, j])
        torch.testing.assert_close(result[i], expected)


def factors(layer, normal):
    if not hasattr(layer, HYPER):
        return layer.lora_A["default"].weight, layer.lora_B["default"].weight
    hyper = layer.lora_hyper["default"]
    seen = normal if hyper.down is None else hyper.down @ normal
    both = (hyper.weight @ seen + hyper.bias).view(R, -1)
    return both[:, : layer.in_features], both[:, layer.in_features :].t()


@torch.no_grad()
def test_training_with_a_draw_given_is_inference_of_that_draw(model, monkeypatch):
    """The formula that gives gradients and the one that skips rows say the same."""
    expected = out(model, tokens())
    decisions = {name: decision for (name, _), decision in made(model).items()}

    def drawn(self, module, adapter, pooled):
        return decisions[self.name]._replace(ranks=None)

    monkeypatch.setattr(rad_layer.RadloraVariant, "_drawn", drawn)
    with torch.enable_grad():
        trained = model.train()(**tokens()).logits
    torch.testing.assert_close(trained.detach(), expected, rtol=0, atol=2e-6)


def test_both_heads_and_the_coefficients_get_task_gradient(model):
    torch.manual_seed(1)
    inputs = tokens(40) | {"labels": tokens(40)["input_ids"][:, 0] % 3}
    for layer in layers(model):
        layer.lora_router["default"].up.data *= 0.2  # every gate is open for some
    model.train()(**inputs).loss.backward()
    for layer in layers(model):
        gradient = layer.lora_router["default"].up.grad.abs().sum(1)
        assert bool((gradient > 0).all()), "gate, every rank and every coefficient"
        assert float(layer.lora_router["default"].down.grad.abs().max()) > 0


def test_warm_up_holds_gates_open_and_draws_ranks_uniformly(model, monkeypatch):
    masks = []
    real = rad_layer.uniform_mask
    monkeypatch.setattr(rad_layer, "uniform_mask", lambda *args: masks.append(real(*args)) or masks[-1])
    context(model).all_open = True
    torch.manual_seed(0)
    model.train()(**tokens(40), labels=torch.zeros(40, dtype=torch.long)).loss.backward()
    assert len(masks) == len(layers(model))
    assert {tuple(row) for row in torch.cat(masks).tolist()} == {(1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 1, 1, 1)}
    for layer in layers(model):
        up = layer.lora_router["default"].up
        gradient = (torch.zeros_like(up) if up.grad is None else up.grad).abs().sum(1)
        assert not gradient[: 1 + R].any(), "neither gate nor rank is asked"
        assert bool((gradient[1 + R :] > 0).all())


class Linear(torch.nn.Module):
    """A model whose loss is linear in what its one adapted layer gives."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.proj = torch.nn.Linear(6, 5).double()

    def forward(self, inputs_embeds, attention_mask=None):
        return self.proj(inputs_embeds)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_gradient_of_draws_is_that_of_the_expectation(kind):
    """One example, all gates and ranks with their chances, against finite differences of the expected loss."""
    config = ranked_config(kind, target_modules=["proj"], r=3, init_lora_weights=False)
    model = ranked(Linear(), config).double().train()
    layer, where = layers(model)[0], torch.randn(1, 4, 5, dtype=torch.float64)
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    bias = layer.lora_router["default"].up_bias

    def said():
        return layer.lora_router["default"](x.mean(1))[0]

    def draws():
        p, q = torch.sigmoid(said()[0]), said()[1:4].softmax(0)
        return [(z, k, (p if z else 1 - p) * q[k - 1]) for z in (0, 1) for k in (1, 2, 3)]

    def loss(z, k):
        with pytest.MonkeyPatch.context() as patch:
            waits = torch.full((1, 3), 1e9, dtype=torch.float64)
            waits[0, k - 1] = 1e-9
            patch.setattr(torch.Tensor, "exponential_", lambda self: self.copy_(waits))
            patch.setattr(torch, "rand_like", lambda like: torch.full_like(like, 1.0 - z))
            return (model(inputs_embeds=x) * where).sum()

    through = sum(float(c.detach()) * torch.autograd.grad(loss(z, k), bias)[0][:4] for z, k, c in draws())

    @torch.no_grad()
    def expected():
        return sum(float(c) * float(loss(z, k)) for z, k, c in draws())

    step, differences = 1e-6, []
    for i in range(4):
        with torch.no_grad():
            bias[i] += step
            above = expected()
            bias[i] -= 2 * step
            differences.append((above - expected()) / (2 * step))
            bias[i] += step
    assert float(through.abs().min()) > 1e-6
    torch.testing.assert_close(through, torch.tensor(differences, dtype=torch.float64), rtol=1e-5, atol=1e-8)


def flops(model, inputs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(**inputs)
    return counter.get_total_flops()


def formula(model, tokens_each):
    """Adapter FLOPs by what was decided: 2 k (in + out) per token, and what writes the factors."""
    total = 0
    for layer, decision in zip(layers(model), made(model).values(), strict=True):
        size, used = layer.in_features + layer.out_features, int(decision.ranks.sum())
        total += 2 * used * size * tokens_each
        if hasattr(layer, HYPER):
            hyper = layer.lora_hyper["default"]
            total += 2 * used * size * hyper.weight.shape[1]
            if hyper.down is not None:
                total += 2 * hyper.down.numel() * int((decision.ranks > 0).sum())
    return total


def routing(model, rows, length):
    """Pooling once per input tensor that layers share, and every router."""
    pools = [layer for i, layer in enumerate(layers(model)) if i % 3 != 1]  # query and value share theirs
    pooled = sum(2 * rows * length * layer.in_features for layer in pools)
    routers = (layer.lora_router["default"] for layer in layers(model))
    return pooled + sum(2 * rows * (r.down.numel() + r.up.numel()) for r in routers)


@pytest.mark.parametrize("price", [-1.0, 0.0, 0.7, 3.0])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_flops_follow_the_decisions_by_the_formula(model, price, threshold):
    config, inputs = model.peft_config["default"], tokens(10, 7)
    config.rank_price, config.threshold = price, threshold
    counted = flops(model, inputs) - flops(tiny_model(**QUIET), inputs)
    assert counted == formula(model, 7) + routing(model, 10, 7)


def test_flops_fall_with_either_target(model):
    config, inputs, found = model.peft_config["default"], tokens(10, 7), []
    for price, threshold in ((-3.0, 0.0), (0.0, 0.0), (0.0, 0.5), (1.0, 0.5), (1.0, 0.8)):
        config.rank_price, config.threshold = price, threshold
        found.append(flops(model, inputs))
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 5


@settings(deadline=None, max_examples=8)
@given(st.permutations(range(6)), st.integers(1, 6), st.integers(0, 5))
def test_neither_others_nor_padding_matter(order, rows, more):
    for kind in KINDS:
        model, inputs = classifier(kind), tokens()
        expected, used = out(model, inputs), ranks(model)
        some = padded(rows_of(inputs, list(order)[:rows]), more)
        found = out(model, some)
        assert torch.equal(ranks(model), used[list(order)[:rows]])
        torch.testing.assert_close(found, expected[list(order)[:rows]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_used_ranks_are_those_of_the_decision(kind):
    model = classifier(kind)
    out(model, tokens())
    for (name, adapter), decision in made(model).items():
        variant = model.base_model.model.get_submodule(name).lora_variant[adapter]
        used = variant.used_ranks(decision, R)
        assert used.dtype == torch.int64
        assert torch.equal(used, (decision.weights != 0).sum(1))
        assert ROUTER in model.base_model.model.get_submodule(name).adapter_layer_names


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_eval_mode_reach_all_that_is_used(kind):
    """Gates and ranks are thresholds there; coefficients, banks and generators learn as behind open gates."""
    model = fixed(classifier(kind), R).eval()
    expected = out(model, tokens())
    found = model(**tokens()).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    found.square().sum().backward()
    learnt = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and "lora_" in name}
    assert learnt
    for name, grad in learnt.items():
        if f".{ROUTER}." not in name:
            assert grad is not None, name
            assert bool(grad.any()), name
        elif kind == "bank" and name.endswith("up_bias"):
            assert not grad[: 1 + R].any(), "gate and rank"
            assert bool(grad[1 + R :].all()), name
