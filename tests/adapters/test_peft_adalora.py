"""PEFT's AdaLoRA as we run it: the same as by hand, on budget, and exactly plain LoRA in the end."""

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from tiny import batch, build, logits, settings, tiny_data, tiny_model, tiny_tokenizer, trainer_for
from transformers import DataCollatorWithPadding, TrainerCallback

from rankwise.adapters.attach import ADAPTER, find_matrices
from rankwise.errors import AllocationError, BudgetError, ConfigError
from rankwise.training.fit import fit


def run(method, folder, **changes):
    changes = settings(**changes)
    return fit(method, tiny_tokenizer(), tiny_data(20), {"main": tiny_data(8, seed=3)}, changes, work_dir=folder)


def test_settings_are_pefts_for_this_budget():
    config = build("peft_adalora", budget="r=4", total_steps=100).model.peft_config[ADAPTER]
    assert (config.target_r, config.init_r) == (4, 6)
    assert (config.tinit, config.tfinal, config.deltaT, config.total_step) == (10, 30, 1, 100)
    assert config.lora_alpha / config.init_r == 2.0
    assert (config.beta1, config.beta2, config.orth_reg_weight) == (0.85, 0.85, 0.5)


def by_hand(batches, steps, rates):
    """PEFT's AdaLoRA in a plain loop, called as PEFT documents it; ranks, no parameters, no retargeting."""
    model = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    names = list(find_matrices(model))
    torch.manual_seed(0)
    config = AdaLoraConfig(
        target_r=2,
        init_r=3,
        tinit=2,
        tfinal=4,
        total_step=steps,
        lora_alpha=6,
        target_modules=names,
        task_type="SEQ_CLS",
    )
    peft_model = get_peft_model(model, config).train()
    trainable = [p for p in peft_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, weight_decay=0.0)
    losses = []
    for step, (inputs, rate) in enumerate(zip(batches, rates, strict=True), start=1):
        optimizer.param_groups[0]["lr"] = rate
        loss = peft_model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        peft_model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return peft_model, losses


class Spy(TrainerCallback):
    """Learning rate of every step."""

    def __init__(self):
        self.rates = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])


def test_same_run_as_pefts_by_hand(tmp_path):
    """Target in ranks (24 of 36): no retargeting in parameters, so nothing may differ from PEFT's own loop."""
    steps = 12
    model = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    method = build("peft_adalora", model, budget="24 ranks", warmup=2, final=4)
    spy = Spy()
    trainer = trainer_for(method, tmp_path, settings(weight_decay=0.0, total_steps=steps), callbacks=[spy])
    order = [index for epoch in range(3) for index in epoch_order(trainer, epoch)][:steps]
    trainer.train()
    collate = DataCollatorWithPadding(tiny_tokenizer())
    columns = ["input_ids", "attention_mask", "labels"]
    data = tiny_data(20).select_columns(columns)
    batches = [collate([data[i] for i in indices]) for indices in order]
    peft_model, losses = by_hand(batches, steps, spy.rates)
    torch.testing.assert_close(logits(method.model), logits(peft_model), rtol=0, atol=1e-5)
    assert method.model.peft_config[ADAPTER].rank_pattern == peft_model.peft_config[ADAPTER].rank_pattern
    assert sum(method.rank_pattern().values()) == 24
    assert losses[0] == pytest.approx(trainer.losses[0][1] + 0.5 * orthogonality(build_same()), abs=1e-4)


def epoch_order(trainer, epoch):
    sampler = trainer._get_train_sampler()
    sampler.set_epoch(epoch)
    indices = list(sampler)
    return [indices[i : i + 4] for i in range(0, len(indices), 4)]


def build_same():
    return build("peft_adalora", budget="24 ranks", warmup=2, final=4)


def orthogonality(method):
    terms = []
    for name, p in method.model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            gram = p @ p.T if ".lora_A." in name else p.T @ p
            terms.append((gram - torch.eye(len(gram))).norm().detach())
    return float(torch.stack(terms).mean())


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["r=2", "r=4", "9%", "2000", "30 ranks"])
@pytest.mark.parametrize("steps", [12, 40])
def test_ends_within_the_budget_and_close_to_it(tmp_path, budget, steps):
    method = build("peft_adalora", budget=budget, total_steps=steps)
    run(method, tmp_path, total_steps=steps)
    ranks, total = method.rank_pattern(), method.target.total
    spent = sum(ranks.values()) if budget.endswith("ranks") else method.parameter_count().final
    unit = 1 if budget.endswith("ranks") else max(method.costs.values())
    assert total - max(unit, 0.02 * total) <= spent <= total
    assert method.parameter_count().peak > method.parameter_count().final


def test_calls_come_in_the_documented_order(tmp_path, monkeypatch):
    """Once per optimizer step, counted from 1, weights moved, gradients still there."""
    method = build("peft_adalora")
    tuner, calls = method.model.base_model, []
    real = tuner.update_and_allocate
    weights = method.layers["bert.encoder.layer.0.attention.self.query"].lora_A[ADAPTER]
    start = weights.detach().clone()

    def spy(step):
        calls.append(step)
        assert weights.grad is not None
        assert not torch.equal(weights, start)
        real(step)

    monkeypatch.setattr(tuner, "update_and_allocate", spy)
    trainer_for(method, tmp_path, settings(warmup=0)).train()
    assert calls == list(range(1, 13))


def test_loss_of_the_task_loss_model_has_no_orthogonality_term(tmp_path):
    method = build("peft_adalora")
    inputs = batch()
    method.model.eval()
    output = method.task_loss_model()(**inputs)
    expected = torch.nn.functional.cross_entropy(output.logits, inputs["labels"])
    torch.testing.assert_close(output.loss, expected)
    assert method.model(**inputs).loss.item() > expected.item() + 0.1


@pytest.mark.parametrize("fields", [{"warmup": 8, "final": 4}, {"warmup": 0.6, "final": 0.5}, {"warmup": 30}])
def test_schedule_without_a_step_for_pruning_is_refused(fields):
    with pytest.raises(ConfigError, match="leave no step of 12 for pruning"):
        build("peft_adalora", **fields)


def test_rank_above_a_matrix_is_refused():
    with pytest.raises(BudgetError, match="initial rank 45 is above the full rank 32"):
        build("peft_adalora", budget="r=30")


def test_stopping_before_the_last_allocation_is_an_error(tmp_path):
    method = build("peft_adalora")
    for step in range(1, 5):
        method.model.train()
        method.model(**batch(seed=step)).loss.backward()
        method.after_optimizer_step(step)
    with pytest.raises(AllocationError, match=r"did training stop before|never pruned"):
        method.export(tmp_path / "out")


def test_scores_that_are_all_equal_do_not_break_the_books(tmp_path):
    """With a learning rate of zero and no orthogonality every score is 0, and PEFT drops all tied components."""
    method = build("peft_adalora", orthogonality=0.0)
    with pytest.raises(AllocationError, match="ended at 0 parameters, its budget is"):
        run(method, tmp_path, learning_rate=0.0)
