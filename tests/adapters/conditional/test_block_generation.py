"""Text generation: which blocks are skipped is decided when the prompt is read, and the cache fits what was skipped."""

import pytest
import torch
from peft import get_peft_model
from tiny import COMMON, CONFIGS
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from rankwise.adapters.attach import find_matrices
from rankwise.adapters.conditional.block_config import RadBlockPeftConfig
from rankwise.adapters.conditional.block_rows import SomeRows
from rankwise.adapters.conditional.block_tuner import RadBlockModel
from rankwise.adapters.conditional.context import context_of

DEPTH = {"llama": {"num_hidden_layers": 5}, "gpt2": {"n_layer": 5}}
NEW = 6


def generator(family):
    _, config_class, settings = CONFIGS[family]
    common = {name: value for name, value in COMMON.items() if name in ("vocab_size", "pad_token_id")}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**(common | settings | DEPTH[family])))
    config = RadBlockPeftConfig(
        task_type="CAUSAL_LM", target_modules=list(find_matrices(model)), r=2, fan_in_fan_out=family == "gpt2"
    )
    peft_model = get_peft_model(model, config).eval()
    assert isinstance(peft_model.base_model, RadBlockModel)
    for name, parameter in peft_model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return peft_model


def prompts(count=4, length=7):
    ids = torch.randint(3, 60, (count, length), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    for row in range(count):  # padded on the left, each prompt differently
        ids[row, :row], mask[row, :row] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def bits_of(model):
    (bits,) = context_of(model.base_model.model).kept.values()
    return bits


@torch.no_grad()
def spread(model, inputs):
    """A threshold at which some prompts skip a block that others keep."""
    for threshold in torch.linspace(0.1, 0.9, 81).tolist():
        model.peft_config["default"].threshold = threshold
        model(**inputs)
        if len({tuple(row) for row in bits_of(model).tolist()}) > 1:
            return
    pytest.fail("no threshold tells these prompts apart")


@torch.no_grad()
def write(model, inputs, **kwargs):
    how = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0} | kwargs
    return model.generate(**inputs, **how)[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_batched_generation_is_that_of_every_prompt_alone(family, beams):
    model, inputs = generator(family), prompts()
    spread(model, inputs)
    together = write(model, inputs, num_beams=beams)
    for row in range(4):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        assert torch.equal(write(model, alone, num_beams=beams), together[row : row + 1])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_cache_changes_nothing(family):
    model, inputs = generator(family), prompts()
    spread(model, inputs)
    assert torch.equal(write(model, inputs), write(model, inputs, use_cache=False))


@torch.no_grad()
def test_decisions_of_the_prompt_hold_and_the_cache_holds_kept_rows_alone():
    model, inputs = generator("llama"), prompts()
    spread(model, inputs)
    output = model(**inputs, use_cache=True)
    bits = bits_of(model).clone()
    cache = output.past_key_values
    for layer, kept in zip(cache.layers[1:], bits.T, strict=False):
        rows = kept.nonzero()[:, 0].tolist()
        if 0 < len(rows) < 4:
            assert isinstance(layer, SomeRows)
            assert layer.rows.tolist() == rows
            assert len(layer.keys) == len(rows)
    assert any(isinstance(layer, SomeRows) for layer in cache.layers)
    for token in range(2):
        ids = torch.full((4, 1), 11 + token)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(4, 1, dtype=torch.long)], 1)
        model(input_ids=ids, attention_mask=inputs["attention_mask"], past_key_values=cache, use_cache=True)
        assert torch.equal(bits_of(model), bits)


@torch.no_grad()
def test_a_cache_that_cannot_spare_rows_is_filled_for_all():
    """The blocks are run for every row then, and what they say of skipping rows is thrown away."""

    class Watched(DynamicCache):
        pass

    model, inputs = generator("llama"), prompts()
    spread(model, inputs)
    plain = model(**inputs, use_cache=True)
    watched = model(**inputs, use_cache=True, past_key_values=Watched())
    torch.testing.assert_close(watched.logits, plain.logits, rtol=0, atol=1e-5)
    assert [len(layer.keys) for layer in watched.past_key_values.layers] == [4] * 5
