"""What servers make of our checkpoints: their reading rules, written down again from their sources, against the truth.

The three `*_reads` functions follow the servers' code step by step over the files alone (config and tensors) and
return the ΔW each would apply; `rankwise.adapters.serving` has to say beforehand whether that is PEFT's.
"""

import json
import math
import re
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, WORDS, build
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.adapters.attach import ADAPTER, attach_lora, find_matrices
from rankwise.adapters.checkpoint import read_checkpoint
from rankwise.adapters.export import export_adapter, linear_matrices, lora_pairs
from rankwise.adapters.resize import apply_resize
from rankwise.adapters.serving import Stored, serving_verdicts


class Refused(Exception):
    """The server does not load it."""


def files(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, load_file(folder / "adapter_model.safetensors")


def modules_in(tensors):
    return sorted({re.sub(r"\.lora_[AB]\.weight$", "", key) for key in tensors})


def product(tensors, module, scale):
    return scale * tensors[f"{module}.lora_B.weight"].double() @ tensors[f"{module}.lora_A.weight"].double()


def vllm_reads(config, tensors, base):
    """PEFTHelper keeps seven fields; every module gets one factor; buffers hold the server's max_lora_rank."""
    known = {k: v for k, v in config.items() if k in ("r", "lora_alpha", "modules_to_save", "use_rslora", "use_dora")}
    if known["modules_to_save"] or known["use_dora"]:
        raise Refused
    factor = known["lora_alpha"] / (math.sqrt(known["r"]) if known["use_rslora"] else known["r"])
    slots = [slot for slot in (1, 8, 16, 32, 64, 128, 256, 320, 512) if slot >= known["r"]]
    if not slots:
        raise Refused
    applied = {}
    for module in modules_in(tensors):
        if tensors[f"{module}.lora_A.weight"].shape[0] > slots[0]:
            raise Refused
        applied[module] = product(tensors, module, factor)
    return applied


def sglang_reads(config, tensors, base):
    """Any override of r or alpha is refused on every load route; alpha / r, whatever use_rslora says."""
    if config["peft_type"].lower() != "lora" or config["modules_to_save"] or config["use_dora"]:
        raise Refused
    if {v for v in config["rank_pattern"].values() if v != config["r"]}:
        raise Refused
    if {v for v in config["alpha_pattern"].values() if v != config["lora_alpha"]}:
        raise Refused
    return {module: product(tensors, module, config["lora_alpha"] / config["r"]) for module in modules_in(tensors)}


def lorax_reads(config, tensors, base):
    """For each kind of layer: all layers or none, padded to 8 or a multiple of 16, then stacked."""
    if config["peft_type"] != "LORA" or config["modules_to_save"] or config["use_dora"]:
        raise Refused
    factor = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    kinds = defaultdict(list)
    for name in base:
        kinds[re.sub(r"\.\d+\.", ".N.", name)].append(f"base_model.model.{name}")
    applied = {}
    for members in kinds.values():
        if any(f"{member}.lora_A.weight" not in tensors for member in members):
            continue  # `return None`: the kind is left out
        stacked = []
        for member in members:
            rank = tensors[f"{member}.lora_A.weight"].shape[0]
            width = 8 if rank <= 8 else (rank + 15) // 16 * 16
            stacked.append(torch.zeros(width))
        try:
            torch.stack(stacked)
        except RuntimeError:
            raise Refused from None
        applied |= {member: product(tensors, member, factor) for member in members}
    return applied


READERS = {"vLLM": vllm_reads, "SGLang": sglang_reads, "LoRAX/TGI": lorax_reads}


def reads_rightly(server, folder, truth, base):
    """Whether a server's ΔW is the true one for every module (modules whose truth is zero may be missing)."""
    config, tensors = files(folder)
    try:
        applied = READERS[server](config, tensors, base)
    except Refused:
        return False
    zero = torch.zeros((), dtype=torch.float64)
    return all(
        (applied.get(f"base_model.model.{name}", zero) - delta.double()).norm() <= 1e-5 * delta.double().norm()
        for name, delta in truth.items()
    )


def verdicts(folder, base):
    checkpoint = read_checkpoint(folder)
    scalings = {name: saved.scaling for name, saved in checkpoint.saved.items()}
    stored = Stored(checkpoint.config, checkpoint.shapes, scalings, base)
    return {verdict.server: verdict for verdict in serving_verdicts(stored)}


def causal(ranks=None, *, layers=2, scaling=2.0):
    """A tiny causal Llama with adapters of these ranks, in model order (0: taken off again)."""
    torch.manual_seed(0)
    settings = CONFIGS["llama"][2] | {"num_hidden_layers": layers}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, pad_token_id=0, **settings))
    names = list(find_matrices(base))
    model = attach_lora(base, names, config=LoraConfig(r=2, lora_alpha=2 * scaling), seed=0)
    generator = torch.Generator().manual_seed(1)
    if ranks:
        apply_resize(model, {name: ranks[i % len(ranks)] for i, name in enumerate(names)})
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    truth = {
        name: module.get_delta_weight(ADAPTER).detach()
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, LoraLayer)
    }
    return model, truth | {name: torch.zeros(()) for name in names if name not in truth}


