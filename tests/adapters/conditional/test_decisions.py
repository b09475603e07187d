"""What was decided, read off a model: against routers computed by hand, whatever the batches; wrong use."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from tiny import batch, logits, tiny_model
from torch.nn.functional import gelu, pad

from rankwise.adapters.attach import ADAPTER
from rankwise.adapters.conditional import CogaloraPeftConfig
from rankwise.adapters.conditional.block_tuner import RadBlockPeftConfig
from rankwise.adapters.conditional.decisions import decisions_of
from rankwise.adapters.conditional.tuner import ROUTER
from rankwise.errors import ModelError

TARGETS = {"bert": ["query", "intermediate.dense"], "llama": ["q_proj", "down_proj"]}


def randomise(model, seed=3):
    """Random factors, and routers that tell inputs apart: biases about 0, so that about half of the gates are open."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            wide = 1.5 if f".{ROUTER}." in name else 0.2
            parameter.data = torch.randn(parameter.shape, generator=generator) * wide
    return model.eval()


def gated(family="bert", config=CogaloraPeftConfig, **fields):
    fields = {"r": 3, "rank_pattern": {TARGETS[family][0]: 5}, "target_modules": TARGETS[family]} | fields
    return randomise(get_peft_model(tiny_model(family), config(**fields), adapter_name=ADAPTER))


def ragged(count=9, longest=11, *, side="right"):
    """A batch with padding: example i has 3 + i % (longest - 2) tokens."""
    whole = batch(count, length=longest)
    sizes = [3 + i % (longest - 2) for i in range(count)]
    mask = torch.stack([pad(torch.ones(size, dtype=torch.long), (0, longest - size)) for size in sizes])
    ids = whole["input_ids"] * mask
    if side == "left":
        ids, mask = (torch.stack([row.roll(longest - n) for row, n in zip(t, sizes, strict=True)]) for t in (ids, mask))
    return {"input_ids": ids, "attention_mask": mask}


def rows(inputs, index):
    return {name: value[index] for name, value in inputs.items()}


def probability(router, seen, mask):
    """σ of a router's logits in float64, from what went into its layer: (batch, outputs)."""
    weights = mask.double() / mask.double().sum(1, keepdim=True)
    pooled = (seen.double() * weights[:, :, None]).sum(1)
    centred = pooled - pooled.mean(1, keepdim=True)
    normal = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    down, down_bias, up, up_bias = (
        p.detach().double() for p in (router.down, router.down_bias, router.up, router.up_bias)
    )
    return torch.sigmoid(gelu(normal @ down.T + down_bias) @ up.T + up_bias)


def watched(model, names, inputs):
    """What goes into every module of `names` in one forward pass."""
    seen = {}
    hooks = [
        model.base_model.model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen.update({name: args[0] if args else kwargs["hidden_states"]}),
            with_kwargs=True,
        )
        for name in names
    ]
    logits(model, inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", TARGETS)
def test_ranks_are_those_of_routers_by_hand(family):
    model, inputs = gated(family), ragged()
    found = decisions_of(model, [inputs])
    seen = watched(model, found.names, inputs)
    assert found.kind == "modules"
    assert len(found.names) == 4
    for column, name in enumerate(found.names):
        layer = model.base_model.model.get_submodule(name)
        assert isinstance(layer, LoraLayer)
        assert found.full[column] == layer.r[ADAPTER] == (5 if TARGETS[family][0] in name else 3)
        chance = probability(getattr(layer, ROUTER)[ADAPTER], seen[name], inputs["attention_mask"])[:, 0]
        assert (chance - 0.5).abs().min() > 1e-4
        assert found.ranks[:, column].tolist() == ((chance > 0.5) * found.full[column]).tolist()
    assert 0.1 < found.share < 0.9
    assert torch.equal(found.opened, found.ranks > 0)
    assert found.ranks.dtype == torch.int64


def test_a_shared_router_decides_for_all():
    model, inputs = gated(router="shared"), ragged()
    found = decisions_of(model, [inputs])
    first = found.names[0]
    layer = model.base_model.model.get_submodule(first)
    chance = probability(
        getattr(layer, ROUTER)[ADAPTER], watched(model, [first], inputs)[first], inputs["attention_mask"]
    )
    assert torch.equal(found.opened, chance > 0.5)
    assert 0 < found.share < 1


@pytest.mark.parametrize(("family", "side"), [("bert", "right"), ("llama", "right"), ("llama", "left")])
def test_neither_order_nor_batches_nor_padding_change_a_decision(family, side):
    model = gated(family)
    model.config.pad_token_id = 0
    inputs = ragged(side=side)
    whole = decisions_of(model, [inputs]).ranks
    assert 0 < (whole > 0).double().mean() < 1
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decisions_of(model, [rows(inputs, order)]).ranks, whole[order])
    for size in (1, 2, 4):
        assert torch.equal(
            decisions_of(model, [rows(inputs, slice(i, i + size)) for i in range(0, 9, size)]).ranks, whole
        )
    bare = []
    for row in range(9):
        one = rows(inputs, slice(row, row + 1))
        kept = one["attention_mask"][0].bool()
        bare.append({name: value[:, kept] for name, value in one.items()})
    assert torch.equal(decisions_of(model, bare).ranks, whole)


