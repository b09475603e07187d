"""Export forms: what is in the folders, and that stock PEFT and Transformers compute the same from them."""

import copy
import json
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel
from safetensors.torch import load_file
from tiny import CONFIGS, WORDS, batch, build, logits, tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModel, BertModel, GPT2Config, GPT2LMHeadModel

from rankwise.adapters import export
from rankwise.adapters.attach import ADAPTER, Matrix, adapted_layers, attach_lora
from rankwise.adapters.export import Frame, export_adapter, linear_matrices, lora_pairs, padded, write_lora
from rankwise.adapters.families import family
from rankwise.adapters.gated import add_gates
from rankwise.adapters.merge import add_tensors, merge_into, save_model
from rankwise.adapters.pairs import Pair
from rankwise.adapters.resize import apply_resize
from rankwise.errors import AllocationError, ConfigError, OutputError

FORMS = ("compact", "uniform", "merged")
FAMILIES = ("bert", "distilbert", "llama", "gpt2", "t5")
LOADER = """
import json, sys, warnings, torch
warnings.simplefilter("ignore")
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
torch.set_num_threads(1)
jobs, inputs, output = json.load(open(sys.argv[1])), torch.load(sys.argv[2]), sys.argv[3]
results = {}
for key, (base, folder, form) in jobs.items():
    model = AutoModelForSequenceClassification.from_pretrained(folder if form == "merged" else base)
    if form != "merged":
        model = PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        results[key] = model.eval()(**inputs).logits
assert not any(name.split(".")[0] == "rankwise" for name in sys.modules)
torch.save(results, output)
"""


def inputs():
    """A batch that ends as T5 wants it, in one end-of-text token per example."""
    made = batch()
    made["input_ids"][:, -1] = 1
    return made


