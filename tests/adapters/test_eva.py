"""EVA: PEFT's own machinery, brought to exactly the parameter budget."""

import random
import warnings

import numpy as np
import pytest
import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from tiny import SETTINGS, batch, build, logits, tiny_data, tiny_model, tiny_tokenizer, trainer_for
from transformers import DataCollatorWithPadding, Trainer

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.contract import Resize
from rankwise.adapters.methods.eva import _LargeBatches
from rankwise.adapters.resize import apply_resize
from rankwise.allocation.budget import spent
from rankwise.errors import AllocationError, BudgetError, DataError
from rankwise.training.fit import training_arguments


def batches(count=6, size=16, length=9):
    """A pass over fixed batches with labels of whole examples."""
    return [batch(size, seed=seed, length=length) for seed in range(count)]


def prepared(method, data=None):
    """`prepare` and its resize, as the callback does them; returns the resize."""
    data = batches() if data is None else data
    resize = method.prepare(lambda: data)
    apply_resize(method.model, resize.ranks, kept=resize.kept)
    return resize


def inputs_of(model, names, data):
    """What every matrix is given at tokens that are no padding: (tokens, in) in float64."""
    seen = {name: [] for name in names}
    hooks = []
    for name in names:

        def keep(module, args, name=name):
            seen[name].append(args[0][mask.bool()].double())

        hooks.append(model.get_submodule(name).register_forward_pre_hook(keep))
    model.eval()
    for part in data:
        mask = part["attention_mask"]
        with torch.no_grad():
            model(**part)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def test_ranks_and_components_are_those_of_peft():
    """A budget in ranks needs no cut: the same ranks, and lora_A bit for bit."""
    data = batches()
    method = build("eva", budget="24 ranks")
    prepared(method, data)
    config = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=list(method.matrices),
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=2.0, tau=0.99),
    )
    without_labels = [{key: part[key] for key in ("input_ids", "attention_mask")} for part in data]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(tiny_model(), config)
        initialize_lora_eva_weights(peft_model, without_labels, show_progress_bar=False)
    expected, actual = adapted_layers(peft_model), adapted_layers(method.model)
    assert {name: layer.r[ADAPTER] for name, layer in expected.items()} == {
        name: rank for name, rank in method.rank_pattern().items() if rank
    }
    assert len({layer.r[ADAPTER] for layer in expected.values()}) > 1
    for name, layer in expected.items():
        assert torch.equal(actual[name].lora_A[ADAPTER].weight, layer.lora_A[ADAPTER].weight)
        assert actual[name].scaling[ADAPTER] == layer.scaling[ADAPTER] == 2.0
        assert not actual[name].lora_B[ADAPTER].weight.any()


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("budget", ["r=1", "r=3", "1500 parameters"])
def test_budget_is_spent_exactly_on_leading_components(family, budget):
    method = build("eva", tiny_model(family), budget=budget)
    asked = []
    ask = method._ask
    method._ask = lambda *args: asked.append(ask(*args)) or asked[-1]
    resize = prepared(method)
    ranks = method.rank_pattern()
    assert spent(ranks, method.costs) == method.target.total == method.parameter_count().final
    assert method.parameter_count().peak == method.target.total
    assert dict(resize.ranks) == ranks
    assert all(list(resize.kept[name]) == list(range(rank)) for name, rank in ranks.items())
    assert all(ranks[name] <= resize.scores[name] for name in ranks)
    if family == "llama":  # its odd shapes never fit at once
        assert any(ranks[name] < resize.scores[name] for name in ranks)
    for name, layer in adapted_layers(method.model).items():
        assert torch.equal(layer.lora_A[ADAPTER].weight, asked[-1][name][: ranks[name]].float())
    method.check_finished()


def test_components_explain_almost_as_much_variance_as_the_best_of_their_number():
    """Reference: principal components of all inputs at once, in float64."""
    data = batches(12)
    method = build("eva", budget="r=3", tau=0.999)
    prepared(method, data)
    inputs = inputs_of(tiny_model(), list(method.matrices), data)
    for name, layer in adapted_layers(method.model).items():
        rows = layer.lora_A[ADAPTER].weight.detach().double()
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)).double(), rtol=0, atol=1e-5)
        centred = inputs[name] - inputs[name].mean(0)
        best = torch.linalg.svdvals(centred)[: len(rows)].square().sum()
        assert float((centred @ rows.T).square().sum() / best) > 0.98


def test_padding_takes_no_part():
    """Ranks and components do not depend on how much padding there is, nor on what it holds."""
    long = [
        {
            "input_ids": torch.cat([part["input_ids"], torch.full((16, 5), 7 + i)], 1),
            "attention_mask": torch.cat([part["attention_mask"], torch.zeros(16, 5, dtype=torch.long)], 1),
            "labels": part["labels"],
        }
        for i, part in enumerate(batches())
    ]
    short, padded = build("eva"), build("eva")
    prepared(short)
    prepared(padded, long)
    assert short.rank_pattern() == padded.rank_pattern()
    for name, layer in adapted_layers(short.model).items():
        other = adapted_layers(padded.model)[name]
        torch.testing.assert_close(layer.lora_A[ADAPTER].weight, other.lora_A[ADAPTER].weight, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("rho", "least", "most"), [(1.0, 2, 2), (1.5, 3, 3), (4.0, 4, 8)])
def test_rho_bounds_the_ranks(rho, least, most):
    """One matrix is given an input of six directions that explain nearly everything, and would take them all."""
    model = tiny_model()
    wide = model.get_submodule("bert.encoder.layer.1.intermediate.dense")
    with torch.no_grad():
        left = torch.linalg.qr(torch.randn(64, 6, generator=torch.Generator().manual_seed(0))).Q
        wide.weight.copy_(0.05 * left @ torch.eye(6, 32))  # small, where gelu is straight
    method = build("eva", model, budget="24 ranks", rho=rho)
    prepared(method)
    ranks = method.rank_pattern()
    assert max(ranks.values()) == ranks["bert.encoder.layer.1.output.dense"]
    assert least <= max(ranks.values()) <= most