ALL, NONE = set(READERS), set()
CASES = {
    "uneven compact": ((0, 1, 3, 9, 2), "compact", {"vLLM"}),
    "uneven uniform": ((0, 1, 3, 9, 2), "uniform", ALL),
    "even compact": ((4,), "compact", ALL),
    "even uniform": ((4,), "uniform", ALL),
    "large uniform": ((70, 3), "uniform", ALL),
}


@pytest.mark.parametrize(("ranks", "form", "right"), CASES.values(), ids=CASES)
def test_our_forms_are_read_rightly(tmp_path, ranks, form, right):
    model, truth = causal(ranks)
    base = linear_matrices(model)
    export_adapter(model, lora_pairs(model), tmp_path / "out", form)
    assert {name for name in READERS if reads_rightly(name, tmp_path / "out", truth, base)} == right
    assert {name for name, v in verdicts(tmp_path / "out", base).items() if v.right} == right


def test_compact_is_read_by_stackers_as_long_as_ranks_pad_alike(tmp_path):
    """All ranks up to 8 pad to 8."""
    model, truth = causal((1, 8, 3, 2, 5))
    base = linear_matrices(model)
    export_adapter(model, lora_pairs(model), tmp_path / "out")
    assert reads_rightly("LoRAX/TGI", tmp_path / "out", truth, base)
    found = verdicts(tmp_path / "out", base)
    assert found["LoRAX/TGI"].right
    assert "refuses rank_pattern" in found["SGLang"].problems[0]


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_what_peft_saves_after_a_resize_is_misread_by_vllm(tmp_path):
    """Ranks and alphas in patterns that vLLM does not know: right ΔW in PEFT, another one there."""
    model, truth = causal((9, 3, 1, 2, 9))
    model.save_pretrained(tmp_path)
    for name, delta in truth.items():
        pair = read_checkpoint(tmp_path).pairs[name]
        torch.testing.assert_close(pair.b @ pair.a, delta, rtol=1e-4, atol=1e-5)
    base = linear_matrices(model)
    found = verdicts(tmp_path, base)
    assert not any(reads_rightly(name, tmp_path, truth, base) or found[name].right for name in ("SGLang", "LoRAX/TGI"))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"]
    # alpha = 2 r everywhere, so vLLM's one factor happens to be right ...
    assert reads_rightly("vLLM", tmp_path, truth, base)
    assert found["vLLM"].right
    # ... and is wrong as soon as alpha stays behind
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {}}))
    changed = {name: pair.b @ pair.a for name, pair in read_checkpoint(tmp_path).pairs.items()}
    assert not reads_rightly("vLLM", tmp_path, changed, base)
    (problem,) = verdicts(tmp_path, base)["vLLM"].problems
    assert re.match(r"scales \d+ of 14 modules wrongly \(model\.layers\.\d\.\w+\.\w+: 2 instead of ", problem)


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_modules_above_the_rank_that_the_config_promises_do_not_fit_into_vllm(tmp_path):
    """PEFT's `r` is that of the modules without a pattern, here 1; a server started for it has no room for 9."""
    model, truth = causal((1, 3, 9, 2, 1))
    model.save_pretrained(tmp_path)
    base = linear_matrices(model)
    assert not reads_rightly("vLLM", tmp_path, truth, base)
    (problem,) = verdicts(tmp_path, base)["vLLM"].problems
    assert problem == "a module has rank 9, the config's r = 1 promises at most 1"


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_rslora_is_misread_by_sglang_alone(tmp_path):
    base = causal()[0].unload()
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    truth = {
        name: module.get_delta_weight(ADAPTER).detach()
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, LoraLayer)
    }
    names = linear_matrices(model)
    assert {name for name in READERS if reads_rightly(name, tmp_path, truth, names)} == {"vLLM", "LoRAX/TGI"}
    assert {name for name, v in verdicts(tmp_path, names).items() if v.right} == {"vLLM", "LoRAX/TGI"}


