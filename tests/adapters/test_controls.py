"""The controls that look at nothing (`random`, `heuristic`) or only at the end (`truncate`)."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from peft import PeftModel
from pydantic import ValidationError
from tiny import build, logits, tiny_model, trainer_for

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.contract import METHODS
from rankwise.adapters.methods.random import Random
from rankwise.errors import BudgetError, ConfigError


def spent(method):
    return sum(rank * method.costs[name] for name, rank in method.rank_pattern().items())


def deltas(method):
    """ΔW (out, in) of every module in float64, by plain matrix products."""
    found = {}
    for name, layer in adapted_layers(method.model).items():
        a, b = layer.lora_A[ADAPTER].weight.detach().double(), layer.lora_B[ADAPTER].weight.detach().double()
        found[name] = layer.scaling[ADAPTER] * b @ a
    return found


# random


def test_another_seed_is_another_allocation_and_the_same_seed_the_same():
    patterns = [build("random", budget="r=4", seed=seed).rank_pattern() for seed in (0, 0, 1, 2)]
    assert patterns[0] == patterns[1]
    assert len({tuple(pattern.values()) for pattern in patterns}) == 3


@hypothesis_settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    rank=st.integers(1, 6),
    floor=st.integers(0, 1),
    cap=st.sampled_from([None, 8, 12]),
    concentration=st.sampled_from([0.05, 1.0, 50.0]),
)
def test_random_ranks_cost_exactly_the_budget_within_floor_and_cap(seed, rank, floor, cap, concentration):
    method = build("random", budget=f"r={rank}", seed=seed, floor=floor, cap=cap, concentration=concentration)
    ranks = method.rank_pattern()
    assert spent(method) == rank * sum(method.costs.values()) == method.parameter_count().final
    assert method.parameter_count().peak == method.parameter_count().final
    assert min(ranks.values()) >= floor
    assert max(ranks.values()) <= (cap or 32)
    assert {layer.scaling[ADAPTER] for layer in adapted_layers(method.model).values()} == {2.0}


@pytest.mark.parametrize("concentration", [0.5, 1.0, 8.0])
def test_shares_are_dirichlet(concentration):
    """Mean 1/n and variance (1/n)(1 - 1/n) / (n·c + 1) of every share, over 4,000 seeds."""
    count, seeds = 6, 4000
    names = [f"m{i}" for i in range(count)]
    draws = torch.tensor(
        [
            list(Random.scores(SimpleNamespace(matrices=names, concentration=concentration, seed=seed)).values())
            for seed in range(seeds)
        ],
        dtype=torch.float64,
    )
    shares = draws / draws.sum(1, keepdim=True)
    variance = (1 / count) * (1 - 1 / count) / (count * concentration + 1)
    torch.testing.assert_close(shares.mean(0), torch.full((count,), 1 / count).double(), rtol=0, atol=0.015)
    torch.testing.assert_close(shares.var(0), torch.full((count,), variance).double(), rtol=0.15, atol=0)


def test_high_concentration_comes_near_uniform():
    ranks = build("random", budget="r=4", concentration=1e8).rank_pattern().values()
    assert set(ranks) == {4}


def test_matrices_left_out_carry_no_adapter_and_the_checkpoint_loads(tmp_path):
    method = build("random", floor=0, concentration=0.05)
    absent = [name for name, rank in method.rank_pattern().items() if rank == 0]
    assert absent
    assert absent == [name for name in method.matrices if name not in adapted_layers(method.model)]
    trainer_for(method, tmp_path / "work").train()
    method.export(tmp_path / "out")
    loaded = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "out"))
    torch.testing.assert_close(logits(loaded), logits(method.model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["random", "heuristic"])
@pytest.mark.parametrize("bounds", [{"floor": 5}, {"cap": 1}])
def test_impossible_bounds_are_named_before_training(name, bounds):
    with pytest.raises(ConfigError, match=r"method\.floor, method\.cap: budget of .* (below the floor|above the cap)"):
        build(name, **bounds)


def test_ranks_never_change_in_training(tmp_path):
    method = build("random")
    trainer = trainer_for(method, tmp_path)
    trainer.train()
    events = [entry["rank_event"]["event"] for entry in trainer.state.log_history if "rank_event" in entry]
    assert events == ["start", "end"]


# heuristic


def test_pattern_is_heavy_in_feed_forward_and_upper_blocks():
    method = build("heuristic", tiny_model(num_hidden_layers=5), budget="r=4")
    scores = method.scores()
    layer = "bert.encoder.layer.{}.{}".format
    for block, depth in enumerate([1.0, 1.5, 2.0, 2.5, 3.0]):
        for attention in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        ):
            assert scores[layer(block, attention)] == pytest.approx(depth)
        for feed_forward in ("intermediate.dense", "output.dense"):
            assert scores[layer(block, feed_forward)] == pytest.approx(2 * depth)
    ranks = method.rank_pattern()
    assert ranks[layer(4, "output.dense")] > ranks[layer(0, "output.dense")] > ranks[layer(0, "attention.self.key")]
    assert spent(method) == 4 * sum(method.costs.values())


@pytest.mark.parametrize(
    ("family", "feed_forward"),
    [
        ("llama", {"gate_proj", "up_proj", "down_proj"}),
        ("gpt2", {"c_fc", "mlp.c_proj"}),
        ("distilbert", {"lin1", "lin2"}),
        ("t5", {"wi", "wo"}),
        ("opt", {"fc1", "fc2"}),
    ],
)
def test_feed_forward_matrices_are_told_apart_in_other_models(family, feed_forward):
    method = build("heuristic", tiny_model(family), top=1.0, ffn=5.0)
    heavy = {name for name, score in method.scores().items() if score == 5.0}
    assert heavy == {name for name in method.matrices if name.endswith(tuple(f".{end}" for end in feed_forward))}


def test_flat_pattern_is_uniform_lora_bit_for_bit():
    flat, lora = build("heuristic", ffn=1.0, top=1.0), build("lora")
    assert flat.rank_pattern() == lora.rank_pattern()
    one, two = flat.state_dict(), lora.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_one_block_is_in_the_middle():
    scores = build("heuristic", tiny_model(num_hidden_layers=1), top=3.0).scores()
    assert set(scores.values()) == {2.0, 4.0}


# truncate


class Spy:
    """Keeps ΔW as it is right before the cut."""

    def __init__(self, method):
        self.before = None
        wrapped = method.after_optimizer_step

        def spied(step):
            current = deltas(method)
            resize = wrapped(step)
            if resize is not None:
                self.before = current
            return resize

        method.after_optimizer_step = spied


@pytest.mark.parametrize("budget", ["r=2", "24 ranks"])
def test_cut_keeps_the_largest_singular_values_of_all_modules(tmp_path, budget):
    """Reference: dense SVDs in float64. One cost per rank, so the threshold alone decides."""
    targets = ("query", "key", "value", "attention.output.dense")
    count = {"r=2": 16, "24 ranks": 24}[budget]
    method = build("truncate", budget=budget, target_modules=targets)
    spy = Spy(method)
    trainer_for(method, tmp_path).train()
    spectra = {name: torch.linalg.svdvals(delta) for name, delta in spy.before.items()}
    threshold = torch.cat(list(spectra.values())).sort(descending=True).values[count - 1]
    expected = {name: int((values >= threshold).sum()) for name, values in spectra.items()}
    assert method.rank_pattern() == expected
    assert len(set(expected.values())) > 1
    after = deltas(method)
    for name, rank in expected.items():
        u, s, vh = torch.linalg.svd(spy.before[name])
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(after.get(name, torch.zeros_like(best)), best, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize(("keep", "ratio"), [("50%", 2), (0.25, 4), ("33.4 %", 3)])
def test_more_is_trained_than_kept_and_the_budget_is_exact(tmp_path, family, keep, ratio):
    method = build("truncate", tiny_model(family), keep=keep)
    uniform = 2 * sum(method.costs.values())
    start = spent(method)
    if family == "bert":  # llama's key and value projections are cut at their full rank
        assert start == ratio * uniform
    trainer_for(method, tmp_path).train()
    assert spent(method) == method.target.total == uniform
    assert (method.parameter_count().final, method.parameter_count().peak) == (uniform, start)


def test_no_matrix_trains_above_full_rank():
    method = build("truncate", budget="r=20", keep="50%")
    assert max(method.rank_pattern().values()) == 32


def test_early_cut_trains_on_at_the_final_ranks(tmp_path):
    method = build("truncate", final=4)
    trainer = trainer_for(method, tmp_path)
    trainer.train()
    events = [entry["rank_event"] for entry in trainer.state.log_history if "rank_event" in entry]
    assert [(event["step"], event["event"]) for event in events] == [(0, "start"), (8, "resize"), (12, "end")]
    assert events[1]["ranks"] == events[2]["ranks"] == method.rank_pattern()
    assert min(events[1]["scores"].values()) > 0


def test_scores_are_the_size_of_the_update(tmp_path):
    method = build("truncate")
    spy = Spy(method)
    trainer = trainer_for(method, tmp_path)
    trainer.train()
    scores = next(e["rank_event"]["scores"] for e in trainer.state.log_history if e.get("rank_event", {}).get("scores"))
    for name, delta in spy.before.items():
        assert scores[name] == pytest.approx(float(delta.norm()), rel=1e-5)


@pytest.mark.parametrize("keep", ["0%", "100%", 1, 0, "150%", "half", "-10%", ""])
def test_share_that_is_none_is_refused(keep):
    with pytest.raises(ValidationError, match="must be a share between 0 and 100 %"):
        METHODS["truncate"](keep=keep)


def test_cut_before_the_first_step_is_refused():
    with pytest.raises(ConfigError, match=r"method\.final: 12 is 12 of 12 steps, so nothing would be trained"):
        build("truncate", final=12)


def test_budget_that_no_matrix_can_hold_is_refused():
    with pytest.raises(BudgetError, match="more than all matrices hold"):
        build("truncate", budget="r=60")


def test_cut_is_not_repeated_on_a_resumed_run(tmp_path):
    method = build("truncate", final=6)
    trainer_for(method, tmp_path).train()
    again = build("truncate", final=6)
    again.load_state_dict(method.state_dict())
    assert again.cut
    assert again.rank_pattern() == method.rank_pattern()
    assert again.after_optimizer_step(7) is None
    again.check_finished()
    assert again.parameter_count() == method.parameter_count()
