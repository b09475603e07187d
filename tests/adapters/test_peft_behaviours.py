"""What PEFT's own tests ask of a tuner, asked of our methods: while they train and after, with ranks that differ.

The behaviours are those of PEFT's common and custom-model suites (naming, saving, merging, disabling, several adapters,
mixed batches, generation, dtypes, conversion); the code is ours.
"""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, convert_to_lora, get_layer_status, get_model_status
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from tiny import COMMON, build
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.adapters.attach import ADAPTER
from rankwise.adapters.resize import apply_resize

METHODS = {"lora": {}, "glora": {"warmup": 4, "floor": 0}, "adalora": {}, "galora": {}, "random": {}}
STEPS = 12
STATES = [(name, step) for name in METHODS for step in (6, STEPS)]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Converting a PEFT adapter to LoRA that is already a LoRA adapter"),
]


def base(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    common = {key: value for key, value in COMMON.items() if key != "num_labels"}
    return LlamaForCausalLM(LlamaConfig(**(common | sizes)))


def inputs(rows=3, seed=1):
    tokens = torch.randint(3, 60, (rows, 7), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@torch.no_grad()
def out(model, **kwargs):
    model.eval()
    return model(**(inputs() | kwargs)).logits


def drive(name, until):
    """A method trained by hand for `until` of its twelve steps."""
    method = build(name, base(), total_steps=STEPS, **METHODS[name])
    trainable = [p for p in method.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-2)
    for step in range(1, until + 1):
        method.model.train()
        batch = inputs(4, seed=step)
        loss = method.model(**batch, labels=batch["input_ids"]).loss
        penalty = method.penalty()
        (loss if penalty is None else loss + penalty).backward()
        method.before_optimizer_step(step)
        optimizer.step()
        resize = method.after_optimizer_step(step)
        if resize is not None:
            apply_resize(method.model, resize.ranks, kept=resize.kept, optimizer=optimizer, seed=0, step=step)
        optimizer.zero_grad()
    return method.model


@pytest.fixture(scope="module")
def states():
    done = {}

    def get(name, step):
        if (name, step) not in done:
            done[name, step] = drive(name, step)
        return copy.deepcopy(done[name, step])

    return get


@pytest.fixture(params=STATES, ids=lambda case: f"{case[0]}-{case[1]}")
def model(request, states):
    """A fresh copy of a method's model, half-way or finished."""
    found = states(*request.param)
    assert float((out(found) - out(base())).abs().max()) > 1e-3, "training did nothing"
    return found


def close(one, two, atol=1e-5):
    torch.testing.assert_close(one, two, rtol=0, atol=atol)


def tuner_layers(model):
    return [m for m in model.modules() if isinstance(m, LoraLayer)]


def test_saved_and_loaded(model, tmp_path):
    expected = out(model)
    model.save_pretrained(tmp_path / "a")
    assert (tmp_path / "a" / "adapter_model.safetensors").is_file()
    assert PeftConfig.from_pretrained(tmp_path / "a").peft_type == "LORA"
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            loaded = PeftModel.from_pretrained(base(), tmp_path / "a", **options)
        close(out(loaded), expected)
        one, two = get_peft_model_state_dict(model), get_peft_model_state_dict(loaded)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_loaded_under_a_name_that_contains_another(model, tmp_path):
    expected = out(model)
    model.add_adapter("default_other", LoraConfig(r=3, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path, selected_adapters=[ADAPTER])
    assert not (tmp_path / "default_other").exists()
    loaded = PeftModel.from_pretrained(base(), tmp_path, adapter_name="def")
    close(out(loaded), expected)
    loaded.load_adapter(tmp_path, "default")
    loaded.set_adapter("default")
    close(out(loaded), expected)


def test_own_state_dict_is_plain_and_goes_back_in(model):
    expected = out(model)
    state = model.state_dict()
    assert not any(key.endswith(".gate") for key in state)
    again = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in again.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    assert not again.load_state_dict(state, strict=True).missing_keys
    close(out(again), expected)


def test_merging(model):
    expected = out(model)
    plain = copy.deepcopy(model)
    plain.merge_adapter()
    close(out(plain), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain.merge_adapter()  # a second time changes nothing
    close(out(plain), expected)
    plain.unmerge_adapter()
    close(out(plain), expected)
    safe = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    assert type(safe) is LlamaForCausalLM
    assert not tuner_layers(safe)
    close(out(safe), expected)


def test_safe_merge_refuses_nan(model):
    with torch.no_grad():
        tuner_layers(model)[0].lora_B[ADAPTER].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)


def test_unload_and_base_state_dict(model):
    expected = out(base())
    state = base().state_dict()
    unloaded = copy.deepcopy(model).unload()
    assert unloaded.state_dict().keys() == state.keys()
    assert all(torch.equal(unloaded.state_dict()[key], state[key]) for key in state)
    close(out(unloaded), expected)


@pytest.mark.parametrize("merged", [False, True])
def test_disabling_gives_the_base_model_and_enabling_brings_it_back(model, merged):
    expected = out(model)
    if merged:
        model.merge_adapter()
    with model.disable_adapter():
        close(out(model), out(base()))
    close(out(model), expected)


def test_second_adapter_leaves_the_first_alone(model):
    expected = out(model)
    torch.manual_seed(3)
    model.add_adapter("other", LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    close(out(model), expected)
    model.set_adapter("other")
    alone = out(model)
    assert float((alone - expected).abs().max()) > 1e-3
    assert all(p.requires_grad == (".other." in n) for n, p in model.named_parameters() if "lora_" in n)
    model.base_model.set_adapter([ADAPTER, "other"])
    both = out(model)
    assert float((both - expected).abs().max()) > 1e-3
    merged = copy.deepcopy(model)
    merged.merge_adapter([ADAPTER, "other"])
    close(out(merged), both)
    model.set_adapter(ADAPTER)
    close(out(model), expected)
    names = [ADAPTER, "other", "__base__"]
    mixed = out(model, adapter_names=names)
    for row, wanted in enumerate((expected, alone, out(base()))):
        close(mixed[row], wanted[row])


def test_deleting(model):
    expected = out(model)
    model.add_adapter("other", LoraConfig(r=3, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="unknown"):
        model.delete_adapter("unknown")
    model.delete_adapter("other")
    close(out(model), expected)
    assert not any(".other." in name for name, _ in model.named_parameters())
    model.add_adapter("other", LoraConfig(r=3, target_modules=["q_proj"]))
    model.delete_adapter(ADAPTER)
    model.set_adapter("other")
    close(out(model), out(base()))


def test_weighted_adapter_sees_the_folded_gates(model):
    model.add_weighted_adapter([ADAPTER], [1.0], "copy", combination_type="cat")
    expected = out(model)
    model.set_adapter("copy")
    close(out(model), expected)


def test_conversion_to_lora_of_full_rank_is_the_same(model):
    expected = out(model)
    config, state = convert_to_lora(copy.deepcopy(model), rank=32, progressbar=False)
    other = PeftModel(base(), config)
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(other, state)
    close(out(other), expected, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": False, "use_cache": False}])
def test_generation_equals_that_of_the_merged_model(model, options):
    options = {"max_new_tokens": 5, "pad_token_id": 0} | options
    model.eval()
    expected = copy.deepcopy(model).merge_and_unload().eval().generate(**inputs(), **options)
    assert torch.equal(model.generate(**inputs(), **options), expected)


def test_embeddings_as_input(model):
    embedded = model.get_input_embeddings()(inputs()["input_ids"])
    with torch.no_grad():
        direct = model.eval()(inputs_embeds=embedded, attention_mask=inputs()["attention_mask"]).logits
    close(direct, out(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_and_finite(model, dtype):
    expected = out(model)
    half = out(copy.deepcopy(model).to(dtype))
    assert half.dtype == dtype
    assert float((half.float() - expected).abs().max()) < 0.1
    with torch.autocast("cpu", dtype):
        assert float((out(model).float() - expected).abs().max()) < 0.1


def test_training_goes_on_and_moves_the_adapter_only(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    loss = model(**inputs(), labels=inputs()["input_ids"]).loss
    loss.backward()
    trainable = [p for p in model.parameters() if p.requires_grad]
    torch.optim.SGD(trainable, lr=1.0).step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert moved <= {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in moved)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(model, reentrant):
    def gradients(one):
        one.train()
        one(**inputs(), labels=inputs()["input_ids"]).loss.backward()
        return {n: p.grad for n, p in one.named_parameters() if p.grad is not None}

    plain = gradients(copy.deepcopy(model))
    saved = copy.deepcopy(model)
    saved.enable_input_require_grads()
    saved.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again = gradients(saved)
    assert plain.keys() == {n for n in again if "embed" not in n}
    for name, value in plain.items():
        close(again[name], value)


def test_status_names_one_clean_adapter(model):
    status = get_model_status(model)
    assert status.adapter_model_type == "LoraModel"
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, [ADAPTER], [])
    assert status.available_adapters == [ADAPTER]
    assert len(get_layer_status(model)) == len(tuner_layers(model))