def test_model_computes_the_same_and_modules_without_components_leave():
    expected = logits(tiny_model())
    method = build("eva", budget="12 ranks", rho=4.0)
    prepared(method)
    torch.testing.assert_close(logits(method.model), expected, rtol=0, atol=1e-7)
    gone = [name for name, rank in method.rank_pattern().items() if rank == 0]
    assert gone
    assert not set(gone) & set(adapted_layers(method.model))


def test_nothing_else_moves_and_nothing_is_printed(capfd):
    method = build("eva")
    method.model.train()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(2))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    method.model.register_forward_pre_hook(lambda module, args: torch.rand(1) and None)  # as a noisy model does
    frozen = {n: p.clone() for n, p in method.model.named_parameters() if ".lora_A." not in n}
    method.prepare(batches)
    assert (random.random(), np.random.rand()) == expected[:2]
    assert torch.equal(torch.rand(2), expected[2])
    assert all(module.training for module in method.model.modules())
    after = dict(method.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert all(parameter.grad is None for parameter in after.values())
    assert not any(module._forward_hooks for module in method.model.modules())
    assert capfd.readouterr() == ("", "")


def test_optimizer_knows_the_parameters_after_the_cut():
    method = build("eva")
    optimizer = torch.optim.AdamW([p for p in method.model.parameters() if p.requires_grad])
    resize = method.prepare(batches)
    assert isinstance(resize, Resize)
    apply_resize(method.model, resize.ranks, kept=resize.kept, optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in method.model.parameters() if p.requires_grad}


def test_trainer_prepares_once_before_the_first_step(tmp_path):
    method = build("eva")
    calls = []
    prepare = type(method).prepare
    trainer = trainer_for(method, tmp_path)
    method.prepare = lambda data: (calls.append(trainer.state.global_step), prepare(method, data))[1]
    trainer.train()
    assert calls == [0]
    events = [entry["rank_event"] for entry in trainer.state.log_history if "rank_event" in entry]
    assert [(event["step"], event["event"]) for event in events] == [(0, "start"), (0, "resize"), (12, "end")]
    assert events[1]["ranks"] == method.rank_pattern()
    method.check_finished()


def test_unprepared_run_stops_at_its_first_step_and_is_never_exported(tmp_path):
    method = build("eva")
    assert method.parameter_count().final == method.target.total
    with pytest.raises(AllocationError, match="RankwiseCallback"):
        method.before_optimizer_step(1)
    stock = Trainer(
        model=method.model,
        args=training_arguments(SETTINGS, tmp_path / "work"),
        train_dataset=tiny_data(20),
        data_collator=DataCollatorWithPadding(tiny_tokenizer()),
    )
    stock.train()
    with pytest.raises(AllocationError, match="RankwiseCallback"):
        method.export(tmp_path / "out")


def test_saved_state_needs_no_second_preparation():
    method = build("eva", budget="12 ranks", rho=4.0)
    prepared(method)
    again = build("eva", budget="12 ranks", rho=4.0)
    again.load_state_dict(method.state_dict())
    assert again.prepared
    assert again.rank_pattern() == method.rank_pattern()
    assert again.parameter_count() == method.parameter_count()
    assert torch.equal(logits(again.model), logits(method.model))


def test_small_batches_are_joined():
    data = [batch(1, seed=seed, length=2 + seed % 3) for seed in range(40)]
    method = build("eva", budget="r=2")
    prepared(method, data)
    method.check_finished()


def test_joined_batches_hold_the_same_tokens_in_the_same_order():
    data = [batch(2, seed=seed, length=3 + seed) for seed in range(5)]
    joined = list(_LargeBatches(lambda: data, 15, padding=0))
    assert [part["input_ids"].shape for part in joined] == [(6, 5), (4, 7)]  # 6 + 8 + 10 tokens; 12 + 14
    assert all("labels" not in part for part in joined)
    tokens = torch.cat([part["input_ids"][part["attention_mask"].bool()] for part in joined])
    assert torch.equal(tokens, torch.cat([part["input_ids"].flatten() for part in data]))


def test_labels_of_tokens_choose_the_tokens():
    part = batch(4, length=9)
    part["labels"] = part["input_ids"].clone()
    part["labels"][:, :6] = -100
    (joined,) = _LargeBatches(lambda: [part], 12, padding=0)
    assert torch.equal(joined["labels"], part["labels"])
    with pytest.raises(DataError, match=r"the training data has 12 tokens, .* needs 13"):
        list(_LargeBatches(lambda: [part], 13, padding=0))


def test_too_little_data_is_an_error_and_leaves_training_mode():
    method = build("eva", budget="r=4")
    method.model.train()
    with pytest.raises(DataError, match="the training data has 6 tokens, and the SVD of its activations needs 16"):
        method.prepare(lambda: [batch(2, length=3)])
    assert method.model.training


def test_components_that_never_settle_are_an_error(monkeypatch):
    monkeypatch.setattr("rankwise.adapters.methods.eva.MOST_BATCHES", 3)
    with pytest.raises(AllocationError, match=r"after 3 batches the components still turn; lower tau \(0\.9999\)"):
        build("eva", tau=0.9999).prepare(batches)


def test_more_ranks_than_components_can_be_found_are_refused():
    with pytest.raises(BudgetError, match="mean rank of 17, but PEFT finds at most 16 components"):
        build("eva", budget="r=17")