def test_classifiers_and_adalora_are_for_peft_alone(tmp_path):
    folder = build("lora").export(tmp_path / "classifier", "uniform")
    for verdict in verdicts(folder, ()).values():
        assert verdict.problems == ("takes no modules trained whole (classifier)",)
    stored = Stored({"peft_type": "ADALORA", "r": 8, "lora_alpha": 8}, {}, {})
    assert all("peft_type ADALORA is not LORA" in verdict.problems for verdict in serving_verdicts(stored))
    dora = Stored({"peft_type": "LORA", "r": 8, "lora_alpha": 8, "use_dora": True}, {}, {})
    assert all(verdict.problems == ("takes no DoRA",) for verdict in serving_verdicts(dora))


NAMES = [f"model.layers.{layer}.self_attn.{kind}" for layer in (0, 1, 11) for kind in ("q_proj", "v_proj")]


@st.composite
def checkpoints(draw):
    """Any plain LoRA checkpoint on three layers: mixed ranks, patterns, rsLoRA, modules missing."""
    present = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    r, alpha = draw(st.sampled_from([1, 2, 4, 9])), draw(st.sampled_from([1, 4, 9]))
    ranks = {name: draw(st.sampled_from([r, r, 1, 9, 18])) for name in present}
    alphas = {name: draw(st.sampled_from([alpha, alpha, 3])) for name in present}
    config = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": draw(st.booleans()),
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {re.escape(name): rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {re.escape(name): value for name, value in alphas.items() if value != alpha},
        "target_modules": present,
    }
    return config, ranks


@given(checkpoints())
def test_verdicts_agree_with_the_readers_on_any_checkpoint(tmp_path_factory, made):
    config, ranks = made
    folder = tmp_path_factory.mktemp("made")
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, rank in ranks.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, 6, generator=generator)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(4, rank, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    truth = {name: pair.b @ pair.a for name, pair in read_checkpoint(folder).pairs.items()}
    for server, verdict in verdicts(folder, NAMES).items():
        assert verdict.right == reads_rightly(server, folder, truth, NAMES), verdict


def test_without_the_base_model_layers_are_those_of_the_file(tmp_path):
    """q on layers 0 and 1, v on layer 1 alone: v is a kind with a hole, layers beyond 1 cannot be known of."""
    ranks = dict.fromkeys((NAMES[0], NAMES[2], NAMES[3]), 4)
    shapes = {f"base_model.model.{name}.lora_A.weight": (4, 6) for name in ranks}
    stored = Stored({"peft_type": "LORA", "r": 4, "lora_alpha": 4}, shapes, dict.fromkeys(ranks, 1.0))
    (problem,) = next(v for v in serving_verdicts(stored) if v.server == "LoRAX/TGI").problems
    assert problem == ("drops model.layers.self_attn.v_proj altogether: model.layers.0.self_attn.v_proj has no adapter")


def test_uniform_loads_in_peft(tmp_path):
    model, truth = causal((0, 1, 3, 9, 2))
    export_adapter(model, lora_pairs(model), tmp_path / "out", "uniform")
    fresh = causal()[0].unload()
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "out")
    for name, delta in truth.items():
        layer = loaded.base_model.model.get_submodule(name)
        assert layer.scaling[ADAPTER] == 1
        torch.testing.assert_close(
            layer.get_delta_weight(ADAPTER),
            delta.expand(layer.out_features, -1) if delta.dim() else torch.zeros(layer.out_features, layer.in_features),
            rtol=1e-4,
            atol=1e-5,
        )