def uneven(family_name="bert", **fields):
    """A method with random weights and ranks 0, 1, 3, 9, 1, 2, … over its modules."""
    method = build("lora", tiny_model(family_name), **fields)
    names = list(method.matrices)
    ranks = {name: (0, 1, 3, 9, 1, 2)[i % 6] for i, name in enumerate(names)}
    apply_resize(method.model, ranks)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in method.model.named_parameters():
        if parameter.requires_grad:
            scale = 0.1 if ".lora_" in name else 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return method


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(family, form) -> (method, folder), and the logits of a process that never imports rankwise."""
    root = tmp_path_factory.mktemp("exported")
    jobs, methods = {}, {}
    for name in FAMILIES:
        methods[name] = uneven(name)
        tiny_model(name).save_pretrained(root / name)
        for form in FORMS:
            folder = methods[name].export(root / f"{name}-{form}", form)
            jobs[f"{name} {form}"] = (str(root / name), str(folder), form)
    (root / "jobs.json").write_text(json.dumps(jobs))
    torch.save(inputs(), root / "inputs.pt")
    words = [sys.executable, "-c", LOADER, *(str(root / n) for n in ("jobs.json", "inputs.pt", "out.pt"))]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    return root, methods, torch.load(root / "out.pt")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_loads_with_equal_logits_without_rankwise(exported, name, form):
    _, methods, answers = exported
    expected = logits(methods[name].model, inputs())
    assert (expected - logits(tiny_model(name), inputs())).abs().max() > 0.1
    torch.testing.assert_close(answers[f"{name} {form}"], expected, rtol=0, atol=1e-5)


def test_a_kind_of_matrix_that_was_dropped_everywhere_is_not_padded(tmp_path):
    method = build("lora")
    apply_resize(method.model, {name: 0 for name in method.matrices if name.endswith("query")})
    pairs = lora_pairs(method.model)
    pairs |= {name: Pair(torch.zeros(0, 32), torch.zeros(32, 0)) for name in method.matrices if name not in pairs}
    export_adapter(method.model, pairs, tmp_path / "out", "uniform")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == 10
    assert not [name for name in config["target_modules"] if name.endswith("query")]


@pytest.mark.parametrize("name", FAMILIES)
def test_uniform_is_one_rank_on_every_layer_of_every_kind(exported, name):
    root, methods, _ = exported
    config = json.loads((root / f"{name}-uniform" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (16, 16)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert not config["use_rslora"]
    tensors = load_file(root / f"{name}-uniform" / "adapter_model.safetensors")
    kinds = {family(module) for module, rank in methods[name].rank_pattern().items() if rank}
    wanted = {module for module in linear_matrices(tiny_model(name)) if family(module) in kinds}
    found = {key.split("base_model.model.")[1].split(".lora_A")[0] for key in tensors if ".lora_A" in key}
    assert found == wanted == set(config["target_modules"])
    for key, tensor in tensors.items():
        if ".lora_" in key:
            assert tensor.shape[0 if ".lora_A" in key else 1] == 16


@pytest.mark.parametrize("name", FAMILIES)
def test_compact_holds_the_live_components_only(exported, name):
    root, methods, _ = exported
    config = json.loads((root / f"{name}-compact" / "adapter_config.json").read_text())
    live = {module: rank for module, rank in methods[name].rank_pattern().items() if rank}
    assert config["r"] == config["lora_alpha"] == 9
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["rank_pattern"] == {f"^{re.escape(m)}": rank for m, rank in live.items() if rank != 9}
    assert set(config["target_modules"]) == set(live)
    tensors = load_file(root / f"{name}-compact" / "adapter_model.safetensors")
    held = sum(tensor.numel() for key, tensor in tensors.items() if ".lora_" in key)
    assert held == methods[name].parameter_count().final


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_merged_is_a_plain_model_with_the_trained_head(exported, name):
    root, methods, _ = exported
    base, merged = tiny_model(name).state_dict(), load_file(root / f"{name}-merged" / "model.safetensors")
    assert merged.keys() <= base.keys()
    ranks = methods[name].rank_pattern()
    for key, value in merged.items():
        module = key.removesuffix(".weight")
        changed = ranks.get(module, 0) > 0 or key.startswith(("classifier", "score"))
        assert torch.equal(value, base[key]) is not changed, key
    assert not (root / f"{name}-merged" / "adapter_config.json").exists()


@pytest.mark.parametrize("form", FORMS)
def test_export_leaves_the_method_as_it_was(tmp_path, form):
    method = uneven()
    before, ranks = logits(method.model), method.rank_pattern()
    state = {key: value.clone() for key, value in method.model.state_dict().items()}
    method.export(tmp_path / "one", form)
    assert torch.equal(logits(method.model), before)
    assert method.rank_pattern() == ranks
    after = method.model.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(state[key], after[key]) for key in state)
    with pytest.raises(OutputError, match="exists and is not empty"):
        method.export(tmp_path / "one", form)


@pytest.mark.parametrize("form", FORMS)
def test_other_adapters_and_gates_on_the_model_change_nothing(tmp_path, form):
    method = uneven()
    add_gates(method.model, initial=0.5, per_component=True)
    expected = logits(method.model)
    method.model.add_adapter("other", LoraConfig(target_modules=["key"], init_lora_weights=False))
    method.model.set_adapter("other")
    method.export(tmp_path / "out", form)
    assert method.model.active_adapter == "other"
    kind = type(tiny_model())
    if form == "merged":
        loaded = kind.from_pretrained(tmp_path / "out")
    else:
        loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "out")
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)


def test_uniform_covers_layers_that_were_never_adapted(tmp_path):
    """Servers stack a kind of matrix over all layers, also those that target_modules left out."""
    method = build("lora", tiny_model("llama"), target_modules=("layers.1.self_attn.q_proj",))
    method.export(tmp_path / "out", "uniform")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    names = {key.split(".lora_")[0].removeprefix("base_model.model.") for key in tensors if ".lora_" in key}
    assert names == {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)}
    assert not tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].any()


@pytest.mark.parametrize("name", ["full", "peft_adalora"])
def test_forms_of_other_methods(tmp_path, name):
    method = build(name)
    method.check_finished = lambda: None
    if name == "full":
        for form in ("compact", "uniform"):
            with pytest.raises(ConfigError, match=f"no adapter to write as '{form}'; its form is 'merged'"):
                method.export(tmp_path / form, form)
            assert not (tmp_path / form).exists()
        method.export(tmp_path / "merged", "merged")
        return
    for layer in method.layers.values():
        layer.lora_E[ADAPTER].data.normal_()
    unlabelled = {key: value for key, value in batch().items() if key != "labels"}
    expected = logits(method.model, unlabelled)
    for form in FORMS:
        folder = method.export(tmp_path / form, form)
        base = type(tiny_model()).from_pretrained(folder) if form == "merged" else tiny_model()
        loaded = base if form == "merged" else PeftModel.from_pretrained(base, folder)
        torch.testing.assert_close(logits(loaded, unlabelled), expected, rtol=0, atol=1e-5)


def pairs_of(ranks, in_features=6, out_features=4):
    return {name: Pair(torch.ones(rank, in_features), torch.ones(out_features, rank)) for name, rank in ranks.items()}


@given(st.dictionaries(st.integers(0, 12), st.integers(0, 40), min_size=1).filter(lambda ranks: any(ranks.values())))
def test_padding_adds_only_zeros(ranks):
    pairs = pairs_of({f"layers.{i}.q": rank for i, rank in ranks.items()})
    matrices = {f"layers.{i}.{kind}": Matrix(f"layers.{i}.{kind}", 6, 4) for i in range(13) for kind in "qk"}
    wide = padded(pairs, matrices)
    assert set(wide) == {f"layers.{i}.q" for i in range(13)}
    (rank,) = {pair.rank for pair in wide.values()}
    assert rank in export.SERVED_RANKS
    assert rank == 8 or rank < 2 * max(ranks.values())
    for name, pair in wide.items():
        have = pairs[name].rank if name in pairs else 0
        assert (pair.a.shape, pair.b.shape) == ((rank, 6), (4, rank))
        assert torch.equal(pair.b @ pair.a, torch.full((4, 6), float(have)))


@pytest.mark.parametrize(("largest", "rank"), [(1, 8), (8, 8), (9, 16), (64, 64), (129, 256), (257, 320), (512, 512)])
def test_uniform_ranks_are_those_that_servers_take(largest, rank):
    assert {pair.rank for pair in padded(pairs_of({"a": 1, "b": largest}), {}).values()} == {rank}


def test_rank_above_what_servers_take_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="goes up to rank 512, this adapter has 513"):
        write_lora(Frame(), pairs_of({"a": 513}), tmp_path / "out", "uniform")
    assert not (tmp_path / "out").exists()


def test_lora_writer_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(ConfigError, match="needs the base model"):
        write_lora(Frame(), pairs_of({"a": 2}), tmp_path / "out", "merged")
    with pytest.raises(AllocationError, match="every module ended at rank 0"):
        write_lora(Frame(), pairs_of({"a": 0}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMS)
def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch, form):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    method = uneven()
    monkeypatch.setattr(export, "save_file", full)
    monkeypatch.setattr(type(tiny_model()), "save_pretrained", full)
    with pytest.raises(OutputError, match="No space left on device"):
        method.export(tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_further_files_are_in_the_folder_from_the_start(tmp_path):
    write_lora(Frame(), pairs_of({"a": 2}), tmp_path / "out", files={"README.md": "# an adapter\n"})
    assert (tmp_path / "out" / "README.md").read_text() == "# an adapter\n"


@pytest.mark.filterwarnings("ignore")
def test_model_without_task_type_says_its_class(tmp_path):
    """PEFT then finds the class to load by what the config notes."""
    settings = CONFIGS["bert"][2]
    torch.manual_seed(0)
    base = BertModel(CONFIGS["bert"][1](vocab_size=WORDS, **settings))
    base.save_pretrained(tmp_path / "base")
    base = AutoModel.from_pretrained(tmp_path / "base")
    model = attach_lora(base, ["encoder.layer.0.attention.self.query"], config=LoraConfig(r=2), seed=0)
    export_adapter(model, lora_pairs(model), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["task_type"] is None
    assert config["auto_mapping"] == {
        "base_model_class": "BertModel",
        "parent_library": "transformers.models.bert.modeling_bert",
    }


@pytest.mark.filterwarnings("ignore")
def test_task_type_and_base_model_let_peft_find_everything(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    base = type(tiny_model()).from_pretrained(tmp_path / "base")
    method = build("lora", base)
    folder = method.export(tmp_path / "out")
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded), logits(method.model), rtol=0, atol=1e-6)


def test_half_precision_weights_are_rounded_once():
    model = tiny_model().to(torch.bfloat16)
    name = "bert.encoder.layer.0.attention.self.query"
    before = model.get_submodule(name).weight.detach().clone()
    pair = Pair(torch.randn(3, 32), torch.randn(32, 3) * 1e-2)
    merge_into(model, {name: pair})
    expected = (before.double() + pair.b.double() @ pair.a.double()).float().bfloat16()
    assert (model.get_submodule(name).weight == expected).float().mean() > 0.99
    twice = before + (pair.b.bfloat16() @ pair.a.bfloat16())
    assert (twice == expected).float().mean() < 0.95


def tied_model():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=1, n_head=2, n_positions=32, bos_token_id=2, eos_token_id=2)
    )


@pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`:UserWarning", "ignore:fan_in_fan_out:UserWarning"
)
def test_tied_weights_are_not_merged(tmp_path):
    model = attach_lora(tied_model(), ["lm_head", "transformer.h.0.attn.c_attn"], config=LoraConfig(r=2), seed=0)
    with pytest.raises(ConfigError, match=r"lm_head shares its weight with transformer\.wte \(tied weights\)"):
        export_adapter(model, lora_pairs(model), tmp_path / "out", "merged")
    assert not (tmp_path / "out").exists()
    untouched = {name: pair for name, pair in lora_pairs(model).items() if name != "lm_head"}
    export_adapter(model, untouched, tmp_path / "out", "merged")
    before = tied_model()
    merge_into(before, {"lm_head": Pair(torch.zeros(0, 32), torch.zeros(WORDS, 0))})  # rank 0 changes nothing


class Wrapped(torch.Tensor):
    """As torchao keeps its quantised weights: a subclass that calls itself float."""


@pytest.mark.parametrize(
    "weight",
    [
        nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False),
        nn.Parameter(torch.zeros(512, 1, dtype=torch.uint8), requires_grad=False),
        nn.Parameter(torch.zeros(32, 32).to(torch.float8_e4m3fn), requires_grad=False),
        nn.Parameter(torch.zeros(32, 32).as_subclass(Wrapped), requires_grad=False),
    ],
    ids=["int8", "packed", "fp8", "subclass"],
)
def test_quantised_weights_are_not_merged(weight):
    model = tiny_model()
    name = "bert.encoder.layer.1.attention.self.key"
    model.get_submodule(name).weight = weight
    other = "bert.encoder.layer.0.attention.self.key"
    before = model.get_submodule(other).weight.detach().clone()
    pairs = {module: Pair(torch.ones(1, 32), torch.ones(32, 1)) for module in (other, name)}
    with pytest.raises(ConfigError, match=f"{name} is quantised or no linear layer"):
        merge_into(model, pairs)
    assert torch.equal(model.get_submodule(other).weight, before)  # looked at first, changed never


def test_merging_into_another_model_is_refused():
    pair = Pair(torch.ones(1, 32), torch.ones(32, 1))
    with pytest.raises(ConfigError, match=r"BertForSequenceClassification has no module bert\.nothing"):
        merge_into(tiny_model(), {"bert.nothing": pair})
    with pytest.raises(ConfigError, match=r"for a weight of 32 x 32, this model has \(64, 32\)"):
        merge_into(tiny_model(), {"bert.encoder.layer.0.intermediate.dense": pair})
    broken = Pair(torch.full((1, 32), torch.nan), torch.ones(32, 1))
    with pytest.raises(ConfigError, match="not finite"):
        merge_into(tiny_model(), {"bert.encoder.layer.0.attention.self.key": broken})


def test_head_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match=r"classifier\.weight is \(2, 32\).* it is \(3, 32\)"):
        add_tensors(tiny_model(), {"classifier.weight": torch.zeros(2, 32)})
    with pytest.raises(ConfigError, match=r"score\.weight .* does not exist"):
        add_tensors(tiny_model(), {"score.weight": torch.zeros(3, 32)})


def test_tokenizer_goes_with_the_merged_model(tmp_path):
    save_model(tiny_model(), tmp_path, tiny_tokenizer())
    assert (tmp_path / "tokenizer.json").is_file()


def test_linear_layers_are_the_same_adapted_or_not():
    plain = linear_matrices(tiny_model("llama"))
    method = uneven("llama")
    found = linear_matrices(method.model)
    assert found.items() <= plain.items()
    assert plain.keys() - found.keys() == {"score"}  # the trained head is a copy in a wrapper
    assert len(adapted_layers(method.model)) < len(method.matrices)
    assert {n: m for n, m in found.items() if n in method.matrices} == method.matrices
    assert linear_matrices(copy.deepcopy(method.model)) == found
