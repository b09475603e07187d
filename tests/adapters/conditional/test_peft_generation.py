"""Generation: decided when the prompt is read, kept while tokens are added."""

import copy

import pytest
import torch
from gated import causal_model, context, decisions, fill, gated, gated_config, padded, rows_of, tokens

from rankwise.errors import ModelError

FAMILIES = ("llama", "gpt2")
KINDS = ("module", "shared")
WAYS = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "do_sample": False},
    "sampling": {"do_sample": True},
    "greedy, no cache": {"do_sample": False, "use_cache": False},
    "beams, no cache": {"num_beams": 3, "do_sample": False, "use_cache": False},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
}
LENGTH = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}


def lm(family="llama", kind="module", seed=0):
    config = gated_config(family, router=kind, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2")
    return gated(causal_model(family), config, seed=seed)


class Steps:
    """The decisions of every forward pass of a model."""

    def __init__(self, model):
        self.model, self.found = model, []
        self.handle = model.base_model.model.register_forward_hook(self.note)

    def note(self, module, args, output):
        self.found.append(decisions(self.model))

    def all_equal(self, wanted, repeats=1):
        assert len(self.found) == 6
        for step in self.found:
            assert step.keys() == wanted.keys()
            for key, gates in step.items():
                assert torch.equal(gates, wanted[key].repeat_interleave(repeats)), key


@torch.no_grad()
def prefill(model, inputs):
    model(**inputs)
    return decisions(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padding", [0, 3])
def test_every_step_uses_the_decisions_of_the_prompt(family, kind, way, padding):
    model = lm(family, kind)
    wanted = prefill(model, tokens())
    assert any(0 < float(gates.mean()) < 1 for gates in wanted.values())
    steps = Steps(model)
    torch.manual_seed(0)
    model.generate(**padded(tokens(), padding, left=True), **LENGTH, **WAYS[way])
    steps.all_equal(wanted, WAYS[way].get("num_beams", 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_changes_nothing_of_the_text(family):
    model = lm(family)
    with_cache = model.generate(**tokens(), **LENGTH, do_sample=False)
    assert torch.equal(model.generate(**tokens(), **LENGTH, do_sample=False, use_cache=False), with_cache)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_a_text_does_not_depend_on_the_others(family, way):
    """Alone, or in a batch whose other texts are longer."""
    model = lm(family)
    together = padded(tokens(4), 2, left=True)
    longer = tokens(2, 11, seed=9)
    together = {name: torch.cat([value, longer[name]]) for name, value in together.items()}
    found = model.generate(**together, **LENGTH, **WAYS[way])
    for row in range(4):
        alone = model.generate(**rows_of(tokens(4), slice(row, row + 1)), **LENGTH, **WAYS[way])
        assert torch.equal(alone[0, 9:], found[row, 11:])


@pytest.mark.parametrize("way", ["greedy", "beams", "greedy, no cache"])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_batches(way, kind):
    model = lm(kind=kind)
    model.add_adapter("other", gated_config("llama", r=2, router=kind))
    fill(model, "other", seed=5)
    wanted = {}
    with model.disable_adapter():
        wanted["__base__"] = model.generate(**tokens(), **LENGTH, **WAYS[way])
    for name in ("default", "other"):
        model.set_adapter(name)
        wanted[name] = model.generate(**tokens(), **LENGTH, **WAYS[way])
    names = ["other", "default", "__base__", "default", "other", "default"]
    mixed = model.generate(**tokens(), **LENGTH, **WAYS[way], adapter_names=names)
    for row, name in enumerate(names):
        assert torch.equal(mixed[row], wanted[name][row])


@torch.no_grad()
def step(model, ids, cache=None):
    return model(input_ids=ids, past_key_values=cache, use_cache=True)


def test_texts_generated_by_hand_in_turns_keep_their_own_decisions():
    model = lm()
    one, two = tokens(6, seed=1)["input_ids"], tokens(6, seed=2)["input_ids"]
    wanted, logits = {}, {}
    for name, ids in (("one", one), ("two", two)):
        first = step(model, ids)
        wanted[name] = decisions(model)
        logits[name] = step(model, ids[:, :1], first.past_key_values).logits
    assert any(not torch.equal(gates, wanted["two"][key]) for key, gates in wanted["one"].items())
    caches = {name: step(model, ids).past_key_values for name, ids in (("one", one), ("two", two))}
    for name, ids in (("one", one), ("two", two)):
        out = step(model, ids[:, :1], caches[name])
        assert torch.equal(out.logits, logits[name])
        assert all(torch.equal(gates, wanted[name][key]) for key, gates in decisions(model).items())


def test_a_copied_cache_of_a_prompt_keeps_its_decisions():
    model = lm()
    cache = step(model, tokens()["input_ids"]).past_key_values
    wanted = decisions(model)
    twin = copy.deepcopy(cache)
    step(model, tokens(6, seed=2)["input_ids"])
    step(model, tokens(6, 2, seed=3)["input_ids"], twin)
    assert all(torch.equal(gates, wanted[key]) for key, gates in decisions(model).items())


@pytest.mark.parametrize(
    "option",
    [{"prefill_chunk_size": 3}, {"assistant_model": causal_model()}, {"prompt_lookup_num_tokens": 2}],
    ids=lambda option: next(iter(option)),
)
def test_prefills_that_are_not_the_prompt_are_refused(option):
    with pytest.raises(ValueError, match=f"`{next(iter(option))}` is set: .* decide once, from the whole prompt"):
        lm().generate(**tokens(), **LENGTH, **option)


def test_a_cache_that_was_spread_out_is_refused():
    model = lm()
    cache = step(model, tokens()["input_ids"]).past_key_values
    cache.batch_repeat_interleave(2)
    with pytest.raises(ModelError, match="the cache holds 6 examples that were decided on, and 12 go on from it"):
        step(model, tokens(12, 2, seed=3)["input_ids"], cache)


def test_the_next_text_is_decided_anew():
    model = lm()
    model.generate(**tokens(), **LENGTH, do_sample=False)
    first = prefill(model, tokens(seed=2))
    again = prefill(lm(), tokens(seed=2))
    assert all(torch.equal(gates, again[key]) for key, gates in first.items())
    assert not context(model)._decoding
