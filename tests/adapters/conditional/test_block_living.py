"""Models whose blocks are skipped: exactness, independence from the batch, PEFT's life cycle."""

import copy
import io
import pickle
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tiny import batch, logits, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BloomConfig,
    BloomForSequenceClassification,
    FalconConfig,
    FalconForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    T5Config,
    T5ForTokenClassification,
)
from transformers.models.t5.modeling_t5 import T5Block

from rankwise.adapters.attach import find_matrices
from rankwise.adapters.conditional.block_bypass import bypass_cost
from rankwise.adapters.conditional.block_config import RadBlockPeftConfig
from rankwise.adapters.conditional.block_living import LivingBlock, living_blocks, mixed
from rankwise.adapters.conditional.block_tuner import RadBlockModel
from rankwise.adapters.conditional.context import context_of
from rankwise.errors import ModelError, TrainingError

DEPTH = {"gpt2": "n_layer", "distilbert": "n_layers"}
FAMILIES = ("bert", "roberta", "deberta", "distilbert", "llama", "gpt2", "opt")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bare(family="bert", **overrides):
    return tiny_model(family, **{DEPTH.get(family, "num_hidden_layers"): 5}, **overrides)


def drawn(model, seed=0):
    """Adapter tensors that make a difference: nothing is zero, and routers disagree."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if ".lora_router." in name and name.endswith("up_bias"):
                parameter.data.zero_()
    return model


def config_for(family="bert", **fields):
    targets = list(find_matrices(bare(family)))
    fields = {"keep_last": 0, "fan_in_fan_out": family == "gpt2"} | fields
    return RadBlockPeftConfig(task_type="SEQ_CLS", target_modules=targets, r=2, **fields)


def skipping(family="bert", **fields):
    return drawn(get_peft_model(bare(family), config_for(family, **fields))).eval()


def bits_of(model):
    """z of the last pass, (batch, blocks)."""
    (bits,) = context_of(model.base_model.model).kept.values()
    return bits


def spread(model, inputs):
    """A threshold at which these inputs take several patterns."""
    config = model.peft_config["default"]
    for threshold in torch.linspace(0.3, 0.7, 41).tolist():
        config.threshold = threshold
        logits(model, inputs)
        if len({tuple(row) for row in bits_of(model).tolist()}) > 1:
            return threshold
    pytest.fail("no threshold tells these inputs apart")


def inputs_of(count=8, **kwargs):
    return {name: value for name, value in batch(count, **kwargs).items() if name != "labels"}


def plain_lora(model, family="bert"):
    """PEFT's own LoRA with the same factors."""
    fields = {
        name: getattr(config_for(family), name) for name in ("task_type", "target_modules", "r", "fan_in_fan_out")
    }
    twin = get_peft_model(bare(family), LoraConfig(**fields))
    state = {name: value for name, value in model.state_dict().items() if not re.search("lora_(router|bypass)", name)}
    twin.load_state_dict(state)
    return twin.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_every_block_is_lora_bit_for_bit(family):
    model = skipping(family)
    model.peft_config["default"].threshold = -1.0
    assert torch.equal(logits(model), logits(plain_lora(model, family)))
    assert bits_of(model).all()


def test_keeping_every_block_in_training_is_lora_bit_for_bit():
    base = bare(**NO_DROPOUT)
    model = drawn(get_peft_model(base, config_for()))
    for name, parameter in model.named_parameters():
        if name.endswith("lora_router.default.up_bias"):
            parameter.data.fill_(1e4)
    assert torch.equal(model.train()(**batch()).logits, plain_lora(model)(**batch()).logits)


