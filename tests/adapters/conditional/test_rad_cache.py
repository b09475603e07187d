"""Decisions that are remembered: the same results, counted hits, a bound, and nothing stale."""

import copy

import pytest
import torch
from gated import causal_model, padded, rows_of, tokens
from peft import get_peft_model
from ranked import KINDS, enrich, out, ranked, ranked_config, ranks
from tiny import tiny_model
from torch.utils.flop_counter import FlopCounterMode

from rankwise.adapters.conditional.rad_layer import RadloraVariant


def cached(kind="bank", size=8, **fields):
    return ranked(tiny_model(), ranked_config(kind, cache=size, **fields))


def report(model, adapter="default"):
    return model.base_model.cache_report(adapter)


def numbers(model):
    found = report(model)
    return found.hits, found.lookups, found.entries


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_the_same_with_and_without(kind):
    plain, model = ranked(tiny_model(), ranked_config(kind)), cached(kind)
    batches = [tokens(), rows_of(tokens(), [3, 1]), padded(rows_of(tokens(), [2, 5]), 3), tokens(seed=2), tokens()]
    for inputs in batches:
        expected = out(plain, inputs)
        torch.testing.assert_close(out(model, inputs), expected, rtol=0, atol=1e-6)
        assert torch.equal(ranks(model), ranks(plain))
    assert report(model).hits > 4


def test_hits_are_counted_by_example_and_the_longest_unused_go_first():
    model, inputs = cached(size=4), tokens()
    for rows, expected in (
        ([0, 1, 2], (0, 3, 3)),
        ([0], (1, 4, 3)),
        ([3, 0], (2, 6, 4)),
        ([4], (2, 7, 4)),  # 1 was the longest unused
        ([2, 3, 0, 4], (6, 11, 4)),
        ([1], (6, 12, 4)),
    ):
        out(model, rows_of(inputs, rows))
        assert numbers(model) == expected
    assert report(model).rate == 0.5
    assert report(model).size == 4


def test_a_known_batch_runs_no_router(monkeypatch):
    model, asked = cached(), []
    real = RadloraVariant.settled
    monkeypatch.setattr(RadloraVariant, "settled", lambda *args: asked.append(len(args[-1])) or real(*args))
    found = []
    for _ in range(2):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**tokens())
        found.append(counter.get_total_flops())
    assert asked == [6] * 6, "one per layer, in the first pass alone"
    assert found[1] < found[0]
    out(model, {name: torch.cat([value, value[:1].flip(1)]) for name, value in tokens().items()})
    assert asked[6:] == [1] * 6, "of a batch that is partly known, the rest"


def test_padding_is_no_difference_token_types_are():
    model, inputs = cached(), rows_of(tokens(), [0])
    out(model, inputs)
    out(model, padded(inputs, 4))
    assert numbers(model) == (1, 2, 1)
    out(model, inputs | {"token_type_ids": torch.ones_like(inputs["input_ids"])})
    out(model, inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])})
    assert numbers(model) == (1, 4, 3)


def test_a_text_twice_in_one_batch_is_no_hit():
    model = cached()
    twice = out(model, rows_of(tokens(), [0, 0]))
    assert numbers(model) == (0, 2, 1)
    torch.testing.assert_close(twice[0], twice[1])


def weights(model):
    with torch.no_grad():
        enrich(model, seed=5)


def base(model):
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.3)


def threshold(model):
    model.peft_config["default"].threshold = 0.8


def price(model):
    model.peft_config["default"].rank_price = 1.0


def replaced(model):
    word = model.get_input_embeddings()
    word.weight = torch.nn.Parameter(word.weight.detach() * 2)


@pytest.mark.parametrize("change", [weights, base, threshold, price, replaced])
def test_any_change_forgets_all(change):
    model = cached()
    out(model, tokens())
    change(model)
    fresh = copy.deepcopy(model)
    fresh.base_model.caches["default"]._store.clear()
    assert torch.equal(out(model, tokens()), out(fresh, tokens()))
    assert numbers(model) == (0, 12, 6)


def test_training_forgets_all():
    model = cached()
    out(model, tokens())
    model.train()(**tokens())
    assert numbers(model) == (0, 6, 0)


def test_the_other_adapter_remembers_on_its_own():
    model = cached()
    model.add_adapter("other", ranked_config(cache=8))
    enrich(model, "other", seed=3)
    out(model, tokens())
    expected = {}
    for name in ("other", "default"):
        model.set_adapter(name)
        expected[name] = out(model, tokens())
    assert numbers(model) == (6, 12, 6)
    names = ["default", "other"] * 3
    for hits in (9, 12):  # who is alone on an example is so in a mixed batch too
        mixed = out(model, tokens(), adapter_names=names)
        for i, name in enumerate(names):
            torch.testing.assert_close(mixed[i], expected[name][i], rtol=0, atol=1e-5)
        assert report(model).hits == hits
    model.delete_adapter("other")
    assert list(model.base_model.caches) == ["default"]
    with pytest.raises(ValueError, match="'other' remembers no decisions"):
        report(model, "other")


def test_both_active_decide_otherwise_than_one_alone():
    model = cached()
    model.add_adapter("other", ranked_config(cache=8))
    enrich(model, "other", seed=3)
    alone = out(model, tokens())
    model.base_model.set_adapter(["default", "other"])
    together = out(model, tokens())
    fresh = copy.deepcopy(model)
    for cache in fresh.base_model.caches.values():
        cache._store.clear()
    assert torch.equal(out(fresh, tokens()), together)
    assert not torch.allclose(together, alone, atol=1e-3)


def test_embeddings_as_input_are_not_remembered():
    model = cached()
    inputs = tokens()
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    expected = out(model, inputs)
    found = out(model, {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert report(model).lookups == 6


def test_generation_looks_up_the_prompt_alone():
    model = ranked(causal_model(), ranked_config("bank", "llama", cache=8))
    plain = ranked(causal_model(), ranked_config("bank", "llama"))
    inputs, options = tokens(3), {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = plain.generate(**inputs, **options)
    for hits in (0, 3):
        assert torch.equal(model.generate(**inputs, **options), expected)
        assert report(model).hits == hits
    assert report(model).lookups == 6


def test_no_cache_unless_asked_for():
    model = get_peft_model(tiny_model(), ranked_config())
    assert model.base_model.caches == {}
    hooks = len(model.base_model.model._forward_pre_hooks)
    model.add_adapter("other", ranked_config(cache=2))
    assert len(model.base_model.model._forward_pre_hooks) == hooks + 1
    model.delete_adapter("other")
    assert len(model.base_model.model._forward_pre_hooks) == hooks


def test_unloading_takes_its_hook_off():
    base_model = tiny_model()
    model = get_peft_model(base_model, ranked_config(cache=2))
    assert not model.unload()._forward_pre_hooks
