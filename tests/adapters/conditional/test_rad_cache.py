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


def check_alike(kind, first, second, hits):
    """What follows `first` is decided as without a cache; so many of its examples are known."""
    plain, model = ranked(tiny_model(), ranked_config(kind)), cached(kind, size=20)
    expected = [(out(plain, inputs), ranks(plain)) for inputs in (first, second)]
    for inputs, (logits, used) in zip((first, second), expected, strict=True):
        torch.testing.assert_close(out(model, inputs), logits, rtol=0, atol=1e-6)
        assert torch.equal(ranks(model), used)
    assert not torch.equal(expected[0][1], expected[1][1]) or hits, "the inputs make no difference"
    assert report(model).hits == hits


@pytest.mark.parametrize("dtype", [torch.long, torch.float32, torch.float16, torch.bool])
def test_masks_of_any_dtype_tell_inputs_apart(dtype):
    ids = tokens()["input_ids"]
    masks = [torch.ones_like(ids), torch.ones_like(ids)]
    masks[1][:, 3:] = 0
    first, second = ({"input_ids": ids, "attention_mask": mask.to(dtype)} for mask in masks)
    check_alike("bank", first, second, 0)
    check_alike("bank", first, {"input_ids": ids}, 6)


def test_a_mask_between_0_and_1_is_another_one():
    first = tokens()
    mask = first["attention_mask"].float()
    mask[:, 3:] = 0.5
    model = cached()
    out(model, first)
    out(model, first | {"attention_mask": mask})
    assert numbers(model) == (0, 12, 8)


@pytest.mark.parametrize("rows", [1, 6])
def test_position_ids_tell_inputs_apart_one_row_for_all_too(rows):
    places = torch.arange(9).expand(rows, 9)
    check_alike("bank", tokens() | {"position_ids": places}, tokens() | {"position_ids": places + 20}, 0)
    check_alike("bank", tokens() | {"position_ids": places}, padded(tokens(), 0), 6)


def test_padding_in_front_moves_the_positions_of_a_model_that_counts_them():
    check_alike("bank", padded(tokens(), 4), padded(tokens(), 4, left=True), 0)


def test_other_real_numbers_are_not_remembered():
    model = cached()
    model.base_model.model.config.problem_type = "multi_label_classification"
    for _ in range(2):
        out(model, tokens() | {"labels": torch.rand(6, model.config.num_labels)})
    assert numbers(model) == (0, 0, 0)
    out(model, tokens())
    assert numbers(model) == (0, 6, 6)


def test_clear_forgets_all():
    plain, model = ranked(tiny_model(), ranked_config()), cached()
    out(model, tokens())
    for each in (plain, model):
        for name, p in each.named_parameters():
            if "router" in name:
                p.data.mul_(-1)
    model.base_model.caches["default"].clear()
    assert torch.equal(out(model, tokens()), out(plain, tokens()))
    assert numbers(model) == (0, 12, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_with_gradients_nothing_is_remembered(kind):
    plain, model, inputs = ranked(tiny_model(), ranked_config(kind)), cached(kind), tokens()
    out(model, inputs)
    for each in (plain, model):
        for _ in range(2):
            each(**inputs).logits.sum().backward()
    for (name, p), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (other.grad is None), name
        assert p.grad is None or torch.equal(p.grad, other.grad), name
    assert numbers(model) == (0, 6, 6)
    out(model, inputs)
    assert numbers(model) == (6, 12, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_decided_in_inference_mode_serves_outside_of_it(kind):
    model, inputs = cached(kind), rows_of(tokens(), [0, 1, 2])
    with torch.inference_mode():
        expected = model(**inputs).logits
    assert torch.equal(out(model, inputs), expected)
    with torch.inference_mode():
        model(**tokens())
    out(model, tokens())
    assert numbers(model) == (12, 18, 6)
    model(**inputs).logits.sum().backward()


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
