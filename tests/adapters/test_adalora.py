"""Our AdaLoRA: PEFT's masks on the same gradients, exact budgets, one model in memory and on disk, less at the end."""

import copy
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import AdaLoraConfig, get_peft_model
from tiny import batch, build, logits, settings, tiny_data, tiny_model, tiny_tokenizer, trainer_for
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import DataCollatorWithPadding, TrainerCallback

from rankwise.adapters.attach import ADAPTER, adapted_layers, find_matrices
from rankwise.adapters.export import lora_pairs
from rankwise.adapters.gated import gate_of
from rankwise.adapters.orthogonality import Orthogonality
from rankwise.adapters.resize import apply_resize
from rankwise.allocation.budget import spent
from rankwise.allocation.schedules import cubic
from rankwise.errors import AllocationError, BudgetError, ConfigError
from rankwise.training.fit import fit

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUERY = "bert.encoder.layer.0.attention.self.query"


def run(method, folder, **changes):
    changes = settings(**changes)
    return fit(method, tiny_tokenizer(), tiny_data(20), {"main": tiny_data(8, seed=3)}, changes, work_dir=folder)


def triplets(method):
    """Name -> (λ, A, B) as they are trained."""
    return {
        name: (gate_of(layer).gate, gate_of(layer).raw, layer.lora_B[ADAPTER].weight)
        for name, layer in adapted_layers(method.model).items()
    }


def masks(method):
    """Name -> which components are live, read off λ."""
    return {name: (values != 0).tolist() for name, (values, _, _) in triplets(method).items()}


# --- PEFT as the reference -------------------------------------------------------------------------------------------


def pefts(model, *, steps, warmup=2, final=4, every=1, weight=0.5, initial=3, target=2):
    """PEFT's AdaLoRA on all matrices, rank 3 to 2 unless said otherwise."""
    names = list(find_matrices(model))
    config = AdaLoraConfig(
        target_r=target,
        init_r=initial,
        tinit=warmup,
        tfinal=final,
        deltaT=every,
        total_step=steps,
        lora_alpha=2 * initial,
        orth_reg_weight=weight,
        target_modules=names,
        task_type="SEQ_CLS",
    )
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, config).train()


def peft_triplets(peft_model):
    layers = {name: peft_model.base_model.model.get_submodule(name) for name in find_names(peft_model)}
    return {n: (la.lora_E[ADAPTER], la.lora_A[ADAPTER], la.lora_B[ADAPTER]) for n, la in layers.items()}


def find_names(peft_model):
    return [n.removesuffix(".lora_E") for n, _ in peft_model.base_model.model.named_modules() if n.endswith(".lora_E")]


def peft_masks(peft_model):
    pattern = peft_model.peft_config[ADAPTER].rank_pattern
    return {key.removesuffix(f".lora_E.{ADAPTER}"): mask for key, mask in pattern.items()}


@torch.no_grad()
def copy_triplets(source, destination, *, gradients=False):
    for name, factors in source.items():
        for theirs, ours in zip(factors, destination[name], strict=True):
            ours.copy_(theirs.view_as(ours))
            if gradients:
                ours.grad = theirs.grad.view_as(ours).clone()