def test_blocks_are_those_that_the_router_keeps():
    fields = {"r": 2, "rank_pattern": {}, "target_modules": ["query"], "router_after": 0, "keep_last": 0}
    torch.manual_seed(0)
    base = tiny_model(num_hidden_layers=4)
    model = randomise(get_peft_model(base, RadBlockPeftConfig(**fields), adapter_name=ADAPTER), seed=5)
    inputs = ragged()
    names = tuple(f"bert.encoder.layer.{i}" for i in (1, 2, 3))
    router = getattr(base.bert.encoder.layer[1].attention.self.query, ROUTER)[ADAPTER]
    seen = watched(model, names[:1], inputs)[names[0]]
    middle = torch.logit(probability(router, seen, inputs["attention_mask"])).median(0).values
    router.up_bias.data -= middle.float() + 1e-3  # half of the inputs on either side
    found = decisions_of(model, [rows(inputs, slice(0, 5)), rows(inputs, slice(5, 9))])
    assert (found.kind, found.names, found.full) == ("blocks", names, (1, 1, 1))
    assert torch.equal(found.opened, probability(router, seen, inputs["attention_mask"]) > 0.5)
    assert 0 < found.share < 1


def test_the_model_is_left_as_it_was():
    model = gated().train()
    model.base_model.model.bert.embeddings.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = decisions_of(model, [ragged()])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(decisions_of(model.eval(), [ragged()]).ranks, found.ranks)  # training draws, this does not


def test_outputs_are_handed_out_in_order():
    model, inputs = gated(), ragged()
    outputs = []
    decisions_of(
        model, [rows(inputs, slice(i, i + 3)) for i in (0, 3, 6)], on_output=lambda out: outputs.append(out.logits)
    )
    torch.testing.assert_close(torch.cat(outputs), logits(model, inputs), rtol=0, atol=1e-5)
    assert not outputs[0].requires_grad


def test_the_adapter_that_is_asked_for():
    model, inputs = gated(), ragged()
    one = decisions_of(model, [inputs])
    model.add_adapter("other", CogaloraPeftConfig(r=2, target_modules=["query"]))
    assert torch.equal(decisions_of(model, [inputs]).ranks, one.ranks)
    model.set_adapter("other")
    other = decisions_of(model, [inputs])
    assert len(other.names) == 2
    assert set(other.ranks.flatten().tolist()) == {2}  # routers open at first
    with pytest.raises(ModelError, match=r"decided nothing in a forward pass under adapter 'default'.*not the active"):
        decisions_of(model, [inputs], adapter=ADAPTER)


def test_wrong_use():
    model = gated()
    with pytest.raises(ModelError, match="there are no batches"):
        decisions_of(model, [])
    with model.disable_adapter(), pytest.raises(ModelError, match="is the adapter disabled"):
        decisions_of(model, [ragged()])
    plain = get_peft_model(tiny_model(), LoraConfig(target_modules=["query"]))
    with pytest.raises(ModelError, match="adapter 'default' decides nothing per input"):
        decisions_of(plain, [ragged()])
    with pytest.raises(ModelError, match="there is no adapter 'nothing'"):
        decisions_of(model, [ragged()], adapter="nothing")
