"""Adapters that no training example opens are taken off, and what that changes is measured."""

import json

import pytest
import torch
from gated import causal_model, decisions, fill, gated, gated_config, tokens
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tiny import build, logits, settings, tiny_data, tiny_model, tiny_tokenizer

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.conditional import drop_unused
from rankwise.errors import AllocationError, TrainingError
from rankwise.training.callback import load_method, save_method
from rankwise.training.fit import fit

KINDS = ("module", "shared")
FAST = {"budget": "r=8", "warmup": 2, "annealing": 9}


@torch.no_grad()
def out(model, inputs=None):
    return model.eval()(**(inputs or tokens(12))).logits


def measured(kind, closed, family="bert"):
    """A model with the usage of `tokens(12)` in its config; the modules `closed` (by position) never open."""
    base = tiny_model() if family == "bert" else causal_model(family)
    other = {"query" if family == "bert" else "q_proj": 2}
    model = gated(base, gated_config(family, router=kind, rank_pattern=other, alpha_pattern=other))
    config = model.peft_config[ADAPTER]
    layers = adapted_layers(model)
    with torch.no_grad():
        for position, layer in enumerate(layers.values()):
            router = (
                next(iter(layers.values())).lora_router[ADAPTER] if kind == "shared" else layer.lora_router[ADAPTER]
            )
            row = position if kind == "shared" else 0
            if position in closed:
                router.up[row], router.up_bias[row] = 0.0, -5.0
    out(model)
    config.usage = {name: float(gates.mean()) for (name, _), gates in decisions(model).items()}
    return model, list(layers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("closed", [(1,), (1, 2, 4), (5,)])
def test_unused_modules_go_and_nothing_changes(tmp_path, kind, family, closed):
    model, names = measured(kind, closed, family)
    config = model.peft_config[ADAPTER]
    expected, wanted = out(model), [names[i] for i in closed]
    others = [name for name in names if config.usage[name] == 0 and name not in wanted and name != names[0]]
    kept = [name for name in names if name not in wanted + others or (kind == "shared" and name == names[0])]
    gone = drop_unused(model)
    assert gone == [name for name in names if name not in kept]
    assert set(wanted) <= set(gone)
    assert torch.equal(out(model), expected)
    assert list(adapted_layers(model)) == kept == list(config.usage)
    assert all(not isinstance(model.base_model.model.get_submodule(name), LoraLayer) for name in gone)
    if kind == "shared":
        assert config.routed == kept
        assert adapted_layers(model)[names[0]].lora_router[ADAPTER].up.shape[0] == len(kept)
    base = tiny_model() if family == "bert" else causal_model(family)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(out(loaded), expected)
    assert {n: layer.r for n, layer in adapted_layers(loaded).items()} == {
        n: layer.r for n, layer in adapted_layers(model).items()
    }
    model.train()(**tokens()).logits.sum().backward()  # what is left can still be trained


def test_the_owner_of_a_shared_router_stays_and_so_does_the_most_used():
    model, names = measured("shared", (0, 1))
    assert model.peft_config[ADAPTER].usage[names[0]] == 0
    assert names[0] not in drop_unused(model)
    model, names = measured("module", range(6))
    expected = out(model)
    assert len(drop_unused(model)) == 5
    assert torch.equal(out(model), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rarely_used_modules_go_on_request(kind):
    model, names = measured(kind, (1,))
    usage = dict(model.peft_config[ADAPTER].usage)
    limit = sorted(usage.values())[3]
    gone = drop_unused(model, below=limit)
    assert gone == [n for n in names if usage[n] <= limit and not (kind == "shared" and n == names[0])]
    assert len(gone) > 1


def test_other_adapters_on_a_module_stay_and_stay_as_active_as_they_were():
    model, names = measured("module", (1, 2))
    model.add_adapter("other", gated_config("bert", r=2))
    fill(model, "other", seed=5)
    expected = out(model)
    gone = drop_unused(model)
    assert torch.equal(out(model), expected)
    assert not {key for key in decisions(model) if key[1] == "other"}
    layer = model.base_model.model.get_submodule(gone[0])
    assert set(layer.lora_A) == set(layer.lora_router) == set(layer.lora_variant) == {"other"}
    model.set_adapter("other")
    assert {key[0] for key in decisions_of(model)} == set(names)


def decisions_of(model):
    out(model)
    return decisions(model)


def test_what_was_never_measured_cannot_be_judged():
    with pytest.raises(AllocationError, match="'default' was never measured"):
        drop_unused(gated(tiny_model(), gated_config("bert")))
    plain = get_peft_model(tiny_model(), LoraConfig(target_modules=["query"]))
    with pytest.raises(AllocationError, match="'default' is LORA, not COGALORA"):
        drop_unused(plain)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda usage, name: usage.pop(name), "does not name it"),
        (lambda usage, name: usage.update({name: "much"}), "says 'much', which is no share from 0 to 1"),
        (lambda usage, name: usage.update({name: 5}), "says 5, which is no share"),
        (lambda usage, name: usage.update({name: float("nan")}), "says nan, which is no share"),
    ],
)
def test_an_edited_usage_is_refused(change, words):
    model, names = measured("module", (1,))
    expected = out(model)
    change(model.peft_config[ADAPTER].usage, names[2])
    with pytest.raises(AllocationError, match=rf"'default' is used on {names[2]}: .* {words}.*; restore the usage"):
        drop_unused(model)
    assert list(adapted_layers(model)) == names
    assert torch.equal(out(model), expected)


