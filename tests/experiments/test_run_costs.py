"""What is counted when a run is done, on real runs of a tiny model; `premise` against removal by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_files import write_data

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.errors import StoreError
from rankwise.experiments import run_costs
from rankwise.experiments.config import from_dict
from rankwise.experiments.runner import _fit, run
from rankwise.experiments.store import Store
from rankwise.experiments.store_reader import StoreReader

BLOCK = {"name": "radlora", "depth": "block", "block": {"keep": 0.5, "keep_last": 0}}


@pytest.fixture(scope="module")
def settings(tmp_path_factory, model_folder):
    data = write_data(tmp_path_factory.mktemp("costs") / "tiny.csv", 160)

    def made(method, **evaluation):
        return from_dict(
            {
                "method": method if isinstance(method, dict) else {"name": method},
                "model": str(model_folder),
                "task": {"name": "files", "path": str(data), "text": ["sentence"], "label": "verdict"},
                "training": {"max_steps": 30, "batch_size": 8, "learning_rate": 5e-3},
                "evaluation": evaluation,
            }
        ).config

    return made


@pytest.fixture(scope="module")
def ran(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    methods = ("lora", "cogalora", {"name": "galora", "keep": 0.5}, "full", BLOCK)
    with Store(folder / "store.sqlite") as store:
        found = {}
        for method in methods:
            record = run(settings(method), store, folder).record
            found["block" if method is BLOCK else record.method] = store.get(record.run_id)
    return found


def test_static_adapters_are_free_once_merged_and_decisions_are_not(ran):
    flops = {name: record.costs["inference_flops"] for name, record in ran.items()}
    assert flops["lora"] == flops["galora"] == flops["full"] > 0
    assert flops["cogalora"] > flops["lora"]
    assert flops["block"] < flops["lora"]


def test_shares_and_ranks(ran):
    lora, galora, gated = (ran[name].costs for name in ("lora", "galora", "cogalora"))
    ranks = ran["galora"].rank_pattern
    assert (lora["active_share"], lora["total_rank"]) == (1.0, sum(ran["lora"].rank_pattern.values()))
    assert galora["active_share"] == sum(r > 0 for r in ranks.values()) / len(ranks) < 1
    assert galora["total_rank"] == sum(ranks.values())
    assert 0 <= gated["active_share"] < 1
    assert gated["total_rank"] <= sum(ran["cogalora"].rank_pattern.values())
    assert set(ran["full"].costs) - {"peak_memory_bytes"} == {"inference_flops"}  # no adapter, no rank


@pytest.mark.skipif(
    torch.cuda.is_available() or not Path("/proc/self/clear_refs").exists(),
    reason="on a GPU its tensors count; elsewhere only Linux says how much a process held",
)
def test_memory_of_training_is_that_of_a_process_with_torch_in_it(ran):
    for record in ran.values():
        assert 100 * 2**20 < record.costs["peak_memory_bytes"] < 100 * 2**30


def test_premise_is_the_rank_correlation_of_score_and_loss_without_the_module(settings, tmp_path):
    method = {"name": "glora", "signal": "sensitivity", "warmup": 0.5, "floor": 4, "cap": 4, "budget": "r=4"}
    config = settings(method, premise=True)
    with Store(tmp_path / "store.sqlite") as store:
        record = run(config, store, tmp_path).record
        scores = store.scores(record.run_id)
        kept = store.get(record.run_id)
    trained = _fit(config, tmp_path / "again")  # the same run, whose model is still here
    model = trained.method.model.eval()
    batch = next(run_costs.batches(trained, range(len(trained.split)), 1000, labels=True))

    def loss():
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(model(**batch).logits, batch["labels"]))

    whole, rises = loss(), {}
    for name, layer in adapted_layers(model).items():
        layer.set_adapter([])
        rises[name] = loss() - whole
        layer.set_adapter([ADAPTER])
    assert set(rises) == set(scores)
    assert len(set(record.rank_pattern.values())) == 1  # nothing was reallocated
    expected = stats.spearmanr([scores[name] for name in rises], list(rises.values())).statistic
    assert kept.costs["premise"] == pytest.approx(expected, abs=0.05)  # near ties may swap within rounding
    assert kept.costs["premise_modules"] == len(rises)


def test_scores_that_are_the_truth_have_premise_1_and_reversed_ones_minus_1(settings, tmp_path):
    trained = _fit(settings("lora"), tmp_path)
    layers = adapted_layers(trained.method.model)
    trained.method.model.eval()
    given = list(run_costs.batches(trained, range(len(trained.split)), 1000, labels=True))
    with torch.no_grad():
        truth = {}
        for name, layer in layers.items():
            with run_costs._removed(layer):
                truth[name] = run_costs._loss(trained.method.model, given)
    before = {name: layer.lora_B[ADAPTER].weight.clone() for name, layer in layers.items()}
    config = settings("lora", premise=True)
    assert run_costs.costs_of(config, trained, truth)["premise"] == pytest.approx(1, abs=0.02)
    opposite = {name: -value for name, value in truth.items()}
    assert run_costs.costs_of(config, trained, opposite)["premise"] == pytest.approx(-1, abs=0.02)
    assert all(torch.equal(before[name], layer.lora_B[ADAPTER].weight) for name, layer in layers.items())
    assert "premise" not in run_costs.costs_of(config, trained, {})
    assert "premise" not in run_costs.costs_of(config, trained, dict.fromkeys(layers, 1.0))


def test_the_measurement_leaves_no_trace(settings, tmp_path):
    torch.manual_seed(5)
    trained = _fit(settings("cogalora"), tmp_path)
    trained.method.model.train()
    state = torch.get_rng_state()
    weights = [p.detach().clone() for p in trained.method.model.parameters()]
    run_costs.costs_of(settings("cogalora"), trained, {})
    assert torch.equal(state, torch.get_rng_state())
    assert trained.method.model.training
    assert all(torch.equal(a, b) for a, b in zip(weights, trained.method.model.parameters(), strict=True))


def test_asking_for_it_is_another_run_and_not_asking_the_one_it_always_was(settings):
    plain, asked = settings("glora"), settings("glora", premise=True)
    assert plain.run_id != asked.run_id
    assert plain.run_id == replace_evaluation(plain, batch_size=plain.evaluation.batch_size).run_id


def replace_evaluation(config, **fields):
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=fields)})


def test_the_store_keeps_costs_and_not_a_number_too(tmp_path, ran):
    record = replace(ran["lora"], costs={"inference_flops": 1.5e9, "premise": math.nan}, status="running")
    with Store(tmp_path / "a.sqlite") as store, Store(tmp_path / "b.sqlite") as other:
        store.begin(record)
        store.finish(record)
        other.take(store, record.run_id, None)
        for each in (store, other):
            costs = each.get(record.run_id).costs
            assert costs["inference_flops"] == 1.5e9
            assert np.isnan(costs["premise"])


def test_a_store_of_before_gets_the_table_and_readers_say_so(tmp_path):
    path = tmp_path / "store.sqlite"
    with Store(path):
        pass
    import sqlite3

    with sqlite3.connect(path) as old:
        old.execute("DROP TABLE costs")
        old.execute("DELETE FROM rankwise_migrations WHERE name = 'm002_costs'")
    old.close()
    with pytest.raises(StoreError, match="written by an older Rankwise"):
        StoreReader(path)
    with Store(path) as store:
        assert "CREATE TABLE costs" in store.schema()
