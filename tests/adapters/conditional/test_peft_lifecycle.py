"""What PEFT's own tests ask of a tuner, asked of CoGaLoRA: making, saving, loading, several adapters, taking off."""

import copy
import json
import warnings

import pytest
import torch
from gated import TARGETS, causal_model, context, decisions, fill, gated, gated_config, tokens
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    convert_to_lora,
    get_layer_status,
    get_model_status,
    get_peft_model,
)
from peft.utils import get_peft_model_state_dict
from tiny import logits, tiny_model
from transformers import AutoModelForSequenceClassification

from rankwise.adapters.attach import find_matrices
from rankwise.adapters.conditional import CogaloraPeftConfig
from rankwise.errors import ModelError

KINDS = ("module", "shared")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute"),
]


@torch.no_grad()
def out(model, inputs=None, **kwargs):
    return model.eval()(**(inputs or tokens()), **kwargs).logits


def classifier(kind="module", **fields):
    fields = {"router": kind, "task_type": TaskType.SEQ_CLS, "modules_to_save": ["classifier"]} | fields
    return gated(tiny_model(), gated_config("bert", **fields))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    found = classifier(kind)
    base = out(tiny_model())
    assert float((out(found) - base).abs().max()) > 1e-3
    gates = torch.stack(list(decisions(found).values()))
    assert 0 < float(gates.mean()) < 1
    assert len(gates.unique(dim=1).T) > 1, "all examples are treated alike"
    return found


def test_a_fresh_adapter_is_the_base_model(kind):
    found = get_peft_model(tiny_model(), gated_config("bert", router=kind))
    assert torch.equal(out(found), out(tiny_model()))
    assert all(bool((gates == 1).all()) for gates in decisions(found).values())


def test_closed_is_the_base_and_open_is_plain_lora(model):
    plain = get_peft_model(tiny_model(), LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS["bert"]))
    own = get_peft_model_state_dict(model)
    state = plain.state_dict()
    for name, value in own.items():
        key = name.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight")
        if key in state:
            state[key].copy_(value)
    model.peft_config["default"].threshold = 1.0
    assert torch.equal(out(model), out(tiny_model()))
    model.peft_config["default"].threshold = 0.0
    torch.testing.assert_close(out(model), out(plain), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}, {"is_trainable": True}])
def test_saved_and_loaded(model, tmp_path, options):
    config = model.peft_config["default"]
    config.threshold, config.usage = 0.61, dict.fromkeys(TARGETS["bert"], 0.25)
    expected = out(model)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        loaded = PeftModel.from_pretrained(tiny_model(), tmp_path, **options)
    assert torch.equal(out(loaded), expected)
    found = loaded.peft_config["default"]
    assert type(found) is CogaloraPeftConfig
    assert (found.threshold, found.usage, found.routed) == (0.61, config.usage, config.routed)
    one, two = get_peft_model_state_dict(model), get_peft_model_state_dict(loaded)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    trainable = {n for n, p in loaded.named_parameters() if p.requires_grad}
    assert any("lora_router" in n for n in trainable) == bool(options.get("is_trainable"))


def test_a_checkpoint_says_what_it_takes_to_load_it(model, tmp_path):
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"]
    assert "pip install rankwise" in written
    assert PeftConfig.from_pretrained(tmp_path).peft_type == "COGALORA"


def test_auto_classes(tmp_path, kind):
    for name, base, auto in (
        ("cls", tiny_model(), AutoPeftModelForSequenceClassification),
        ("lm", causal_model(), AutoPeftModelForCausalLM),
    ):
        base.save_pretrained(tmp_path / name / "base")
        base.name_or_path = base.config._name_or_path = str(tmp_path / name / "base")
        task = TaskType.SEQ_CLS if name == "cls" else TaskType.CAUSAL_LM
        found = gated(base, gated_config("bert" if name == "cls" else "llama", router=kind, task_type=task))
        found.save_pretrained(tmp_path / name / "adapter")
        extra = {"num_labels": 3} if name == "cls" else {}
        assert torch.equal(out(auto.from_pretrained(tmp_path / name / "adapter", **extra)), out(found))


def test_two_adapters_on_one_model(model, kind):
    expected = out(model)
    config = gated_config("bert", r=2, router=kind, target_modules=["query", "output.dense"], task_type="SEQ_CLS")
    model.add_adapter("other", config)
    fill(model, "other", seed=5)
    assert torch.equal(out(model), expected)
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".other." in n)
    model.set_adapter("other")
    alone = out(model)
    assert float((alone - expected).abs().max()) > 1e-3
    assert {key[1] for key in decisions(model)} == {"other"}
    grads = {n: p.requires_grad for n, p in model.named_parameters() if "lora_" in n}
    assert all(wanted == (".other." in n) for n, wanted in grads.items())
    assert any("lora_router.other" in n for n in grads)
    model.set_adapter("default")
    assert torch.equal(out(model), expected)


