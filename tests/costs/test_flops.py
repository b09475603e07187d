"""Counted FLOPs against closed formulas, on models with and without adapters that decide per input."""

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from ranked import ranked, ranked_config
from tiny import batch, build, tiny_model

from rankwise.adapters.attach import ADAPTER, adapted_layers, attach_lora, find_matrices
from rankwise.adapters.conditional import CogaloraPeftConfig
from rankwise.adapters.conditional.block_tuner import RadBlockPeftConfig
from rankwise.adapters.conditional.rad_config import RadloraPeftConfig
from rankwise.adapters.conditional.tuner import ROUTER
from rankwise.costs.activity import lora_layers, observe
from rankwise.costs.flops import count_flops
from rankwise.costs.formulas import adapter_flops, attention_flops, linear_flops, pooling_flops, router_flops
from rankwise.costs.twins import merged

BATCH, TOKENS, RANK = 4, 9, 3


def inputs(count=BATCH, length=TOKENS):
    found = batch(count, length=length)
    del found["labels"]
    return found


def bert_by_formula(batch=BATCH, tokens=TOKENS, width=32, middle=64, layers=2, labels=3):
    """Four square matrices, two of the feed-forward part, attention; the pooler and the head see one token."""
    linear = 4 * linear_flops(batch * tokens, width, width) + 2 * linear_flops(batch * tokens, width, middle)
    block = linear + attention_flops(batch, tokens, tokens, width)
    return layers * block + linear_flops(batch, width, width) + linear_flops(batch, width, labels)


