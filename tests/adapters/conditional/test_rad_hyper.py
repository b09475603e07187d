"""Generators that write factors per input: their size, their start, and that what they write does not stay."""

import gc

import pytest
import torch
from gated import tokens
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from ranked import KINDS, made, out, ranked, ranked_config, ranks
from tiny import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from rankwise.adapters.conditional.rad_hyper import HYPER, Hyper, add_generated, hyper_cost

GENERATED = ("hyper", "factorised")


def layers(model):
    return [m for m in model.modules() if isinstance(m, LoraLayer)]


@pytest.mark.parametrize("middle", [None, 3])
def test_cost_is_what_is_there(middle):
    hyper = Hyper(7, 5, 4, middle, zero=True)
    assert hyper_cost(7, 5, 4, middle) == sum(p.numel() for p in hyper.parameters())
    if middle is None:
        assert hyper_cost(7, 5, 4, None) == torch.nn.Linear(7, 4 * (7 + 5)).weight.numel() + 4 * 12


def test_the_record_s_generator_on_bert_base_has_a_billion_parameters():
    """Hidden to (in + out) · 8 for the six matrices of twelve blocks; its own count leaves out the wider inputs."""
    of_block = [(768, 768)] * 4 + [(768, 3072), (3072, 768)]
    narrow = sum(768 * 8 * (a + b) for a, b in of_block) * 12
    assert narrow == 1_019_215_872
    assert sum(hyper_cost(a, b, 8, None) for a, b in of_block) * 12 > narrow


@pytest.mark.parametrize("kind", GENERATED)
def test_starts_as_the_base_model_and_all_of_it_learns_in_the_end(kind):
    model = get_peft_model(tiny_model(), ranked_config(kind))
    assert torch.equal(out(model, tokens()), out(tiny_model(), tokens()))
    model.train()
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if ".lora_hyper" in n], 10.0)
    torch.manual_seed(0)
    for _ in range(3):
        optimizer.zero_grad()
        model(**tokens(20), labels=torch.arange(20) % 3).loss.backward()
        optimizer.step()
    hyper = layers(model)[0].lora_hyper["default"]
    for parameter in hyper.parameters():
        assert float(parameter.grad.abs().max()) > 0
    entries = hyper.weight.view(4, 64, -1)
    assert entries[:, 32:].any(), "B"
    assert entries[:, :32].any(), "A, once B is there"


@pytest.mark.parametrize("kind", GENERATED)
def test_factors_follow_the_input(kind):
    hyper = layers(ranked(tiny_model(), ranked_config(kind)))[0].lora_hyper["default"]
    seen = torch.randn(2, 32)
    a, b = hyper.generate(hyper.normalise(seen), 4)
    assert (a.shape, b.shape) == ((2, 4, 32), (2, 4, 32))
    assert not torch.allclose(a[0], a[1], atol=1e-2)
    first, second = hyper.generate(hyper.normalise(seen), 2)
    torch.testing.assert_close(first, a[:, :2])
    torch.testing.assert_close(second, b[:, :2])


@pytest.mark.parametrize("kind", GENERATED)
@pytest.mark.parametrize("flat", [False, True])
def test_rows_by_rank_are_all_rows_at_their_weights(kind, flat):
    hyper = layers(ranked(tiny_model(), ranked_config(kind)))[0].lora_hyper["default"]
    x, result = torch.randn(5, 6, 32), torch.randn(5, 6, 32)
    used = torch.tensor([0, 3, 1, 3, 4])
    weights = (torch.arange(4) < used[:, None]).float()
    seen = hyper.normalise(x.mean(1))
    expected = add_generated(result.clone(), x, hyper, seen, weights, None, 0.7).detach()
    given = (result.clone(), x)
    if flat:
        given = tuple(t.flatten(0, 1) for t in given)
    found = add_generated(*given, hyper, seen, weights, used, 0.7)
    torch.testing.assert_close(found.view(5, 6, 32), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.view(5, 6, 32)[0], result[0])