@pytest.mark.parametrize(("steps", "every", "target"), [(30, 1, 1), (24, 3, 2), (20, 1, 2)])
def test_masks_are_pefts_on_the_same_weights_and_gradients(steps, every, target):
    """PEFT trains; before its allocator moves λ, its weights and gradients are copied over."""
    peft_model = pefts(tiny_model(**STILL), steps=steps, every=every, initial=4, target=target)
    ranks = target * len(find_names(peft_model))
    method = build(
        "adalora", budget=f"{ranks} ranks", initial_ratio=4 / target, total_steps=steps, warmup=2, final=4, every=every
    )
    optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad], lr=2e-2)
    different = set()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        peft_model(**batch(4, seed=step)).loss.backward()
        optimizer.step()
        if not method.finished:
            copy_triplets(peft_triplets(peft_model), triplets(method), gradients=True)
        peft_model.base_model.update_and_allocate(step)
        resize = method.after_optimizer_step(step)
        if step > 2 and (step % every == 0 or step == steps - 4) and step <= steps - 4:
            expected = peft_masks(peft_model)
            kept = {name: [i for i, live in enumerate(mask) if live] for name, mask in expected.items()}
            assert kept == (method._kept if resize is None else resize.kept)
            assert resize is not None or masks(method) == expected
            different.add(str(kept))
    assert method.finished
    assert sum(method.rank_pattern().values()) == ranks
    assert len(different) > 3, "the allocation moved"


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_whole_training_goes_as_with_peft(tmp_path, weight):
    """Same start, same data. After the last allocation PEFT still puts the penalty on what it has pruned, so there only
    the run without one is compared.
    """
    steps = 12
    scaling = 6 / (3 + 1e-5)  # PEFT's divisor
    method = build(
        "adalora", tiny_model(**STILL), budget="24 ranks", warmup=2, final=4, orthogonality=weight, scaling=scaling
    )
    peft_model = pefts(tiny_model(**STILL), steps=steps, weight=weight)
    copy_triplets(triplets(method), peft_triplets(peft_model))
    watch = Watch(method)
    trainer = trainer_for(method, tmp_path, settings(weight_decay=0.0, warmup=0), callbacks=[watch])
    sampler = trainer._get_train_sampler()
    order = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        indices = list(sampler)
        order += [indices[i : i + 4] for i in range(0, len(indices), 4)]
    trainer.train()
    trainable = [p for p in peft_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, weight_decay=0.0)
    collate = DataCollatorWithPadding(tiny_tokenizer())
    data = tiny_data(20).select_columns(["input_ids", "attention_mask", "labels"])

    def inputs(indices):
        return collate([data[i] for i in indices])

    for step, (indices, rate) in enumerate(zip(order[:steps], watch.rates, strict=True), start=1):
        optimizer.param_groups[0]["lr"] = rate
        output = peft_model(**inputs(indices))
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        peft_model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        if weight == 0 or step <= 9:
            task_loss = torch.nn.functional.cross_entropy(output.logits, inputs(indices)["labels"])
            assert task_loss.item() == pytest.approx(trainer.losses[step - 1][1], abs=1e-5)
        if 2 < step < 8:
            assert watch.masks[step - 1] == peft_masks(peft_model)
    if weight == 0:
        torch.testing.assert_close(logits(method.model), logits(peft_model), rtol=0, atol=1e-5)
    assert {name: sum(mask) for name, mask in peft_masks(peft_model).items()} == method.rank_pattern()


class Watch(TrainerCallback):
    """Learning rate before, and live components after every optimizer step."""

    def __init__(self, method):
        self.method, self.rates, self.masks = method, [], []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args, state, control, **kwargs):
        self.masks.append(masks(self.method))


# --- orthogonality ---------------------------------------------------------------------------------------------------


