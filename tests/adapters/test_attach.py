"""Which matrices are found, how the model is wrapped, and what is trained beside the adapter."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import CONFIGS, batch, build, logits, tiny_model, trainer_for
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.adapters.attach import NEW_MODULES, adapted_layers, base_parameter_count, find_matrices, head_modules
from rankwise.adapters.patterns import set_patterns
from rankwise.errors import ModelError

BLOCK = {
    "bert": "bert.encoder.layer.",
    "roberta": "roberta.encoder.layer.",
    "deberta": "deberta.encoder.layer.",
    "distilbert": "distilbert.transformer.layer.",
    "llama": "model.layers.",
    "gpt2": "transformer.h.",
    "opt": "model.decoder.layers.",
    "t5": ("transformer.encoder.block.", "transformer.decoder.block."),
}
PER_BLOCK = {"bert": 6, "roberta": 6, "deberta": 8, "distilbert": 6, "llama": 7, "gpt2": 4, "opt": 6, "t5": None}


@pytest.mark.parametrize("family", CONFIGS)
def test_all_linear_layers_of_the_blocks_and_nothing_else(family):
    model = tiny_model(family)
    matrices = find_matrices(model)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    assert list(matrices) == [name for name in linear if name.startswith(BLOCK[family])]
    count = PER_BLOCK[family]
    assert len(matrices) == (2 * count if count else 2 * 6 + 2 * 10)
    for name, matrix in matrices.items():
        shape = linear[name].weight.shape
        assert {matrix.in_features, matrix.out_features} == set(shape)
        assert matrix.cost == sum(shape)
        assert matrix.full_rank == min(shape)
    if family == "gpt2":
        fused = matrices["transformer.h.0.attn.c_attn"]
        assert (fused.in_features, fused.out_features) == (32, 96)


@pytest.mark.parametrize("family", CONFIGS)
def test_uniform_lora_attaches_to_every_family(family):
    method = build("lora", tiny_model(family), budget="r=2")
    layers = adapted_layers(method.model)
    assert set(layers) == set(method.matrices)
    trained = sum(p.numel() for n, p in method.model.named_parameters() if p.requires_grad and ".lora_" in n)
    assert trained == method.parameter_count().final == 2 * sum(method.costs.values())


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (("query",), 2),
        (("attention.self.query", "value"), 4),
        (("bert.encoder.layer.1.output.dense",), 1),
        (("output.dense",), 4),
    ],
)
def test_named_targets(targets, count):
    assert len(find_matrices(tiny_model(), targets)) == count
    assert set(adapted_layers(build("lora", target_modules=targets).model)) == set(find_matrices(tiny_model(), targets))


def test_unknown_target_has_a_suggestion():
    with pytest.raises(ModelError, match=r"'quary' matches no linear layer.*did you mean 'query'\?.*Linear layers: "):
        find_matrices(tiny_model(), ("quary",))
    with pytest.raises(ModelError, match="'classifier' matches no linear layer"):
        find_matrices(tiny_model(), ("classifier",))
    with pytest.raises(ModelError, match="target_modules"):
        find_matrices(tiny_model(), ())


def test_model_without_blocks_is_refused():
    model = nn.Sequential()
    model.add_module("body", nn.Linear(3, 3))
    with pytest.raises(ModelError, match=r"no linear layers inside repeated blocks.*Linear layers: body"):
        find_matrices(model)
    with pytest.raises(ModelError, match="Linear layers: none"):
        find_matrices(nn.Module())


def test_model_with_adapters_is_refused():
    method = build("lora")
    for name in ("lora", "glora", "peft_adalora"):
        with pytest.raises(ModelError, match="carries adapters already"):
            build(name, method.model)
        with pytest.raises(ModelError, match="carries adapters already"):
            build(name, method.model.base_model.model)


def test_percentages_refer_to_the_base_model_without_its_head():
    model = tiny_model()
    head = sum(p.numel() for p in model.classifier.parameters())
    assert base_parameter_count(model) == sum(p.numel() for p in model.parameters()) - head
    assert base_parameter_count(nn.Linear(2, 3)) == 9


NEW = [
    ("bert", ("bert.pooler", "classifier")),
    ("distilbert", ("pre_classifier", "classifier")),
    ("deberta", ("pooler", "classifier")),
    ("roberta", ("classifier",)),
    ("llama", ("score",)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "new"), NEW)
@pytest.mark.parametrize("name", ["lora", "peft_adalora"])
def test_new_modules_are_trained_whole_and_saved(tmp_path, family, new, name):
    """What the checkpoint lacked is trained, named or nested, and travels with the adapter."""

    def fresh():
        model = tiny_model(family)
        setattr(model, NEW_MODULES, new)
        return model

    method = build(name, fresh())
    assert head_modules(fresh()) == new
    root = method.model.base_model.model
    wrapped = {
        n.split(".modules_to_save")[0] for n, p in root.named_parameters() if p.requires_grad and "lora_" not in n
    }
    assert all(any(n == module or n.startswith(f"{module}.") for module in new) for n in wrapped)
    assert all(any(n == module or n.startswith(f"{module}.") for n in wrapped) for module in new)
    before = method.state_dict()
    trainer_for(method, tmp_path / "work").train()
    after = method.state_dict()
    moved = [key for key in before if "modules_to_save" in key and not torch.equal(before[key], after[key])]
    assert all(any(f".{module}." in key for key in moved) for module in new)
    method.export(tmp_path / "out")
    again = PeftModel.from_pretrained(tiny_model(family), tmp_path / "out")
    torch.testing.assert_close(logits(again, batch()), logits(method.model, batch()), rtol=0, atol=1e-5)


class Nested(nn.Module):
    """Names that end alike: one is a suffix of the other."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(6, 5)}) for _ in range(2)])
        self.vision = nn.ModuleDict(
            {"layers": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(6, 5)}) for _ in range(2)])}
        )

    def forward(self, x):
        return sum(layer["q"](x) for layer in [*self.layers, *self.vision["layers"]])


def test_patterns_tell_names_apart_that_end_alike(tmp_path):
    ranks = {"layers.0.q": 4, "layers.1.q": 4, "vision.layers.0.q": 2, "vision.layers.1.q": 3}
    config = LoraConfig(init_lora_weights=False)
    set_patterns(config, ranks, {name: 2.0 * rank for name, rank in ranks.items()})
    torch.manual_seed(0)
    model = get_peft_model(Nested(), config)
    assert {name: layer.r["default"] for name, layer in adapted_layers(model).items()} == ranks
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(Nested(), tmp_path)
    x = torch.randn(3, 6)
    assert torch.equal(loaded(x), model(x))