class Sizes(TorchDispatchMode):
    """Notes the largest tensor that any operation makes; parts of `given` modules are not made."""

    def __init__(self, given):
        super().__init__()
        self.largest, self.given = 0, {p.untyped_storage().data_ptr() for p in given.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else [result]:
            if torch.is_tensor(t) and t.untyped_storage().data_ptr() not in self.given:
                self.largest = max(self.largest, t.untyped_storage().nbytes() // t.element_size())
        return result


def alive():
    """Bytes of all tensors that are no parameters, by storage."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if torch.is_tensor(thing) and not isinstance(thing, torch.nn.Parameter):
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(found.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of objects that only looking at them makes warn
@pytest.mark.parametrize("kind", GENERATED)
def test_what_is_written_is_gone_after_the_pass(kind):
    model, inputs = ranked(tiny_model(), ranked_config(kind)), tokens(20)
    out(model, inputs)
    before = alive()
    result = out(model, inputs)
    assert int(ranks(model).sum()) > 100
    kept = sum(t.numel() * t.element_size() for made_ in made(model).values() for t in made_ if t is not None)
    one = 64 * 4 * 4  # the factors of one example and one module
    assert alive() - before < result.numel() * 4 + kept + one
    assert kept < one * len(layers(model)) * 20 / 4


@pytest.mark.parametrize("rank", [1, 4])
def test_only_components_in_use_are_written(rank):
    """The largest tensor of a pass is what open rows need: `rank` components each."""
    hyper = Hyper(32, 48, 64, None, zero=False)
    x, used = torch.randn(6, 2, 32), torch.tensor([rank, 0, rank, 0, 0, rank])
    weights = (torch.arange(64) < used[:, None]).float()
    seen = hyper.normalise(x.mean(1))
    with torch.no_grad(), Sizes(hyper) as sizes:
        add_generated(torch.zeros(6, 2, 48), x, hyper, seen, weights, used, 1.0)
    assert sizes.largest <= max(3 * rank * (32 + 48), 6 * 2 * 48)


def test_average_is_the_mean_over_inputs():
    model = ranked(tiny_model(), ranked_config("factorised"))
    hyper = layers(model)[0].lora_hyper["default"]
    seen = hyper.normalise(torch.randn(9, 32))
    hyper.centre.copy_(seen.mean(0))
    a, b = hyper.generate(seen, 4)
    average_a, average_b = hyper.average()
    torch.testing.assert_close(average_a, a.mean(0))
    torch.testing.assert_close(average_b, b.mean(0).t())


def test_bank_layers_have_no_generator():
    assert not any(hasattr(layer, HYPER) for layer in layers(ranked(tiny_model(), ranked_config())))
    assert set(KINDS) == {"bank", *GENERATED}


@pytest.mark.parametrize("kind", GENERATED)
def test_gradients_in_eval_mode_are_those_of_a_batch(kind):
    """Also to an input, with a frozen adapter; closed gates and unused components get none."""
    torch.manual_seed(0)
    hyper = Hyper(7, 5, 4, None if kind == "hyper" else 3, zero=False)
    torch.nn.init.normal_(hyper.weight)
    x, seen, result = torch.randn(3, 6, 7), torch.randn(3, 7), torch.randn(3, 6, 5)
    ranks = torch.tensor([0, 2, 4])
    weights = (torch.arange(4) < ranks[:, None]).float()
    plain = add_generated(result.clone(), x, hyper.requires_grad_(False), seen, weights, ranks, 0.5)
    for learns in (True, False):
        hyper.requires_grad_(learns)
        wanted = [*hyper.parameters()] if learns else [x.requires_grad_()]
        grads = []
        for used in (ranks, None):
            found = add_generated(result.clone(), x, hyper, seen, weights, used, 0.5)
            torch.testing.assert_close(found, plain)
            grads.append(torch.autograd.grad(found.square().sum(), wanted))
        for one, other in zip(*grads, strict=True):
            assert torch.equal(one, other)
            assert bool(one.any())