def test_both_active_at_once(kind):
    found = gated(causal_model(), gated_config("llama", router=kind))
    one = out(found)
    found.add_adapter("other", gated_config("llama", r=2, router=kind))
    fill(found, "other", seed=5)
    found.set_adapter("other")
    other = out(found)
    found.base_model.set_adapter(["default", "other"])
    both = out(found)
    assert {key[1] for key in decisions(found)} == {"default", "other"}
    assert min(float((both - single).abs().max()) for single in (one, other)) > 1e-3
    found.peft_config["other"].threshold = 1.0
    assert torch.equal(out(found), one)


def test_loading_a_second_one(model, tmp_path, kind):
    expected = out(model)
    other = classifier(kind, r=2, target_modules=["key"])
    fill(other, seed=5)
    wanted = out(other)
    other.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "second")
    assert torch.equal(out(model), expected)
    model.set_adapter("second")
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].load_state_dict(
            tiny_model().classifier.state_dict()
        )
    torch.testing.assert_close(out(model), wanted, rtol=0, atol=1e-6)


def test_disabling(model):
    expected = out(model)
    with model.disable_adapter():
        assert torch.equal(out(model), out(tiny_model()))
        assert decisions(model) == {}
    assert torch.equal(out(model), expected)


@pytest.mark.parametrize("gone", ["default", "other"])
def test_deleting(model, kind, gone):
    """Also the adapter whose router, shared, lies on the first of its layers."""
    model.add_adapter("other", gated_config("bert", r=2, router=kind, task_type="SEQ_CLS"))
    fill(model, "other", seed=5)
    left = {"default": "other", "other": "default"}[gone]
    model.set_adapter(left)
    expected = out(model)
    model.delete_adapter(gone)
    assert torch.equal(out(model), expected)
    assert not any(f".{gone}." in n for n, _ in model.named_parameters() if "lora_" in n)
    model.add_adapter(gone, gated_config("bert", router=kind))
    model.set_adapter(gone)
    assert any(f"lora_router.{gone}" in n for n, p in model.named_parameters() if p.requires_grad)


def test_mixed_batches(model, kind):
    config = gated_config("bert", r=2, router=kind, target_modules=["query", "output.dense"], task_type="SEQ_CLS")
    model.add_adapter("other", config)
    fill(model, "other", seed=5)
    inputs = tokens(7)
    for row in range(7):
        inputs["attention_mask"][row, 2 + row :] = 0
    names = ["default", "other", "__base__", "other", "default", "__base__", "default"]
    with model.disable_adapter():
        wanted = {"__base__": out(model, inputs)}
    for name in ("default", "other"):
        model.set_adapter(name)
        wanted[name] = out(model, inputs)
    context(model).recording = True
    mixed = out(model, inputs, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], wanted[name][row], rtol=0, atol=1e-5)
    owner, seen = next((key, value) for key, value in context(model).seen.items() if key[1] == "default")
    context(model).seen.clear()
    model.set_adapter("default")
    out(model, inputs)
    torch.testing.assert_close(seen, context(model).seen[owner][[0, 4, 6]], rtol=0, atol=1e-5)


def test_unloading(model):
    base = model.base_model.model
    unloaded = model.unload()
    assert torch.equal(out(unloaded), out(tiny_model()))
    assert unloaded.state_dict().keys() == tiny_model().state_dict().keys()
    assert not unloaded._forward_pre_hooks
    assert not unloaded._forward_hooks
    assert base is unloaded


def test_a_copy_lives_on_its_own(model):
    expected = out(model)
    model.train()
    model(**tokens())  # leaves a graph behind, with a shared router
    twin = copy.deepcopy(model)
    assert context(twin) is not context(model)
    fill(twin, seed=9)
    other = out(twin)
    assert not torch.equal(other, expected)
    assert torch.equal(out(model), expected)
    assert torch.equal(out(twin), other)


def merging(model):
    return {
        "merge_adapter": model.merge_adapter,
        "merge_and_unload": model.merge_and_unload,
        "convert_to_lora": lambda: convert_to_lora(model, rank=2, progressbar=False),
        "add_weighted_adapter": lambda: model.add_weighted_adapter(["default"], [1.0], "new"),
    }


@pytest.mark.parametrize("way", ["merge_adapter", "merge_and_unload", "convert_to_lora", "add_weighted_adapter"])
def test_merging_is_refused(model, way):
    expected = out(model)
    with pytest.raises((ValueError, TypeError), match="decide per input"):
        merging(model)[way]()
    assert torch.equal(out(model), expected)
    assert not model.supports_lora_conversion()


