"""The faster forward pass: equal to PEFT's where it is used, PEFT's own everywhere else."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from tiny import batch, build, logits, tiny_model
from torch import nn

from rankwise.adapters import fused
from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.fused import FusedLinear
from rankwise.adapters.gated import add_gates


def model(family="bert", gates=False, **fields):
    """A method's model with a B (and gates) that are not zero."""
    found = build("lora", tiny_model(family), **fields).model
    if gates:
        add_gates(found, initial=0.7, per_component=True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in adapted_layers(found).values():
            weight = layer.lora_B[ADAPTER].weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return found


def stock(found):
    """The same model with PEFT's own layers."""
    plain = copy.deepcopy(found)
    for layer in adapted_layers(plain).values():
        layer.__class__ = Linear
    return plain


def gradients(found):
    found.train()
    torch.manual_seed(0)
    found(**batch()).loss.backward()
    return {name: p.grad for name, p in found.named_parameters() if p.grad is not None}


@pytest.fixture
def calls(monkeypatch):
    """Counts how often the fused function ran."""
    seen = []
    real = fused.lora_linear
    monkeypatch.setattr(fused, "lora_linear", lambda *args: (seen.append(1), real(*args))[1])
    return seen


def test_a_bias_of_b_is_left_to_peft(calls):
    config = LoraConfig(r=2, lora_bias=True, target_modules=["query"], init_lora_weights=False)
    found = get_peft_model(tiny_model(), config)
    fused.fuse(found)
    with torch.no_grad():
        for layer in adapted_layers(found).values():
            layer.lora_B[ADAPTER].bias.fill_(0.5)
    assert torch.equal(logits(found), logits(stock(found)))
    assert not calls


@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama", "deberta", "opt"])
def test_same_logits_and_gradients_as_peft(family, gates, calls):
    found = model(family, gates)
    plain = stock(found)
    torch.testing.assert_close(logits(found), logits(plain), rtol=0, atol=1e-6)
    assert len(calls) >= len(adapted_layers(found))
    one, two = gradients(found), gradients(plain)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-6)


def test_transposed_layers_stay_pefts():
    assert not any(type(layer) is FusedLinear for layer in adapted_layers(model("gpt2")).values())


def handed_over(found, calls, **kwargs):
    """PEFT's forward ran instead, with the same result as an all-stock model."""
    plain = stock(found)
    with torch.no_grad():
        torch.manual_seed(1)
        actual = found(**batch(), **kwargs).logits
        torch.manual_seed(1)
        expected = plain(**batch(), **kwargs).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert not calls


def test_dropout_in_training_only(calls):
    found = model(dropout=0.3)
    handed_over(found.train(), calls)
    logits(found.eval())
    assert calls


def test_merged_disabled_second_and_mixed_adapters(calls):
    found = model().eval()
    with found.disable_adapter():
        handed_over(found, calls)
    found.merge_adapter()
    handed_over(found, calls)
    found.unmerge_adapter()
    found.add_adapter("other", LoraConfig(r=3, target_modules=["query"], init_lora_weights=False))
    handed_over(found, calls, adapter_names=["other", "__base__", ADAPTER, "other"])
    for layer in adapted_layers(found).values():
        layer.set_adapter([ADAPTER, "other"])
    handed_over(found, calls)
    found.set_adapter("other")
    handed_over(found, calls)


def test_autocast_and_half_precision_base(calls):
    found = model().eval()
    with torch.autocast("cpu", torch.bfloat16):
        handed_over(found, calls)
    for layer in adapted_layers(found).values():
        layer.get_base_layer().to(torch.float64)  # adapters in another dtype than the base
    found.base_model.model.double()
    for layer in adapted_layers(found).values():
        layer.lora_A.float(), layer.lora_B.float()
    handed_over(found, calls)


def test_someone_who_listens_inside_is_heard(calls):
    found = model().eval()
    heard = []
    for layer in adapted_layers(found).values():
        layer.base_layer.register_forward_hook(lambda *_: heard.append(1))
    handed_over(found, calls)
    assert heard


def test_trained_base_gets_its_gradient():
    found = model()
    layer = next(iter(adapted_layers(found).values()))
    layer.base_layer.weight.requires_grad_(True)
    gradients(found)
    assert layer.base_layer.weight.grad is not None
    assert isinstance(layer.base_layer, nn.Linear)