def test_gradient_of_the_decision_is_the_difference_of_both_ways():
    """The mixture is linear in z; finite differences in float64."""
    through, around, weights = torch.randn(3, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    (weights * mixed(through, around, keep)).sum().backward()
    for row in range(3):
        ends = [keep.detach().clone().index_fill_(0, torch.tensor(row), end) for end in (0.0, 1.0)]
        low, high = ((weights * mixed(through, around, end)).sum() for end in ends)
        assert float(keep.grad[row]) == pytest.approx(float(high - low))
        assert torch.equal(mixed(through, around, keep)[row], (through if keep[row] else around)[row])


def reference(model, inputs, bits):
    """BERT's blocks one example at a time, in the plain LoRA model, with the bypass where a block is skipped."""
    core = plain_lora(model).base_model.model
    records = list(living_blocks(model.base_model.model).values())
    found = []
    for row, kept in enumerate(bits.tolist()):
        hidden = core.bert.embeddings(inputs["input_ids"][row : row + 1])
        for number, layer in enumerate(core.bert.encoder.layer):
            if number == 0 or kept[number - 1]:
                hidden = layer(hidden)
            else:
                bypass = records[number - 1].carrier.lora_bypass["default"]
                hidden = hidden + hidden @ bypass.down.t() @ bypass.up.t()
        found.append(core.classifier(core.bert.pooler(hidden)))
    return torch.cat(found)


@pytest.mark.parametrize("last", [0, 1, 2])
def test_the_last_blocks_are_kept_by_every_input(last):
    model = skipping(keep_last=last, threshold=1.0)
    names = [f"bert.encoder.layer.{i}" for i in range(1, 5 - last)]
    assert model.peft_config["default"].blocks == names == list(living_blocks(model.base_model.model))
    logits(model, inputs_of())
    assert bits_of(model).shape == (8, 4 - last)
    assert not bits_of(model).any()


def test_one_block_at_the_end_is_kept_unless_told_otherwise():
    model = drawn(get_peft_model(bare(), RadBlockPeftConfig(target_modules=["query"], r=2)))
    assert [name[-1] for name in model.peft_config["default"].blocks] == ["1", "2", "3"]


@torch.no_grad()
def test_skipped_blocks_are_bypassed_and_nothing_else_changes():
    model, inputs = skipping(), inputs_of()
    spread(model, inputs)
    found = logits(model, inputs)
    bits = bits_of(model)
    assert 0 < bits.mean() < 1
    torch.testing.assert_close(found, reference(model, inputs, bits), rtol=0, atol=1e-6)


@torch.no_grad()
def test_router_sees_the_mean_over_real_tokens_after_its_block():
    model, inputs = skipping(router_after=1), inputs_of(length=6)
    inputs["attention_mask"][:, 4:] = 0
    states = model(**inputs, output_hidden_states=True).hidden_states
    router = next(iter(living_blocks(model.base_model.model).values())).carrier.lora_router["default"]
    expected = torch.sigmoid(router(states[2][:, :4].mean(1))) > 0.5
    assert torch.equal(bits_of(model).bool(), expected)
    assert model.peft_config["default"].blocks == [f"bert.encoder.layer.{i}" for i in (2, 3, 4)]


@pytest.mark.parametrize("patterns", [None, ["1101", "0110"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_output_depends_on_neither_batch_nor_padding(family, patterns):
    model, inputs = skipping(family, kept_patterns=patterns), inputs_of()
    if patterns is None:
        spread(model, inputs)
    whole = logits(model, inputs)
    bits = bits_of(model)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    shuffled = logits(model, {name: value[order] for name, value in inputs.items()})
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-5)
    assert torch.equal(bits_of(model), bits[order])
    for size in (1, 3):
        for start in range(0, 8, size):
            part = logits(model, {name: value[start : start + size] for name, value in inputs.items()})
            torch.testing.assert_close(part, whole[start : start + size], rtol=0, atol=1e-5)
            assert torch.equal(bits_of(model), bits[start : start + size])
    padded = {name: torch.nn.functional.pad(value, (0, 4)) for name, value in inputs.items()}
    torch.testing.assert_close(logits(model, padded), whole, rtol=0, atol=1e-5)
    assert torch.equal(bits_of(model), bits)


HEADS = {"vocab_size": 60, "pad_token_id": 0, "num_labels": 3, "hidden_size": 32, "num_attention_heads": 2}
ODD = {
    "bloom": (BloomForSequenceClassification, BloomConfig, {"n_layer": 5}, "query_key_value"),
    "falcon": (FalconForSequenceClassification, FalconConfig, {"num_hidden_layers": 5, "alibi": True}, "dense"),
    "mpnet": (MPNetForSequenceClassification, MPNetConfig, {"num_hidden_layers": 5, "intermediate_size": 64}, "q"),
    "t5": (T5ForTokenClassification, T5Config, {"num_layers": 5, "d_model": 32, "d_kv": 16, "d_ff": 64}, "q"),
}
"""Their blocks take tensors, or hand them on, that nobody can tell the rows of."""


def odd(family):
    torch.manual_seed(0)
    model, config, fields, target = ODD[family]
    fields = HEADS | fields
    if family == "t5":
        fields["num_heads"] = fields.pop("num_attention_heads")
        del fields["hidden_size"]
    adapter = RadBlockPeftConfig(target_modules=[target], r=2, keep_last=1)
    return drawn(get_peft_model(model(config(**fields)), adapter)).eval()


def uneven(count=6):
    inputs = inputs_of(count)
    for value in inputs.values():
        value[1::2, 6:] = 0
    return inputs


@pytest.mark.parametrize("kept", [None, 0.0, 1.0])
@pytest.mark.parametrize("inputs", [inputs_of(6), uneven()], ids=["even", "uneven"])
@pytest.mark.parametrize("family", ODD)
def test_an_output_of_odd_blocks_depends_on_no_batch(family, inputs, kept):
    model = odd(family)
    if kept is None:
        spread(model, inputs)
    else:
        model.peft_config["default"].threshold = -1.0 if kept else 2.0
    whole = logits(model, inputs)
    assert kept is None or bits_of(model).eq(kept).all()
    for row in range(6):
        length = int(inputs["attention_mask"][row].sum())
        alone = logits(model, {name: value[row : row + 1, :length] for name, value in inputs.items()})
        expected = whole[row : row + 1, :length] if family == "t5" else whole[row : row + 1]
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patterns", [None, ["000"], ["101"]])
@torch.no_grad()
def test_what_a_block_hands_on_reaches_the_next_even_where_it_is_skipped(patterns):
    """T5's first block makes relative positions, and every block hands them on."""
    model, inputs = odd("t5"), inputs_of(6)
    if patterns is None:
        spread(model, inputs)
    model.peft_config["default"].kept_patterns = patterns
    found, bits = logits(model, inputs), bits_of(model)
    core = model.base_model.model
    records = list(living_blocks(core).values())
    for row, kept in enumerate(bits.tolist()):
        hidden, positions = core.transformer.encoder.embed_tokens(inputs["input_ids"][row : row + 1]), None
        for number, block in enumerate(core.transformer.encoder.block):
            through, positions, _ = T5Block.forward(block, hidden, position_bias=positions)
            run = number in (0, 4) or kept[number - 1]
            hidden = through if run else records[number - 1].around(hidden)
        alone = core.classifier(core.transformer.encoder.final_layer_norm(hidden))
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_early_exit_skips_everything_after_the_first_skipped_block():
    model, inputs = skipping(exit=True), inputs_of()
    spread(model, inputs)
    assert (bits_of(model).diff(dim=1) <= 0).all()


def test_hidden_states_are_what_the_next_block_saw():
    model, inputs = skipping(), inputs_of()
    spread(model, inputs)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
        core = model.base_model.model
        assert len(output.hidden_states) == 6
        assert torch.equal(core.classifier(core.bert.pooler(output.hidden_states[-1])), output.logits)


def test_attention_maps_of_all_rows_are_there_when_asked_for():
    base = bare(attn_implementation="eager")
    model, inputs = drawn(get_peft_model(base, config_for())).eval(), inputs_of()
    spread(model, inputs)
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    assert [len(maps) for maps in output.attentions] == [8] * 5
    torch.testing.assert_close(output.logits, logits(model, inputs), rtol=0, atol=1e-5)


def test_flops_fall_by_what_skipped_rows_save():
    """Per row of t tokens a block costs 2t(4d² + 2df) + 4t²d and its LoRA 2tr Σ(in + out), a bypass 4tdr'."""
    model, inputs = skipping(bypass_rank=3), inputs_of()

    def flops(threshold):
        model.peft_config["default"].threshold = threshold
        logits(model, inputs)
        with FlopCounterMode(display=False) as counter:
            logits(model, inputs)
        return counter.get_total_flops()

    tokens, width, middle, rank = 9, 32, 64, 2
    block = 2 * tokens * (4 * width**2 + 2 * width * middle)
    attention = 4 * tokens**2 * width
    lora = 2 * tokens * rank * (4 * 2 * width + 2 * (width + middle))
    bypass = 2 * tokens * bypass_cost(width, 3)
    full = flops(-1.0)
    for threshold in (spread(model, inputs), 2.0):
        found = flops(threshold)
        skipped = int((1 - bits_of(model)).sum())
        assert skipped > 0
        assert full - found in (skipped * (block + lora - bypass), skipped * (block + lora + attention - bypass))


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_gradient_checkpointing_changes_no_gradient(family):
    off = {"bert": NO_DROPOUT, "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}.get(family, {})
    base = bare(family, **off)
    model = drawn(get_peft_model(base, config_for(family))).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpointed(base, use_reentrant=False)
        torch.manual_seed(3)
        model.zero_grad()
        model(**batch()).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert any(".lora_router." in name and value.abs().max() > 0 for name, value in gradients[0].items())
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-5, atol=1e-7, msg=name)


def test_reentrant_checkpointing_is_refused():
    base = bare()
    model = drawn(get_peft_model(base, config_for())).train()
    model.enable_input_require_grads()
    checkpointed(base, use_reentrant=True)
    with pytest.raises(TrainingError, match="'use_reentrant': False"):
        model(**batch())


def checkpointed(base, **how):
    """Transformers is about to rename it."""
    name = next(n for n in ("activation", "gradient") if hasattr(base, f"{n}_checkpointing_enable"))
    getattr(base, f"{name}_checkpointing_enable")(how)


def test_saved_and_loaded(tmp_path):
    model, inputs = skipping(kept_patterns=["1100", "0011"]), inputs_of()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(bare(), tmp_path)
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    assert again.peft_config["default"].kept_patterns == ["1100", "0011"]
    trained = PeftModel.from_pretrained(bare(), tmp_path, is_trainable=True)
    assert all(p.requires_grad for name, p in trained.named_parameters() if ".lora_" in name)


def test_several_adapters_mixed_disabled_and_deleted():
    model, inputs = skipping(), inputs_of(6)
    first = spread(model, inputs)
    alone = [logits(model, inputs)]
    model.add_adapter("other", config_for(router_after=2))
    for name, parameter in model.named_parameters():
        if ".lora_" in name and ".other." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.set_adapter("other")
    alone.append(logits(model.eval(), inputs))
    with model.disable_adapter():
        alone.append(logits(model, inputs))
    torch.testing.assert_close(alone[2], logits(bare(), inputs))
    names = ["default", "other", "__base__", "other", "default", "default"]
    with torch.no_grad():
        mixed = model(**inputs, adapter_names=names).logits
    which = {"default": 0, "other": 1, "__base__": 2}
    expected = torch.stack([alone[which[name]][row] for row, name in enumerate(names)])
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-5)
    model.set_adapter("default")
    model.delete_adapter("other")
    assert model.peft_config["default"].threshold == first
    assert torch.equal(logits(model, inputs), alone[0])
    assert not [name for name, _ in model.named_parameters() if ".other." in name]


def test_two_active_adapters_are_refused():
    model = skipping()
    model.add_adapter("other", config_for())
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="activate one of them"):
        logits(model)


def test_lora_is_merged_and_blocks_are_still_skipped():
    model, inputs = skipping(), inputs_of()
    spread(model, inputs)
    before = logits(model, inputs)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, inputs), before, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    merged = copy.deepcopy(model).base_model.merge_static()
    assert not [name for name, _ in merged.named_modules() if ".lora_A" in name]
    torch.testing.assert_close(logits(merged, inputs), before, rtol=0, atol=1e-5)
    assert {n.split(".lora_")[1].split(".")[0] for n, _ in merged.named_parameters() if ".lora_" in n} == {
        "bypass",
        "router",
    }
    with pytest.raises(ValueError, match="every block to every input"):
        model.merge_and_unload()