def test_transformers_loads_it_itself(model, tmp_path):
    model.save_pretrained(tmp_path / "adapter")
    tiny_model().save_pretrained(tmp_path / "base")
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    found.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(out(found), out(model))


def test_trained_head_goes_along(model, tmp_path):
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.normal_()
    expected = out(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(out(PeftModel.from_pretrained(tiny_model(), tmp_path)), expected)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "opt", "distilbert", "roberta", "deberta"])
def test_families(family, kind, tmp_path):
    """GPT-2 keeps its weights transposed; OPT hands its blocks' matrices all tokens in one row."""
    targets = [name for name in find_matrices(tiny_model(family)) if ".pos_" not in name]
    config = CogaloraPeftConfig(r=2, target_modules=targets, router=kind, fan_in_fan_out=family == "gpt2")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        found = gated(tiny_model(family), config)
        found.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny_model(family), tmp_path)
    assert float((out(found) - out(tiny_model(family))).abs().max()) > 1e-3
    assert torch.equal(out(again), out(found))


def test_status(model):
    status = get_model_status(model)
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    assert status.adapter_model_type == "CogaloraModel"
    kinds = [layer.module_type for layer in get_layer_status(model)]
    assert kinds.count("lora.Linear") == len(decisions(model))


def test_half_precision_keeps_routers_in_full(kind):
    found = get_peft_model(tiny_model().to(torch.bfloat16), gated_config("bert", router=kind))
    assert {p.dtype for n, p in found.named_parameters() if "lora_" in n} == {torch.float32}
    assert out(found).dtype == torch.bfloat16


def test_encoder_decoders_are_refused():
    with pytest.raises(ModelError, match="T5ForSequenceClassification is an encoder-decoder model"):
        get_peft_model(tiny_model("t5"), CogaloraPeftConfig(target_modules=["q"]))


def test_what_is_no_input_of_an_example_is_named(kind):
    """DeBERTa projects its table of relative positions, one for all examples."""
    config = CogaloraPeftConfig(r=2, target_modules=["query_proj", "pos_key_proj"], router=kind)
    with pytest.raises(ModelError, match=r"pos_key_proj sees \(1, 16\)|gets \(1, 16, 32\).* for each of 6 examples"):
        out(gated(tiny_model("deberta"), config))


def test_embeddings_are_refused():
    with pytest.raises(ModelError, match=r"linear layers alone; '.*word_embeddings' is Embedding"):
        get_peft_model(tiny_model(), CogaloraPeftConfig(target_modules=["query", "word_embeddings"]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"router": "both"}, "router is 'both'"),
        ({"router_hidden": 0}, "router_hidden is 0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"use_dora": True}, "cannot be combined with use_dora"),
        ({"init_lora_weights": "pissa"}, "cannot start from init_lora_weights='pissa'"),
    ],
)
def test_configs_that_make_no_sense(fields, words):
    with pytest.raises(ValueError, match=words):
        gated_config("bert", **fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda names: [*names[:-1], names[-1].replace("layer.1", "layer.7")],
            r"routed has '.*layer\.7.*', and the model has no adapter there, did you mean 'bert\.encoder\.layer\.1",
        ),
        (
            lambda names: [f"{names[0]}x.query", *names[1:]],
            r"no adapter there, did you mean 'bert.*query'\? Leave routed",
        ),
        (lambda names: names[1:], r"routed does not have 'bert\.encoder\.layer\.0\..*', which has an adapter"),
    ],
)
def test_a_shared_router_needs_just_the_modules_of_the_model(change, words, tmp_path):
    """Names that the targets match, because those are endings; a checkpoint's too."""
    good = gated(tiny_model(), gated_config(router="shared"))
    names = good.peft_config["default"].routed
    assert torch.equal(logits(gated(tiny_model(), gated_config(router="shared", routed=list(names)))), logits(good)), (
        "the right names are right"
    )
    with pytest.raises(ValueError, match=words):
        gated(tiny_model(), gated_config(router="shared", routed=change(names)))
    good.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"routed": change(names)}))
    with pytest.raises(ValueError, match=words):
        PeftModel.from_pretrained(tiny_model(), tmp_path)


def test_names_that_no_target_matches_are_told_from_the_nearest():
    fields = {"target_modules": ["layer.0.query", "layer.0.value"], "router": "shared"}
    with pytest.raises(ValueError, match=r"do not match, did you mean 'layer\.0\.query'\? Leave routed out"):
        gated_config(routed=["layer.0.qeury"], **fields)
    with pytest.raises(ValueError, match="routed is given with router 'module'"):
        gated_config(routed=["layer.0.query"], **(fields | {"router": "module"}))