def test_penalty_is_pefts_while_nothing_is_pruned():
    peft_model, method = pefts(tiny_model(**STILL), steps=12, weight=0.3), build("adalora", orthogonality=0.3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factors in peft_triplets(peft_model).values():
            for factor in factors:
                factor.copy_(torch.randn(factor.shape, generator=generator) * 0.3)
    copy_triplets(peft_triplets(peft_model), triplets(method))
    inputs = batch()
    theirs = peft_model(**inputs).loss - peft_model.base_model.model(**inputs).loss
    torch.testing.assert_close(method.penalty(), theirs, rtol=1e-5, atol=0)
    theirs.backward()
    method.penalty().backward()
    expected = peft_triplets(peft_model)
    for name, (_, a, b) in triplets(method).items():
        torch.testing.assert_close(a.grad, expected[name][1].grad, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(b.grad, expected[name][2].grad, rtol=1e-4, atol=1e-7)


def naive(rows, columns, count):
    """The formula, one factor at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(rows, columns, strict=True):
        for factor in (a, b.T):
            total = total + (factor @ factor.T - torch.eye(len(factor), dtype=torch.float64)).norm()
    return total / (2 * count)


SHAPES = st.lists(st.sampled_from([(1, 2, 3), (3, 5, 4), (3, 4, 5), (2, 5, 4)]), min_size=1, max_size=5)


@given(SHAPES, st.integers(0, 10**6))
def test_penalty_and_gradient_are_autograds_of_the_plain_formula(shapes, seed):
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    rows, columns = [leaf(r, i) for r, i, _ in shapes], [leaf(o, r) for r, _, o in shapes]
    expected = naive(rows, columns, 7)
    slopes = torch.autograd.grad(3 * expected, rows + columns)
    penalty = Orthogonality(rows, columns, matrices=7)
    torch.testing.assert_close(penalty(), expected, rtol=1e-10, atol=1e-12)
    actual = torch.autograd.grad(3 * penalty(), rows + columns)
    for slope, gradient in zip(slopes, actual, strict=True):
        torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-10)


def test_penalty_of_orthonormal_factors_is_zero_with_a_gradient_of_zero():
    rows, columns = [torch.eye(2, 5).requires_grad_()], [torch.eye(4, 2).requires_grad_()]
    value = Orthogonality(rows, columns, matrices=1)()
    value.backward()
    assert value == 0
    assert not rows[0].grad.any()
    assert not columns[0].grad.any()


def test_penalty_is_not_computed_in_bfloat16():
    method = build("adalora")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = method.penalty()
    assert torch.equal(inside, method.penalty())


def test_penalty_treats_pruned_components_as_any_other(tmp_path):
    """Or they could not come back: the scores of the others would contain its gradient, theirs would not."""
    method = stopped_at(6, tmp_path)
    pruned = {name: [i for i, live in enumerate(mask) if not live] for name, mask in masks(method).items()}
    assert any(pruned.values())
    method.model.zero_grad()
    method.penalty().backward()
    for name, (_, a, b) in triplets(method).items():
        assert a.grad[pruned[name]].any(1).all()
        assert b.grad[:, pruned[name]].any(0).all()
    assert method.penalty().item() == pytest.approx(penalty_by_hand(method), rel=1e-5)


def penalty_by_hand(method):
    factors = list(triplets(method).values())
    rows, columns = ([f[i].detach().double() for f in factors] for i in (1, 2))
    return 0.1 * float(naive(rows, columns, len(method.matrices)))


def test_penalty_after_the_end_weighs_each_matrix_as_before(tmp_path):
    """Matrices that were taken off count as 0, not as fewer matrices."""
    method = build("adalora", budget="14 ranks")
    run(method, tmp_path)
    assert 0 in method.rank_pattern().values()
    assert method.penalty().item() == pytest.approx(penalty_by_hand(method), rel=1e-5)


def test_no_penalty_without_a_weight():
    assert build("adalora", orthogonality=0.0).penalty() is None


def test_weight_of_the_penalty_does_not_depend_on_accumulation(tmp_path):
    ends = []
    for accumulation in (1, 2):
        method = build("adalora", tiny_model(**STILL), orthogonality=5.0)
        changes = {"gradient_accumulation_steps": accumulation, "batch_size": 4 // accumulation}
        trainer = trainer_for(method, tmp_path / str(accumulation), settings(**changes), data=tiny_data(20, length=9))
        trainer.train()
        ends.append(logits(method.model))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-4)


# --- start -----------------------------------------------------------------------------------------------------------


def test_starts_as_the_paper_says():
    method = build("adalora", budget="r=4")
    assert set(method.rank_pattern().values()) == {6}
    entries = {part: [] for part in range(3)}
    for factors in triplets(method).values():
        for part, factor in enumerate(factors):
            entries[part].append(factor.detach().flatten())
    assert not torch.cat(entries[0]).any()
    for part in (1, 2):
        values = torch.cat(entries[part])
        assert values.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(values.mean().item()) < 0.001
    scalings = {layer.scaling[ADAPTER] for layer in adapted_layers(method.model).values()}
    assert scalings == {2.0}


def test_peak_counts_everything_that_is_trained():
    method = build("adalora", budget="r=4")
    count = method.parameter_count()
    assert count.peak == sum(p.numel() for n, p in method.model.named_parameters() if ".lora_" in n)
    assert count.peak == 1.5 * build("lora", budget="r=4").parameter_count().final + 6 * len(method.matrices)


@pytest.mark.parametrize(
    ("family", "budget", "ratio", "expected"),
    [
        ("bert", "r=2", 1.5, {3}),
        ("bert", "r=4", 1.1, {5}),
        ("bert", "r=10", 1.1, {11}),
        ("bert", "r=2", 1.0, {2}),
        ("bert", "30 ranks", 1.5, {4}),
        ("bert", "r=30", 1.5, {32}),
        ("llama", "r=12", 1.5, {18, 16}),  # keys and values are 16 wide
    ],
)
def test_initial_rank_is_rounded_up_and_at_most_full(family, budget, ratio, expected):
    method = build("adalora", tiny_model(family), budget=budget, initial_ratio=ratio)
    assert set(method.rank_pattern().values()) == expected


@pytest.mark.parametrize("fields", [{"warmup": 8, "final": 4}, {"warmup": 0.6, "final": 0.5}, {"warmup": 30}])
def test_schedule_without_a_step_for_pruning_is_refused(fields):
    with pytest.raises(ConfigError, match="leave no step of 12 for pruning"):
        build("adalora", **fields)


def test_budget_above_what_fits_is_refused():
    with pytest.raises(BudgetError, match="more than all matrices hold at their full ranks"):
        build("adalora", budget="r=33")


# --- pruning ---------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stopped_at(step, folder, **fields):
    """A method after `step` steps of 12."""

    def stop(now, loss):
        if now == step:
            raise Stop

    method = build("adalora", **fields)
    with pytest.raises(Stop):
        fit(method, tiny_tokenizer(), tiny_data(20), {}, settings(), work_dir=folder, on_step=stop)
    return method


def test_trace_shows_the_schedule(tmp_path):
    method = build("adalora", budget="30 ranks", total_steps=20)
    fitted = run(method, tmp_path, total_steps=20)
    totals = {event.step: sum(event.ranks.values()) for event in fitted.trace}
    assert totals[0] == 48
    for step, total in totals.items():
        if step:
            assert total == cubic(step, initial=48, target=30, warmup=2, last=14)
    assert fitted.trace[-2].event == "resize"
    assert fitted.trace[-2].step == 14
    assert set(fitted.trace[-2].scores) == set(method.matrices)


def test_budget_in_parameters_never_rises_above_the_schedule(tmp_path):
    method = build("adalora", total_steps=20)
    initial = spent(method.rank_pattern(), method.costs)
    fitted = run(method, tmp_path, total_steps=20)
    for event in fitted.trace[1:-2]:
        budget = cubic(event.step, initial=initial, target=method.target.total, warmup=2, last=14)
        assert budget - max(method.costs.values()) < spent(event.ranks, method.costs) <= budget


class Saved(TrainerCallback):
    """After every optimizer step: is the model in memory the one without its pruned components?"""

    def __init__(self, method):
        self.method, self.pruned, self.worst = method, [], 0.0

    def on_step_end(self, args, state, control, **kwargs):
        method = self.method
        pruned = sum(not live for mask in masks(method).values() for live in mask) if not method.finished else 0
        self.pruned.append(pruned)
        ranks = method.rank_pattern()
        assert method.finished or {n: sum(mask) for n, mask in masks(method).items()} == ranks
        saved = copy.deepcopy(method.model)
        apply_resize(saved, ranks, kept=method._kept)
        assert {n: layer.r[ADAPTER] for n, layer in adapted_layers(saved).items()} == {
            n: r for n, r in ranks.items() if r
        }
        self.worst = max(self.worst, (logits(saved) - logits(method.model)).abs().max().item())


@pytest.mark.parametrize("every", [1, 3])
def test_model_in_memory_is_the_model_saved_after_every_step(tmp_path, every):
    method = build("adalora", every=every, warmup=1, budget="14 ranks")
    watch = Saved(method)
    trainer_for(method, tmp_path, settings(learning_rate=5e-2, warmup=0), callbacks=[watch]).train()
    first = 2 if every == 1 else 3
    assert [count > 0 for count in watch.pruned] == [first <= step < 8 for step in range(1, 13)]
    assert watch.worst < 1e-6


def test_a_pruned_component_comes_back_when_its_score_rises():
    method = build("adalora", budget="24 ranks", total_steps=100, warmup=1, final=10)
    generator = torch.Generator().manual_seed(0)

    def one_step(step, strong):
        with torch.no_grad():
            for name, factors in triplets(method).items():
                for factor in factors:
                    factor.copy_(torch.randn(factor.shape, generator=generator))
                    factor.grad = torch.randn(factor.shape, generator=generator)
                if name == QUERY:
                    factors[0].grad[0] *= strong
                    factors[1].grad[0] *= strong
                    factors[2].grad[:, 0] *= strong
        method.after_optimizer_step(step)
        return masks(method)[QUERY][0]

    assert not any([one_step(step, 0.0) for step in range(1, 40)][20:])
    assert any(one_step(step, 50.0) for step in range(40, 50))


def test_equal_target_and_initial_rank_prunes_nothing_and_goes_through(tmp_path):
    method = build("adalora", initial_ratio=1.0)
    watch = Watch(method)
    trainer_for(method, tmp_path, settings(warmup=0), callbacks=[watch]).train()
    assert all(all(all(mask) for mask in step.values()) for step in watch.masks)
    assert set(method.rank_pattern().values()) == {2}
    method.export(tmp_path / "out")


@pytest.mark.parametrize(
    ("budget", "steps"), [("r=2", 20), ("r=4", 8), ("9%", 8), ("2000", 8), ("30 ranks", 20), ("14 ranks", 8)]
)
def test_budget_is_met_exactly(tmp_path, budget, steps):
    method = build("adalora", budget=budget, total_steps=steps)
    run(method, tmp_path, total_steps=steps)
    ranks = method.rank_pattern()
    total = sum(ranks.values()) if budget.endswith("ranks") else spent(ranks, method.costs)
    assert total == method.target.total
    assert len(set(ranks.values())) > 1


def test_equal_scores_are_not_pruned_together(tmp_path):
    """With a learning rate of zero every score is 0 (PEFT drops all components then)."""
    method = build("adalora", orthogonality=0.0)
    run(method, tmp_path, learning_rate=0.0)
    method.check_finished()
    assert method.parameter_count().final == method.target.total


# --- the end ---------------------------------------------------------------------------------------------------------


class Sizes(TrainerCallback):
    """Adapter parameters, optimizer state and FLOPs of a forward pass, after every step."""

    def __init__(self, method):
        self.method, self.rows = method, []

    def on_step_end(self, args, state, control, **kwargs):
        mine = [p for n, p in self.method.model.named_parameters() if ".lora_" in n]
        moments = sum(kwargs["optimizer"].state[p]["exp_avg_sq"].numel() for p in mine)
        with FlopCounterMode(display=False) as flops:
            logits(self.method.model)
        self.rows.append((sum(p.numel() for p in mine), moments, flops.get_total_flops()))


def test_what_is_pruned_is_gone_in_the_end(tmp_path):
    method = build("adalora", budget="14 ranks")
    watch = Sizes(method)
    trainer_for(method, tmp_path, callbacks=[watch]).train()
    before, after = watch.rows[6], watch.rows[7]
    ranks = method.rank_pattern()
    expected = spent(ranks, method.costs) + sum(ranks.values())  # λ beside A and B
    assert after[:2] == (expected, expected)
    assert before[0] == before[1] == method.parameter_count().peak
    tokens = 4 * 9
    saved = sum((method.initial[n] - ranks[n]) * cost for n, cost in method.costs.items())
    assert before[2] - after[2] == 2 * tokens * saved
    assert watch.rows[-1] == after
    gone = [name for name, rank in ranks.items() if rank == 0]
    assert gone
    assert not set(gone) & set(adapted_layers(method.model))


def test_after_the_end_nothing_is_scored_and_nothing_is_kept_for_it(tmp_path):
    method = build("adalora")
    run(method, tmp_path)
    assert method._importance is None
    assert not [key for key in method.state_dict() if "sensitivity" in key or "uncertainty" in key]
    for factors in triplets(method).values():
        for factor in factors:
            factor.grad = None
    assert method.after_optimizer_step(13) is None


def test_components_that_stay_keep_their_values_and_moments():
    method = build("adalora", total_steps=6, warmup=1, final=2)
    trainable = [p for p in method.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    for step in range(1, 5):
        optimizer.zero_grad()
        method.model.train()
        method.model(**batch(seed=step)).loss.backward()
        optimizer.step()
        resize = method.after_optimizer_step(step)
    before = {
        name: [(f.detach().clone(), optimizer.state[f]["exp_avg"].clone()) for f in factors]
        for name, factors in triplets(method).items()
    }
    apply_resize(method.model, resize.ranks, kept=resize.kept, optimizer=optimizer)
    method.check_finished()
    for name, factors in triplets(method).items():
        kept = resize.kept[name]
        for part, (factor, (value, moment)) in enumerate(zip(factors, before[name], strict=True)):
            index = (slice(None), kept) if part == 2 else (kept,)
            assert torch.equal(factor, value[index])
            assert torch.equal(optimizer.state[factor]["exp_avg"], moment[index])


def test_export_is_the_folded_model(tmp_path):
    method = build("adalora")
    run(method, tmp_path / "work")
    for name, (values, a, b) in triplets(method).items():
        pair = lora_pairs(method.model)[name]
        torch.testing.assert_close(pair.b @ pair.a, 2.0 * b @ torch.diag(values) @ a)


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_stopping_before_the_last_allocation_is_an_error(tmp_path):
    with pytest.raises(AllocationError, match=r"after step 8.*RankwiseCallback"):
        stopped_at(5, tmp_path / "work").export(tmp_path / "out")


def test_a_resize_that_was_not_applied_is_an_error():
    method = build("adalora")
    give_gradients(method)
    method.after_optimizer_step(1)
    assert method.after_optimizer_step(8) is not None
    with pytest.raises(AllocationError, match="was the resize it asked for at step 8 applied"):
        method.check_finished()


def give_gradients(method, value=1.0):
    for factors in triplets(method).values():
        for factor in factors:
            factor.grad = torch.full_like(factor, value)


def test_a_part_without_gradients_is_named():
    method = build("adalora")
    give_gradients(method)
    triplets(method)[QUERY][1].grad = None
    with pytest.raises(AllocationError, match=f"{QUERY}: the adapter has no gradient"):
        method.after_optimizer_step(1)


def test_gradients_that_are_not_finite_are_passed_over():
    method = build("adalora")
    give_gradients(method)
    method.after_optimizer_step(1)
    before = {key: value for key, value in method.state_dict().items() if "rankwise" in key}
    give_gradients(method, float("inf"))
    method.after_optimizer_step(2)
    after = method.state_dict()
    averages = [key for key in before if "sensitivity" in key or "uncertainty" in key]
    assert len(averages) == 6 * len(method.matrices)
    assert all(torch.equal(before[key], after[key]) for key in averages)


# --- cost and memory of a step ---------------------------------------------------------------------------------------


class Kernels(TorchDispatchMode):
    """Counts what is called, views left out."""

    VIEWS = ("view", "detach", "alias", "expand", "slice", "select", "split", "unbind", "t", "transpose", "unsqueeze")

    def __init__(self):
        super().__init__()
        self.count, self.reads = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += name.split("_")[0] not in self.VIEWS
        self.reads += name == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def test_hooks_and_penalty_cost_as_many_kernels_however_deep_the_model():
    """Before pruning starts: what every method pays. No value is read back from the device."""
    counts = []
    for layers in (2, 5):
        method = build("adalora", tiny_model(num_hidden_layers=layers), warmup=6)
        give_gradients(method)
        method.after_optimizer_step(1)
        method.penalty()
        with Kernels() as hook:
            method.after_optimizer_step(2)
            method.rank_pattern()
        with Kernels() as penalty:
            value = method.penalty()
        with Kernels() as backward:
            torch.autograd.grad(value, [f for factors in triplets(method).values() for f in factors[1:]])
        assert hook.reads == penalty.reads == backward.reads == 0
        counts.append((hook.count, penalty.count, backward.count))
    assert counts[0] == counts[1]
    assert counts[0] <= (14, 60, 40)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [2, 5, 9])
def test_resumes_bit_for_bit_before_while_and_after_pruning(tmp_path, lost):
    """Allocations at steps 3, 6 and 8; the run dies in step `lost`, and the first step after resuming has none."""

    def training(folder, on_step=None):
        method = build("adalora", warmup=2, every=3)
        data = {"main": tiny_data(9, seed=3)}
        how = settings(save_every=1)
        fitted = fit(method, tiny_tokenizer(), tiny_data(20), data, how, work_dir=folder, on_step=on_step)
        return method, fitted

    def die(step, loss):
        if step == lost:
            raise Stop

    method, whole = training(tmp_path / "whole")
    with pytest.raises(Stop):
        training(tmp_path / "cut", die)
    again, resumed = training(tmp_path / "cut")
    assert resumed.losses == whole.losses
    assert resumed.trace == whole.trace
    assert (resumed.logits["main"] == whole.logits["main"]).all()
    ours, theirs = again.state_dict(), method.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_state_can_be_saved_again_before_the_next_step(tmp_path):
    state = stopped_at(5, tmp_path).state_dict()
    fresh = build("adalora")
    fresh.load_state_dict(state)
    again = fresh.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert any("sensitivity" in key for key in state)