def llama_by_formula(batch=BATCH, tokens=TOKENS, width=32, middle=64, layers=2, labels=3):
    """Keys and values of one head of two; three matrices of the feed-forward part; the head sees every token."""
    square = 2 * linear_flops(batch * tokens, width, width) + 2 * linear_flops(batch * tokens, width, width // 2)
    block = square + 3 * linear_flops(batch * tokens, width, middle) + attention_flops(batch, tokens, tokens, width)
    return layers * block + linear_flops(batch * tokens, width, labels)


def factors(model, tokens=BATCH * TOKENS):
    return sum(
        adapter_flops(tokens, layer.r[ADAPTER], layer.in_features, layer.out_features)
        for layer in adapted_layers(model).values()
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert_without_adapters(attention):
    model = tiny_model(attn_implementation=attention)
    found = count_flops(model, [inputs()])
    assert (found.base, found.adapters, found.routing) == (bert_by_formula(), 0, 0)
    assert found.total == found.base
    assert found.share("base") == 1.0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_llama_without_adapters(attention):
    model = tiny_model("llama", attn_implementation=attention)
    assert count_flops(model, [inputs()]).base == llama_by_formula()


def test_batches_add_up_and_the_mode_is_left_as_it_was():
    model = tiny_model().train()
    found = count_flops(model, [inputs(), inputs(2, 5)])
    assert found.base == bert_by_formula() + bert_by_formula(2, 5)
    assert model.training


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("name", ["lora", "cogalora"])
def test_plain_and_gated_adapters_leave_the_base_as_it_is(family, name):
    """Gates are wide open at first, so factors run for all; the fused forward pass counts as PEFT's does."""
    model = build(name, tiny_model(family), budget="r=8").model
    found = count_flops(model, [inputs()])
    assert found.base == count_flops(tiny_model(family), [inputs()]).base
    assert found.adapters == factors(model)
    assert (found.routing > 0) == (name == "cogalora")


def test_stock_peft_counts_the_same_as_the_fused_pass():
    config = LoraConfig(r=RANK, target_modules=["query", "output.dense"], task_type="SEQ_CLS")
    found = count_flops(get_peft_model(tiny_model(), config), [inputs()])
    assert found.base == bert_by_formula()
    sizes = [(32, 32), (32, 32), (64, 32)] * 2
    assert found.adapters == sum(adapter_flops(BATCH * TOKENS, RANK, a, b) for a, b in sizes)


def test_a_variant_that_does_more_is_counted_with_what_it_does():
    """DoRA multiplies B A out for its norms, every time; the base model's own part stays what it is."""
    config = LoraConfig(r=RANK, target_modules=["query"], task_type="SEQ_CLS", use_dora=True)
    found = count_flops(get_peft_model(tiny_model(), config), [inputs()])
    applied = 2 * adapter_flops(BATCH * TOKENS, RANK, 32, 32)
    assert found.base == bert_by_formula()
    assert found.adapters >= applied + 2 * linear_flops(32, RANK, 32)


def test_prefixes_lengthen_attention():
    model = get_peft_model(tiny_model(), PrefixTuningConfig(num_virtual_tokens=5, task_type="SEQ_CLS"))
    more = 2 * (attention_flops(BATCH, TOKENS, TOKENS + 5, 32) - attention_flops(BATCH, TOKENS, TOKENS, 32))
    assert count_flops(model, [inputs()]).total == bert_by_formula() + more


# --- what is skipped is not counted ----------------------------------------------------------------------------------


def gated(share=0.5, router="module", pool=None):
    """CoGaLoRA with random routers, their biases set so that `share` of the pool opens every gate."""
    config = CogaloraPeftConfig(r=RANK, lora_alpha=RANK, router=router)
    model = attach_lora(tiny_model(), find_matrices(tiny_model()), config=config, seed=0).eval()
    context = next(iter(adapted_layers(model).values())).lora_variant[ADAPTER].context
    generator = torch.Generator().manual_seed(1)
    found = {n: getattr(m, ROUTER)[ADAPTER] for n, m in adapted_layers(model).items() if hasattr(m, ROUTER)}
    with torch.no_grad():
        for each in found.values():
            each.up.copy_(torch.randn(each.up.shape, generator=generator))
        context.recording = True
        model(**pool)
        for name, each in found.items():
            each.up_bias.sub_(torch.quantile(each(context.seen[name, ADAPTER]), 1 - share, dim=0))
    context.recording = False
    return model


@pytest.mark.parametrize("router", ["module", "shared"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_executed_is_what_the_open_gates_say(share, router):
    pool = inputs(20)
    model = gated(share, router, pool)
    found, activity = count_flops(model, [pool]), observe(model, [pool])
    assert found.base == bert_by_formula(20)
    assert found.adapters == activity.expected
    assert activity.all_open == factors(model, 20 * TOKENS)
    assert activity.share == pytest.approx(share, abs=0.051)
    # all layers have rank 3, so the formula is the share times what all of them take, but for their sizes
    by_size = sum(
        activity.open[name] * adapter_flops(20 * TOKENS, RANK, layer.in_features, layer.out_features)
        for name, layer in adapted_layers(model).items()
    )
    assert found.adapters == pytest.approx(by_size)


def test_flops_fall_with_the_target():
    pool = inputs(20)
    each = [count_flops(gated(share, pool=pool), [pool]) for share in (0.2, 0.5, 0.8)]
    assert each[0].adapters < each[1].adapters < each[2].adapters
    assert len({found.base for found in each}) == 1
    assert len({found.routing for found in each}) == 1


@pytest.mark.parametrize("router", ["module", "shared"])
def test_routing_by_formula(router):
    """Query, key and value share a pooled input, so four inputs of width 32 or 64 are pooled in every block."""
    pool = inputs(20)
    found = count_flops(gated(0.5, router, pool), [pool])
    if router == "shared":
        expected = pooling_flops(TOKENS, 32) + router_flops(32, 4, 12)
    else:
        widths = [32, 32, 32, 32, 32, 64]
        expected = 2 * (3 * pooling_flops(TOKENS, 32) + pooling_flops(TOKENS, 64))
        expected += 2 * sum(router_flops(width, 4) for width in widths)
    assert found.routing == 20 * expected


def test_disabled_adapters_cost_nothing(tmp_path):
    model = gated(0.5, pool=inputs(20))
    with model.disable_adapter():
        found = count_flops(model, [inputs()])
    assert (found.adapters, found.routing) == (0, 0)


def test_saved_and_loaded_counts_the_same(tmp_path):
    pool = inputs(20)
    model = gated(0.3, pool=pool)
    model.save_pretrained(tmp_path)
    assert count_flops(PeftModel.from_pretrained(tiny_model(), tmp_path), [pool]) == count_flops(model, [pool])


def test_nothing_is_left_on_the_model():
    model = gated(0.3, pool=inputs(20))
    layer = next(iter(adapted_layers(model).values()))
    context = layer.lora_variant[ADAPTER].context
    count_flops(model, [inputs()])
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks
    assert not {"pool", "decision"} & set(context.__dict__)


def test_factors_written_per_input_are_not_the_base_models():
    """Neither the generated factors nor what multiplies them is a parameter of anything."""
    config = RadloraPeftConfig(r=RANK, lora_alpha=RANK, generator="hyper")
    model = attach_lora(tiny_model(), find_matrices(tiny_model()), config=config, seed=0).eval()
    found = count_flops(model, [inputs()])
    assert found.base == bert_by_formula()
    assert found.adapters > observe(model, [inputs()]).unmerged


@pytest.mark.parametrize("middle", [None, 2])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_writing_factors_per_input_by_formula(middle, threshold):
    """Where some are used, and with a threshold of 0 where all are, in full."""
    config = ranked_config("hyper", generator_rank=middle, threshold=threshold, rank_price=0.0 if threshold else -1e3)
    model = ranked(tiny_model(), config)
    pool = inputs(20)
    found, activity = count_flops(model, [pool]), observe(model, [pool])
    assert found.base == bert_by_formula(20)
    assert found.adapters == activity.expected
    assert (found.adapters == 0) == (threshold == 1.0)
    assert (found.adapters == activity.all_open) == (threshold == 0.0)
    layers = [layer for layer, _ in lora_layers(model).values()]
    sizes = [(layer.in_features, layer.out_features) for layer in layers]
    lora = sum(adapter_flops(20 * TOKENS, 4, *size) for size in sizes)
    each = [4 * (a + b) * (middle or a) + (middle or 0) * a for a, b in sizes]
    assert (activity.unmerged, activity.all_open) == (lora, lora + 2 * 20 * sum(each))


def test_skipped_blocks_are_not_counted():
    """Block mode: an example costs the blocks that it keeps, a bypass for each of the others, and one router."""
    base = tiny_model(num_hidden_layers=4)
    config = RadBlockPeftConfig(r=RANK, lora_alpha=RANK, router_after=0, keep_last=0, router_hidden=4, bypass_rank=5)
    model = attach_lora(base, find_matrices(base), config=config, seed=0).eval()
    routers = [getattr(m, ROUTER)[ADAPTER] for m in adapted_layers(model).values() if hasattr(m, ROUTER)]
    with torch.no_grad():
        routers[0].up.normal_(generator=torch.Generator().manual_seed(2))
        routers[0].up_bias.zero_()
    pool = inputs(20)
    one = [{key: value[i : i + 1] for key, value in pool.items()} for i in range(20)]
    found, activity = count_flops(model, one), observe(model, one)
    blocks = [activity.open[f"bert.encoder.layer.{i}.output.dense"] for i in range(4)]
    assert activity.decided == "blocks"
    assert blocks[0] == 1.0
    assert 0 < sum(blocks[1:]) < 3
    skipped = round(20 * (4 - sum(blocks)))
    block = bert_by_formula(1, layers=2) - bert_by_formula(1, layers=1)
    assert found.base == 20 * bert_by_formula(1, layers=4) - skipped * block
    assert found.adapters == activity.expected + skipped * adapter_flops(TOKENS, 5, 32, 32)
    assert found.routing == 20 * (pooling_flops(TOKENS, 32) + router_flops(32, 4, 3))
    assert count_flops(model, [pool]) == found  # in groups
    assert count_flops(merged(model), [pool]).adapters == skipped * adapter_flops(TOKENS, 5, 32, 32)


# --- what was used ---------------------------------------------------------------------------------------------------


def test_static_adapters_are_always_used_in_full():
    model = build("glora", budget="r=4").model
    found = observe(model, [inputs(3), inputs(2, 5)])
    assert found.decided is None
    assert found.examples == 5
    assert found.share == 1.0
    assert found.ranks == {name: layer.r[ADAPTER] for name, layer in adapted_layers(model).items()}
    assert found.expected == found.all_open
    tokens = 3 * 9 + 2 * 5
    assert found.all_open == sum(
        adapter_flops(tokens, layer.r[ADAPTER], layer.in_features, layer.out_features)
        for layer in adapted_layers(model).values()
    )


def test_open_gates_are_those_of_the_pass():
    pool = inputs(20)
    model = gated(0.3, pool=pool)
    found = observe(model, [pool])
    with torch.no_grad():
        model(**pool)
    kept = next(iter(adapted_layers(model).values())).lora_variant[ADAPTER].context.kept
    gates = {name: decision for (name, _), decision in kept.items()}
    assert found.decided == "modules"
    assert found.open == pytest.approx({name: float(each.mean()) for name, each in gates.items()})
    assert found.ranks == pytest.approx({name: float(3 * each.mean()) for name, each in gates.items()})
    assert found.total_rank == pytest.approx(sum(found.ranks.values()))
    assert len({*found.open.values()} - {0.0, 1.0}) > 0


def test_batches_of_any_size_give_the_same():
    pool = inputs(20)
    model = gated(0.3, pool=pool)
    one = [{key: value[i : i + 1] for key, value in pool.items()} for i in range(20)]
    assert observe(model, one) == observe(model, [pool])


def test_no_adapter_at_all():
    found = observe(tiny_model(), [inputs()])
    assert (found.share, found.expected, found.full) == (0.0, 0, {})
    assert lora_layers(tiny_model()) == {}
