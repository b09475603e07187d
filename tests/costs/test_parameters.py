"""Counts against a formula per PEFT type, against what is trained, and against what a checkpoint holds."""

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file
from tiny import build, tiny_model
from torch import nn

from rankwise.adapters.attach import adapted_layers, base_parameter_count
from rankwise.adapters.conditional import CogaloraPeftConfig
from rankwise.adapters.conditional.router import router_cost
from rankwise.adapters.contract import METHODS
from rankwise.costs.parameters import Part, parameters_of, sorted_parameters

TARGETS = ["query", "value", "intermediate.dense"]
SIZES = [(32, 32), (32, 32), (32, 64)] * 2
HEAD = 32 * 3 + 3
RANK = 3
FACTORS = RANK * sum(a + b for a, b in SIZES)


def wrapped(config):
    config.task_type = "SEQ_CLS"
    return get_peft_model(tiny_model(), config)


@pytest.mark.parametrize(
    ("config", "factors"),
    [
        (LoraConfig(r=RANK, target_modules=TARGETS), FACTORS),
        (LoraConfig(r=RANK, rank_pattern={"query": 5}, target_modules=TARGETS), FACTORS + 2 * 2 * 64),
        (LoraConfig(r=RANK, target_modules=TARGETS, use_dora=True), FACTORS + sum(out for _, out in SIZES)),
        (LoraConfig(r=RANK, target_modules=TARGETS, lora_bias=True), FACTORS + sum(out for _, out in SIZES)),
        (LoraConfig(r=RANK, target_modules=["word_embeddings"]), RANK * (60 + 32)),
        (AdaLoraConfig(init_r=RANK, target_modules=TARGETS, total_step=9), FACTORS + RANK * len(SIZES)),
        (IA3Config(target_modules=TARGETS, feedforward_modules=["intermediate.dense"]), 2 * (32 + 32 + 32)),
        (VeraConfig(r=RANK, target_modules=["query"]), 2 * (32 + RANK)),
        (PromptTuningConfig(num_virtual_tokens=4), 4 * 32),
        (PrefixTuningConfig(num_virtual_tokens=4), 4 * 2 * 2 * 32),
    ],
    ids=["lora", "pattern", "dora", "bias", "embedding", "adalora", "ia3", "vera", "prompt", "prefix"],
)
def test_formula_per_type(config, factors):
    found = parameters_of(wrapped(config))
    assert (found.factors, found.routers, found.generators) == (factors, 0, 0)
    assert found.head == HEAD
    assert found.base == base_parameter_count(tiny_model())
    assert found.adapter == factors
    assert found.trained == factors + HEAD


@pytest.mark.parametrize("router", ["module", "shared"])
def test_routers(router):
    config = CogaloraPeftConfig(r=RANK, target_modules=TARGETS, router=router, router_hidden=5)
    found = parameters_of(wrapped(config))
    expected = sum(router_cost(a, 5) for a, _ in SIZES) if router == "module" else router_cost(32, 5, len(SIZES))
    assert (found.factors, found.routers, found.generators) == (FACTORS, expected, 0)


def test_what_is_neither_factor_nor_router_makes_factors():
    """A container on a layer that PEFT does not know: a bank; and a low-rank path around a block."""
    model = wrapped(LoraConfig(r=RANK, target_modules=TARGETS))
    layer = next(iter(adapted_layers(model).values()))
    for name, size in (("lora_bank", 7), ("lora_bypass", 11)):
        layer.adapter_layer_names = (*layer.adapter_layer_names, name)
        setattr(layer, name, nn.ModuleDict({"default": nn.Linear(size, 1, bias=False)}))
    found = parameters_of(model)
    assert (found.factors, found.generators) == (FACTORS + 11, 7)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "full"])
def test_trained_parameters_of_every_method(name):
    model = build(name, budget="r=8").model
    found = parameters_of(model)
    assert found.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.base == base_parameter_count(tiny_model())


def test_checkpoint_holds_what_is_counted(tmp_path):
    model = build("cogalora", budget="r=8").model
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert parameters_of(model).trained == sum(value.numel() for value in saved.values())
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert parameters_of(loaded) == parameters_of(model)


def test_no_adapter():
    found = parameters_of(tiny_model())
    assert (found.head, found.adapter) == (HEAD, 0)
    assert found.base + found.head == sum(p.numel() for p in tiny_model().parameters())


def test_quantised_matrices_count_their_numbers():
    model = tiny_model()
    layer = model.bert.encoder.layer[0].intermediate.dense
    layer.weight = nn.Parameter(torch.zeros(64 * 32 // 2, 1, dtype=torch.uint8), requires_grad=False)
    assert parameters_of(model) == parameters_of(tiny_model())


def test_tied_weights_count_once_and_every_parameter_has_a_part():
    model = tiny_model()
    model.classifier.weight = nn.Parameter(torch.zeros(60, 32))
    model.bert.embeddings.word_embeddings.weight = model.classifier.weight
    assert len([p for _, p in sorted_parameters(model) if p is model.classifier.weight]) == 1
    assert {part for part, _ in sorted_parameters(model)} == {Part.BASE, Part.HEAD}
