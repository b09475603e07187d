"""A penalty weighs the same whatever the accumulation, for losses per micro-batch and per token, in any trainer."""

import pytest
import torch
from processes import Language
from scripted import scripted
from tiny import settings, tiny_data, tiny_model, trainer_for
from transformers import Trainer, TrainerCallback

from rankwise.training.callback import RankwiseCallback
from rankwise.training.fit import training_arguments

QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Gradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def causal(folder, *, accumulation, weight, steps=3, calls=None):
    """Gradients and losses of a language model whose loss is a mean over the tokens of a whole step."""
    language, recorder = Language(), Gradients()
    method = scripted(language.model(), weight=weight, total_steps=steps)
    if calls is not None:
        real = method.penalty
        method.penalty = lambda: (calls.append(1), real())[1]
    changes = settings(
        total_steps=steps,
        batch_size=16 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        learning_rate=1e-9,
        warmup=0,
    )
    trainer = trainer_for(method, folder, changes, data=tiny_data(48), callbacks=[recorder])
    trainer.data_collator = language.collate
    trainer.train()
    return method, recorder.steps, trainer.losses


@pytest.mark.parametrize("accumulation", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))])
def test_penalty_on_a_loss_per_token_weighs_one(tmp_path, accumulation):
    """Against the gradient of w·Σ‖A‖² itself, 2·w·A, on top of a run without a penalty; texts of unlike lengths."""
    calls = []
    method, with_penalty, losses = causal(tmp_path, accumulation=accumulation, weight=0.7, calls=calls)
    _, without, plain = causal(tmp_path, accumulation=accumulation, weight=0.0)
    assert len(calls) == 3  # once per optimizer step
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in plain], abs=1e-5)
    weights = dict(method.model.named_parameters())
    for one, two in zip(with_penalty, without, strict=True):
        for name, gradient in one.items():
            expected = 2 * 0.7 * weights[name].detach() if ".lora_A." in name else torch.zeros_like(gradient)
            torch.testing.assert_close(gradient - two[name], expected, rtol=1e-4, atol=1e-5)


def test_accumulation_changes_neither_losses_nor_gradients_per_token(tmp_path):
    _, one, one_losses = causal(tmp_path, accumulation=1, weight=0.7)
    _, four, four_losses = causal(tmp_path, accumulation=4, weight=0.7)
    assert [loss for _, loss in four_losses] == pytest.approx([loss for _, loss in one_losses], abs=1e-5)
    for name in one[0]:
        torch.testing.assert_close(one[0][name], four[0][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_stock_trainer_adds_the_same_penalty(tmp_path, accumulation):
    """Without clipping, a stock Trainer with the callback does what ours does."""
    changes = settings(
        batch_size=12 // accumulation, gradient_accumulation_steps=accumulation, max_grad_norm=0.0, total_steps=6
    )
    weights = {}
    for kind in ("ours", "stock", "without"):
        method = scripted(tiny_model(**QUIET), weight=0.0 if kind == "without" else 0.7, total_steps=6)
        data = tiny_data(12, length=9)  # one batch: the order does not matter
        if kind == "ours":
            trainer_for(method, tmp_path, changes, data=data).train()
        else:
            driver = RankwiseCallback(method, total_steps=6)
            trainer = Trainer(
                method.model, training_arguments(changes, tmp_path), train_dataset=data, callbacks=[driver]
            )
            trainer.model_accepts_loss_kwargs = False  # or a stock Trainer forgets to average over accumulated batches
            trainer.train()
        weights[kind] = {n: p.detach() for n, p in method.model.named_parameters() if p.requires_grad}
    for name, value in weights["ours"].items():
        torch.testing.assert_close(weights["stock"][name], value, rtol=0, atol=2e-5)
    moved = max(float((weights["without"][n] - value).abs().max()) for n, value in weights["ours"].items())
    assert moved > 1e-3
