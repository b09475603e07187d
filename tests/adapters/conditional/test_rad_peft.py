"""What PEFT's own tests ask of a tuner, asked of RAD-LoRA."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from gated import NO_DROPOUT, causal_model, padded, rows_of, tokens
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from ranked import KINDS, enrich, out, ranked, ranked_config, ranks
from safetensors.torch import load_file
from tiny import tiny_model

from rankwise.adapters.conditional.rad_config import RadloraPeftConfig

QUIET = NO_DROPOUT["bert"]
SIZES = {"in 32": 9, "out 32": 8, "out 64": 12}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def classifier(kind, **fields):
    fields = {"task_type": TaskType.SEQ_CLS, "modules_to_save": ["classifier"]} | fields
    return ranked(tiny_model(**QUIET), ranked_config(kind, **fields))


def test_a_fresh_adapter_is_the_base_model(kind):
    found = get_peft_model(tiny_model(), ranked_config(kind))
    assert torch.equal(out(found, tokens()), out(tiny_model(), tokens()))
    trained = {name.split(".lora_")[1].split(".")[0] for name, p in found.named_parameters() if p.requires_grad}
    assert trained == {"router", "bank_A", "bank_B"} if kind == "bank" else {"router", "hyper"}


@pytest.mark.parametrize("low_memory", [False, True])
def test_saved_and_loaded(kind, tmp_path, low_memory):
    model = classifier(kind, rank_price=0.2, temperature=0.7, threshold=0.4)
    expected = out(model, tokens())
    model.save_pretrained(tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("lora_A.weight" in key or "lora_B.weight" in key for key in keys)
    found = PeftModel.from_pretrained(tiny_model(**QUIET), tmp_path, low_cpu_mem_usage=low_memory)
    torch.testing.assert_close(out(found, tokens()), expected, rtol=0, atol=1e-6 if low_memory else 0)
    assert torch.equal(ranks(found), ranks(model))
    assert not any(p.requires_grad for n, p in found.named_parameters() if ".lora_" in n)
    again = PeftModel.from_pretrained(tiny_model(**QUIET), tmp_path, is_trainable=True)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.slow
def test_loading_without_rankwise_says_what_is_missing(tmp_path):
    classifier("bank").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"].startswith("RADLORA (needs")
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install rankwise" in done.stderr


def test_auto_class(tmp_path):
    causal_model().save_pretrained(tmp_path / "base")
    base = type(causal_model()).from_pretrained(tmp_path / "base")
    model = ranked(base, ranked_config("bank", "llama", task_type=TaskType.CAUSAL_LM))
    model.save_pretrained(tmp_path / "adapter")
    found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(out(found, tokens()), out(model, tokens()))


def two(kind, other="bank"):
    model = classifier(kind)
    model.add_adapter("other", ranked_config(other, r=3, lora_alpha=3, target_modules=["value", "output.dense"]))
    enrich(model, "other", seed=4)
    return model


@pytest.mark.parametrize("other", ["bank", "hyper"])
def test_two_adapters_and_deleting_either(kind, other):
    model, expected = two(kind, other), {}
    for name in ("other", "default"):
        model.set_adapter(name)
        expected[name] = out(model, tokens())
    assert not torch.allclose(expected["other"], expected["default"], atol=1e-3)
    for gone, stays in (("default", "other"), ("other", "default")):
        left = copy.deepcopy(model)
        left.delete_adapter(gone)
        left.set_adapter(stays)
        assert torch.equal(out(left, tokens()), expected[stays])
        assert not any(f".{gone}." in name for name in left.state_dict())


def test_a_bank_goes_with_its_adapter_and_alone():
    """The layer that owns a bank of one adapter may own none of the other."""
    model = two("bank")
    owners = {
        adapter: [n for n, m in model.named_modules() if adapter in getattr(m, "lora_bank_A", {})]
        for adapter in ("default", "other")
    }
    assert owners["default"] != owners["other"]
    saved = get_peft_model_state_dict(model, adapter_name="other")
    assert sum("lora_bank" in name for name in saved) == 3, "inputs of 32 and of 64, outputs of 32"
    model.delete_adapter("default")
    assert not any("default" in getattr(m, "lora_bank_A", {}) for m in model.modules())


def test_loading_a_second_one(kind, tmp_path):
    other = two(kind)
    other.set_adapter("other")
    expected = out(other, tokens())
    other.save_pretrained(tmp_path, selected_adapters=["other"])
    model = classifier(kind)
    mine = out(model, tokens())
    model.load_adapter(tmp_path / "other", "second")
    assert torch.equal(out(model, tokens()), mine)
    model.set_adapter("second")
    assert torch.equal(out(model, tokens()), expected)


def test_only_the_active_one_is_trained(kind):
    model = two(kind)
    for name, off in (("other", "default"), ("default", "other")):
        model.set_adapter(name)
        wanted = {n for n, p in model.named_parameters() if p.requires_grad and ".lora_" in n}
        assert wanted
        assert not any(f".{off}." in n for n in wanted)


def test_disabling(kind):
    model = classifier(kind)
    with model.disable_adapter():
        assert torch.equal(out(model, tokens()), out(tiny_model(**QUIET), tokens()))
    assert not torch.allclose(out(model, tokens()), out(tiny_model(**QUIET), tokens()), atol=1e-3)


def test_mixed_batches(kind):
    model, names = two(kind), ["default", "other", "__base__"] * 2
    expected = {"__base__": out(tiny_model(**QUIET), tokens())}
    for name in ("other", "default"):
        model.set_adapter(name)
        expected[name] = out(model, tokens())
    mixed = out(model, tokens(), adapter_names=names)
    for i, name in enumerate(names):
        torch.testing.assert_close(mixed[i], expected[name][i], rtol=0, atol=1e-5)


def test_copies_live_on_their_own(kind):
    model = classifier(kind)
    expected = out(model, tokens())
    twin = copy.deepcopy(model)
    enrich(model, seed=9)
    assert torch.equal(out(twin, tokens()), expected)
    enrich(twin, seed=9)
    assert torch.equal(out(twin, tokens()), out(model, tokens()))
    assert not torch.allclose(out(model, tokens()), expected, atol=1e-3)


@pytest.mark.parametrize("way", ["merge_adapter", "merge_and_unload"])
def test_merging_is_refused(kind, way):
    with pytest.raises(ValueError, match="RADLORA adapters decide per input"):
        getattr(classifier(kind), way)()


def test_unloading_gives_the_base_model_back(kind):
    base = classifier(kind).unload()
    assert not any(isinstance(module, LoraLayer) for module in base.modules())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_draw_the_same(kind, reentrant):
    found = []
    for checkpointed in (False, True):
        model = classifier(kind).train()
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(3)
        for step in range(2):
            model(**tokens(seed=step), labels=torch.arange(6) % 3).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None and ".lora_" in n})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("cache", [True, False])
def test_generation_keeps_the_decisions_of_the_prompt(kind, family, cache):
    model = ranked(causal_model(family), ranked_config(kind, family, fan_in_fan_out=family == "gpt2"))
    inputs = padded(tokens(3, 6), 2, left=True)
    out(model, tokens(3, 6))
    of_prompt = ranks(model)
    text = model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=0)
    assert torch.equal(ranks(model), of_prompt)
    for i in range(3):
        alone = model.generate(
            **{name: value[i : i + 1, 2:] for name, value in inputs.items()},
            max_new_tokens=6,
            do_sample=False,
            use_cache=cache,
            pad_token_id=0,
        )
        end = 2 + alone.shape[1]  # it may end before the others
        assert torch.equal(alone[0], text[i, 2:end])


def test_half_precision_and_autocast(kind):
    model = ranked(tiny_model(**QUIET).bfloat16(), ranked_config(kind))
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if ".lora_" in n)
    full = classifier(kind)
    expected = out(full, tokens())
    torch.testing.assert_close(out(model, tokens()).float(), expected, rtol=0, atol=0.15)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full.train()(**tokens(), labels=torch.arange(6) % 3).loss.backward()
        torch.testing.assert_close(out(full, tokens()).float(), expected, rtol=0, atol=0.15)
    assert all(bool(p.grad.isfinite().all()) for p in full.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"generator": "net"}, "generator is 'net'"),
        ({"generator": "bank", "generator_rank": 2}, "belongs to 'hyper'"),
        ({"generator": "hyper", "generator_rank": 0}, "at least 1"),
        ({"rank_pattern": {"query": 2}}, "leave rank_pattern empty"),
        ({"init_lora_weights": "gaussian"}, "True or False, not 'gaussian'"),
        ({"init_lora_weights": "pissa"}, "RADLORA cannot start from"),
        ({"cache": -1}, "cache is -1"),
        ({"temperature": 0.0}, "must be positive"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "x"}, "temperature is 'x'"),
        ({"cache": "x"}, "cache is 'x'"),
        ({"cache": 1.5}, "cache is 1.5"),
        ({"rank_price": None}, "rank_price is None"),
        ({"rank_price": float("nan")}, "rank_price is nan"),
        ({"generator": "hyper", "generator_rank": "2"}, "generator_rank is '2'"),
        ({"threshold": "abc"}, "threshold is 'abc'; it is a probability, 0 to 1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": 1.01}, "threshold is 1.01"),
        ({"router_hidden": True}, "router_hidden is True; it must be at least 1"),
        ({"r": 0}, "r is 0; ranks are whole numbers, at least 1"),
        ({"rank_pattern": {"query": "4"}}, "rank_pattern of query is '4'"),
        ({"rank_pattern": 5}, "rank_pattern is 5"),
        ({"alpha_pattern": {"query": None}}, "alpha_pattern of query is None"),
        ({"banks": 5}, "banks is 5"),
        ({"banks": {"inner 32": 9}}, "banks is .*'inner 32'"),
        ({"banks": {"in 32": 7}}, "banks of in 32 is 7; a bank holds r = 8 components at least"),
        ({"windows": {"query": [0, 0]}}, "windows is .* and banks None; leave both out"),
        ({"windows": {"query": [0, 0]}, "banks": {"in 32": 9}}, "windows is .* and banks .*; leave both out"),
        ({"windows": 5, "banks": SIZES}, "windows is 5"),
        ({"windows": {"query": [9, 0]}, "banks": SIZES}, "query is .9, 0.; .* inputs, 0 to 8, .* of outputs, 0 to 11"),
        ({"windows": {"query": [0, 12]}, "banks": SIZES}, "the window of query is"),
        ({"windows": {"query": [-1, 0]}, "banks": SIZES}, "the window of query is"),
        ({"windows": {"query": ["a", "b"]}, "banks": SIZES}, "the window of query is"),
        ({"windows": {"query": [0]}, "banks": SIZES}, "the window of query is"),
        ({"windows": {"query": None}, "banks": SIZES}, "the window of query is None"),
    ],
)
def test_configs_that_make_no_sense(fields, words):
    with pytest.raises(ValueError, match=words):
        RadloraPeftConfig(**fields)


def test_plain_lora_beside_it_is_refused_by_peft(kind):
    with pytest.raises(ValueError, match="different peft types"):
        classifier(kind).add_adapter("plain", LoraConfig(target_modules=["query"]))


def test_shuffles(kind):
    model, order = classifier(kind), torch.tensor([5, 0, 3, 1, 4, 2])
    expected = out(model, tokens())
    torch.testing.assert_close(out(model, rows_of(tokens(), order)), expected[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache", [0, 8])
def test_a_model_that_has_seen_gradients_in_inference_can_be_copied(kind, cache):
    model = classifier(kind, cache=cache).eval()
    model(**tokens()).logits.sum().backward()
    twin = copy.deepcopy(model)
    assert torch.equal(out(twin, tokens()), out(model, tokens()))
