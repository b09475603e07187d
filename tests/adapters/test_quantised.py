"""Adapters on quantised base weights, through PEFT's own layers: bitsandbytes (4, 8 bit) and torchao (int8), on a CPU.

Neither package is a dependency. `make test-quantised` brings what these tests need, and runs them.
"""

import importlib.util

import pytest
import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from scripted import scripted
from tiny import build, logits, settings, tiny_data, tiny_model, tiny_tokenizer, trainer_for
from torch import nn
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from rankwise.adapters.attach import ADAPTER, adapted_layers, base_parameter_count, find_matrices
from rankwise.adapters.gated import GatedLinear, add_gates
from rankwise.adapters.resize import apply_resize
from rankwise.errors import ModelError
from rankwise.training.fit import fit

SIZES = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes packs at least 64 inputs
QUIET = SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUERY = "bert.encoder.layer.0.attention.self.query"
KINDS = ("4bit", "nf4", "8bit", "int8")
NEEDS = {"4bit": "bitsandbytes", "nf4": "bitsandbytes", "8bit": "bitsandbytes", "int8": "torchao"}
MOVING = {
    "scripted": {"plan": {3: (4, 1), 6: (2, 0, 3)}},
    "glora": {"warmup": 4, "floor": 0},
    "adalora": {},
    "galora": {},
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:MatMul8bitLt", "ignore:.*torchao.*", "ignore::FutureWarning", "ignore:.*_check_is_size.*"
)


def settings_of(kind):
    skip = ["classifier"]
    if kind == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip)
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, llm_int8_skip_modules=skip
        )
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("base")
    tiny_model(**QUIET).save_pretrained(place)
    return place


@pytest.fixture(params=KINDS)
def quantised(request, folder):
    """Makes tiny BERTs with quantised blocks."""
    needed = NEEDS[request.param]
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed (pip install --no-deps {needed})")

    def make():
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, quantization_config=settings_of(request.param)
        )
        assert (
            type(model.get_submodule(QUERY)) is not nn.Linear
            or type(model.get_submodule(QUERY).weight) is not nn.Parameter
        )
        return model

    return make


def base_weights(model):
    """What the frozen matrices stand for."""
    layers = {name: layer.get_base_layer() for name, layer in adapted_layers(model).items()}
    return {
        name: (layer.weight if layer.weight.dtype == torch.int8 else dequantize_module_weight(layer)).detach().clone()
        for name, layer in layers.items()
    }


def filled(model, rank=4):
    """Uniform LoRA with a B that is not zero."""
    method = build("lora", model, budget=f"r={rank}")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in adapted_layers(method.model).values():
            weight = layer.lora_B[ADAPTER].weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return method


def make_method(name, model):
    fields = MOVING[name]
    return scripted(model, **fields) if name == "scripted" else build(name, model, **fields)


def test_sizes_are_those_of_the_matrices_not_of_their_packing(quantised, folder):
    plain = tiny_model(**QUIET)
    model = quantised()
    assert base_parameter_count(model) == base_parameter_count(plain)
    assert find_matrices(model) == find_matrices(plain)
    one, two = build("lora", model, budget="5%"), build("lora", plain, budget="5%")
    assert one.target == two.target
    assert one.rank_pattern() == two.rank_pattern()


def test_growing_keeps_the_logits_and_shrinking_the_best_part(quantised):
    method = filled(quantised())
    before = logits(method.model)
    apply_resize(method.model, dict.fromkeys(method.matrices, 7))
    torch.testing.assert_close(logits(method.model), before, rtol=0, atol=1e-5)
    layer = adapted_layers(method.model)[QUERY]
    product = layer.lora_B[ADAPTER].weight.double() @ layer.lora_A[ADAPTER].weight.double()
    u, s, v = torch.linalg.svd(product, full_matrices=False)
    apply_resize(method.model, {QUERY: 2})
    product = layer.lora_B[ADAPTER].weight.double() @ layer.lora_A[ADAPTER].weight.double()
    torch.testing.assert_close(product, (u[:, :2] * s[:2]) @ v[:2], rtol=0, atol=1e-5)


def test_taking_all_adapters_off_leaves_the_quantised_model(quantised):
    model = quantised()
    expected = logits(model)
    kind = type(model.get_submodule(QUERY))
    method = filled(model)
    assert not torch.allclose(logits(method.model), expected, atol=1e-3)
    apply_resize(method.model, dict.fromkeys(method.matrices, 0))
    torch.testing.assert_close(logits(method.model), expected, rtol=0, atol=1e-6)
    assert type(method.model.base_model.model.get_submodule(QUERY)) is kind


@pytest.mark.parametrize("per_component", [True, False])
def test_gates_act_like_the_weights_they_are_folded_into(quantised, per_component):
    gated, plain = filled(quantised()), filled(quantised())
    add_gates(gated.model, initial=1.0, per_component=per_component)
    generator = torch.Generator().manual_seed(1)
    others = adapted_layers(plain.model)
    with torch.no_grad():
        for name, layer in adapted_layers(gated.model).items():
            gate = layer.lora_A[ADAPTER].gate
            gate.copy_(torch.rand(gate.shape, generator=generator) * 2)
            others[name].lora_A[ADAPTER].weight.mul_(gate[:, None])
    assert isinstance(adapted_layers(gated.model)[QUERY].lora_A[ADAPTER], GatedLinear)
    torch.testing.assert_close(logits(gated.model), logits(plain.model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MOVING)
def test_training_through_resizes(quantised, tmp_path, name):
    """The budget is met, the quantised weights have not moved, what is saved and taken up again is the same model."""
    method = make_method(name, quantised())
    frozen = base_weights(method.model)
    losses = fit(method, tiny_tokenizer(), tiny_data(20), {}, settings(save_every=6), work_dir=tmp_path / "work").losses
    method.check_finished()
    assert all(loss < 2 for _, loss in losses)
    for part, weight in base_weights(method.model).items():
        assert torch.equal(weight, frozen[part])
    expected = logits(method.model)
    method.export(tmp_path / "out")
    again = PeftModel.from_pretrained(quantised(), tmp_path / "out")
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-4)
    resumed = make_method(name, quantised())
    more = fit(resumed, tiny_tokenizer(), tiny_data(20), {}, settings(save_every=6), work_dir=tmp_path / "work").losses
    assert more == losses
    assert torch.equal(logits(resumed.model), expected)


def test_bf16_autocast_and_checkpointing(quantised, tmp_path):
    method = make_method("scripted", quantised())
    trainer = trainer_for(method, tmp_path, settings(precision="bf16", gradient_checkpointing=True))
    trainer.train()
    assert {p.dtype for p in method.model.parameters() if p.requires_grad} == {torch.float32}
    assert all(loss < 2 for _, loss in trainer.losses)


def test_quantised_head_is_named(folder):
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed (pip install --no-deps bitsandbytes)")
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    with pytest.raises(ModelError, match=r"'classifier' is quantised .* llm_int8_skip_modules=\['classifier'\]"):
        build("lora", model)
