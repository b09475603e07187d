"""Gates in the rank dimension: what they compute, what is saved, how they follow a resize."""

import copy

import pytest
import torch
from peft import PeftModel
from tiny import build, logits, tiny_model
from torch import nn

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.gated import GatedLinear, add_gates, gate_of
from rankwise.adapters.resize import apply_resize
from rankwise.errors import AllocationError


def gated(*, per_component, initial=1.0, rank=4):
    """Tiny BERT under LoRA with random B and random gates."""
    model = build("lora", budget=f"r={rank}").model
    generator = torch.Generator().manual_seed(3)
    add_gates(model, initial=initial, per_component=per_component)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            weight = layer.lora_B[ADAPTER].weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
            gate = gate_of(layer).gate
            gate.copy_(torch.randn(gate.shape, generator=generator))
    return model


def delta(layer):
    """B diag(gate) A in float64, from the raw parts."""
    linear = gate_of(layer)
    return (
        layer.lora_B[ADAPTER].weight.detach().double()
        @ (linear.gate.detach().double()[:, None] * linear.raw.detach().double())
        * layer.scaling[ADAPTER]
    )


def test_a_gate_of_one_changes_nothing_and_keeps_the_parameter():
    model = build("lora", budget="r=3").model
    before, weight = logits(model), next(iter(adapted_layers(model).values())).lora_A[ADAPTER].weight
    add_gates(model, initial=1.0, per_component=True)
    layer = next(iter(adapted_layers(model).values()))
    assert gate_of(layer).raw is weight
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("per_component", [True, False])
def test_forward_is_the_folded_weight(per_component):
    torch.manual_seed(0)
    linear = GatedLinear(nn.Linear(7, 3, bias=False), initial=1.0, per_component=per_component)
    assert linear.gate.shape == ((3,) if per_component else (1,))
    with torch.no_grad():
        linear.gate.normal_()
    x = torch.randn(5, 2, 7, requires_grad=True)
    expected = x @ (linear.gate[:, None] * linear.raw).T
    torch.testing.assert_close(linear(x), expected)
    torch.testing.assert_close(nn.functional.linear(x, linear.weight), expected)
    wanted = torch.autograd.grad(expected.square().sum(), [linear.gate, linear.raw, x], retain_graph=True)
    found = torch.autograd.grad(linear(x).square().sum(), [linear.gate, linear.raw, x])
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("per_component", [True, False])
def test_merge_is_exact(per_component):
    model = gated(per_component=per_component)
    before = {name: layer.get_base_layer().weight.detach().double() for name, layer in adapted_layers(model).items()}
    wanted = {name: before[name] + delta(layer) for name, layer in adapted_layers(model).items()}
    merged = copy.deepcopy(model).merge_and_unload()
    for name, weight in wanted.items():
        torch.testing.assert_close(merged.get_submodule(name).weight.double(), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("per_component", [True, False])
def test_saved_anywhere_it_is_plain_lora(tmp_path, per_component):
    model = gated(per_component=per_component)
    state = model.state_dict()
    assert not any("gate" in key for key in state)
    raw = dict(model.named_parameters())
    assert sum(name.endswith(".gate") for name in raw) == len(adapted_layers(model))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert not any(isinstance(m, GatedLinear) for m in loaded.modules())
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-6)


def test_a_plain_adapter_loaded_into_gates_sets_them_to_one(tmp_path):
    source = gated(per_component=True)
    source.save_pretrained(tmp_path)
    model = build("lora", budget="r=4", seed=5).model
    add_gates(model, initial=0.0, per_component=True)
    model.load_adapter(str(tmp_path), ADAPTER, is_trainable=True)
    torch.testing.assert_close(logits(model), logits(source), rtol=0, atol=1e-6)
    assert all(bool((gate_of(layer).gate == 1).all()) for layer in adapted_layers(model).values())


def test_keeping_named_components_keeps_exactly_those_and_their_moments():
    model = gated(per_component=True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3)
    sum((p**3).sum() for p in trainable).backward()
    optimizer.step()
    optimizer.zero_grad()
    name, layer = next(iter(adapted_layers(model).items()))
    linear, kept = gate_of(layer), [0, 2, 3]
    parts = {"a": (linear.raw, 0), "gate": (linear.gate, 0), "b": (layer.lora_B[ADAPTER].weight, 1)}
    index = torch.tensor(kept)
    wanted = {key: p.detach().index_select(dim, index) for key, (p, dim) in parts.items()}
    moments = {
        key: {s: optimizer.state[p][s].index_select(dim, index) for s in ("exp_avg", "exp_avg_sq")}
        for key, (p, dim) in parts.items()
    }
    apply_resize(model, {name: 3}, kept={name: kept}, optimizer=optimizer)
    now = {"a": linear.raw, "gate": linear.gate, "b": layer.lora_B[ADAPTER].weight}
    for key, parameter in now.items():
        assert torch.equal(parameter, wanted[key])
        for state, value in moments[key].items():
            assert torch.equal(optimizer.state[parameter][state], value)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("per_component", [True, False])
def test_growing_keeps_the_logits(per_component):
    model = gated(per_component=per_component)
    before = logits(model)
    apply_resize(model, dict.fromkeys(adapted_layers(model), 9), seed=1, step=1)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-6)
    for layer in adapted_layers(model).values():
        gate = gate_of(layer).gate
        assert gate.shape == ((9,) if per_component else (1,))
        if per_component:  # with gate and B both zero a new component could never move
            assert bool((gate[4:] == 1).all())


def test_shrinking_under_one_gate_is_the_truncated_svd():
    model = gated(per_component=False)
    wanted = {}
    for name, layer in adapted_layers(model).items():
        u, s, v = torch.linalg.svd(delta(layer), full_matrices=False)
        wanted[name] = (u[:, :2] * s[:2]) @ v[:2]
    apply_resize(model, dict.fromkeys(wanted, 2))
    for name, layer in adapted_layers(model).items():
        assert float((delta(layer) - wanted[name]).norm() / wanted[name].norm()) < 1e-5


def test_components_with_gates_of_their_own_are_not_mixed():
    model = gated(per_component=True)
    with pytest.raises(AllocationError, match="kept"):
        apply_resize(model, dict.fromkeys(adapted_layers(model), 2))


def test_frozen_adapters_get_frozen_gates():
    linear = nn.Linear(4, 2, bias=False).requires_grad_(False)
    assert not GatedLinear(linear, initial=1.0, per_component=True).gate.requires_grad