def test_unloaded_model_is_the_base_model_again():
    model = skipping()
    base = model.unload()
    assert not [m for m in base.modules() if isinstance(m, LivingBlock)]
    assert {type(m) for m in base.modules()} == {type(m) for m in bare().modules()}
    assert torch.equal(logits(base), logits(bare()))


def test_a_copy_skips_on_its_own():
    model, inputs = skipping(), inputs_of()
    spread(model, inputs)
    before, twin = logits(model, inputs), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(logits(twin, inputs), before)


@pytest.mark.parametrize("merged", [False, True])
def test_pickled_and_stored_whole(merged):
    model, inputs = skipping(), inputs_of()
    spread(model, inputs)
    if merged:
        model = model.base_model.merge_static().eval()
    before, stored = logits(model, inputs), io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    twins = [pickle.loads(pickle.dumps(model)), torch.load(stored, weights_only=False)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    for twin in twins:
        assert torch.equal(logits(twin, inputs), before)
        assert {type(m) for m in twin.modules()} == {type(m) for m in model.modules()}


def test_a_merged_model_is_not_saved_as_another(tmp_path):
    merged = skipping().base_model.merge_static()
    for model in (merged, copy.deepcopy(merged)):
        with pytest.raises(ValueError, match="Save the adapter before merging"):
            model.save_pretrained(tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("bert", {"router_after": 4}, "keep_last 1, and .* no adapted block in between: its blocks are 0 to 4"),
        ("bert", {"router_after": 1, "keep_last": 3}, "router_after is 1, keep_last 3, and"),
        ("t5", {}, "encoder-decoder model"),
    ],
)
def test_models_without_skippable_blocks_are_refused(family, fields, message):
    base = tiny_model("t5") if family == "t5" else bare(family)
    with pytest.raises(ModelError, match=message):
        get_peft_model(base, RadBlockPeftConfig(target_modules=list(find_matrices(base)), **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"router_after": -1}, "counted from 0"),
        ({"keep_last": -1}, "keep_last is -1; it must be at least 0"),
        ({"bypass_rank": 0}, "at least 1"),
        ({"kept_patterns": ["10", "110"]}, "strings of 0 and 1"),
        ({"kept_patterns": ["12"]}, "strings of 0 and 1"),
        ({"use_dora": True}, "use_dora"),
    ],
)
def test_configs_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        RadBlockPeftConfig(**fields)


def test_type_is_registered():
    assert isinstance(skipping().base_model, RadBlockModel)