def test_the_most_used_module_is_one_of_the_model():
    model, names = measured("module", range(6))
    model.peft_config[ADAPTER].usage["elsewhere"] = 1.0
    assert len(drop_unused(model)) == len(names) - 1


def train(kind, folder, **fields):
    method = build("cogalora", router=kind, **(FAST | fields))
    data = tiny_data(20)
    return method, fit(method, tiny_tokenizer(), data, {"main": tiny_data(9, seed=3)}, settings(), work_dir=folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("below", [0.0, 0.4])
def test_a_method_takes_them_off_when_training_ends(tmp_path, kind, below):
    """Same seed without it: the runs differ by nothing else, so what dropping costs on other data is a difference."""
    method, fitted = train(kind, tmp_path / "a", active=0.3, drop_below=below)
    whole, reference = train(kind, tmp_path / "b", active=0.3)
    assert fitted.losses == reference.losses
    dropped = method.peft.dropped
    before, after = dropped["before"], dropped["after"]
    assert before.keys() == after.keys() == {"examples", "loss", "accuracy"}
    assert before["examples"] == after["examples"] == 20
    ranks = method.rank_pattern()
    assert dropped["modules"] == [name for name, rank in ranks.items() if rank == 0]
    assert dropped["modules"] or (kind, below) == ("shared", 0.0)  # of its gates, all are open for somebody
    assert (method.parameter_count().final < whole.parameter_count().final) == bool(dropped["modules"])
    assert all(share > below for share in list(method.peft.usage.values())[kind == "shared" :])
    if below == 0:
        assert after == before
        assert not whole.peft.usage.keys() - method.peft.usage.keys() - set(dropped["modules"])
    else:
        assert after["loss"] != before["loss"]
    correct = [
        (logits(method.model, {"input_ids": torch.tensor([row["input_ids"]])}).argmax() == row["labels"]).item()
        for row in tiny_data(20)
    ]
    assert after["accuracy"] == pytest.approx(sum(correct) / 20)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_taken_off_stays_off_in_checkpoints_and_exports(tmp_path, kind):
    method, _ = train(kind, tmp_path / "work", active=0.3, drop_below=0.4)
    expected = logits(method.model)
    folder = method.export(tmp_path / "out")
    written = json.loads((folder / "adapter_config.json").read_text())
    assert written["dropped"] == method.peft.dropped
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(), folder)), expected)
    static = PeftModel.from_pretrained(tiny_model(), method.export(tmp_path / "static", "static"))
    assert list(adapted_layers(static)) == method.live()
    save_method(method, tmp_path)
    fresh = build("cogalora", router=kind, active=0.3, drop_below=0.4, **FAST)
    load_method(fresh, tmp_path)
    assert torch.equal(logits(fresh.model), expected)
    assert fresh.rank_pattern() == method.rank_pattern()
    assert fresh.peft.dropped == method.peft.dropped
    save_method(build("cogalora", router=kind, active=0.3, drop_below=0.4, **FAST), tmp_path)
    with pytest.raises(TrainingError, match="adapters that were taken off since"):
        load_method(fresh, tmp_path)
