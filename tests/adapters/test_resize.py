"""Resizing a living adapter: what it computes, what the optimizer remembers, what PEFT's config says."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from tiny import batch, build, logits, tiny_model
from torch import nn

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.resize import apply_resize, grow_map, resize_layer, shrink_map
from rankwise.errors import AllocationError

QUERY = "bert.encoder.layer.0.attention.self.query"
OTHER = "bert.encoder.layer.1.output.dense"


def lora(rank=4, **fields):
    """Tiny BERT under LoRA with a B that is not zero."""
    method = build("lora", budget=f"r={rank}", **fields)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in adapted_layers(method.model).values():
            weight = layer.lora_B[ADAPTER].weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return method


def delta(layer):
    """B A in float64, unscaled."""
    return layer.lora_B[ADAPTER].weight.detach().double() @ layer.lora_A[ADAPTER].weight.detach().double()


def truncated(matrix, rank):
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def adam(method, steps=3, kind=torch.optim.AdamW, **options):
    """An optimizer with two weight-decay groups that has taken a few steps."""
    trainable = [(n, p) for n, p in method.model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in trainable if "bias" not in n], "weight_decay": 0.01},
        {"params": [p for n, p in trainable if "bias" in n], "weight_decay": 0.0},
    ]
    optimizer = kind(groups, lr=1e-3, **options)
    for step in range(steps):
        one_step(method, optimizer, seed=step)
    return optimizer


def one_step(method, optimizer, seed=0):
    optimizer.zero_grad()
    method.model.train()
    loss = method.model(**batch(8, seed=seed)).loss
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("rank", [5, 8, 32])
def test_growing_keeps_the_logits(rank):
    method = lora(4)
    before = logits(method.model)
    apply_resize(method.model, dict.fromkeys(method.matrices, rank), seed=1, step=2)
    assert set(method.rank_pattern().values()) == {rank}
    torch.testing.assert_close(logits(method.model), before, rtol=0, atol=1e-6)


def test_new_components_are_drawn_as_peft_draws_them_and_depend_on_seed_and_step():
    drawn = {}
    for seed, step in ((1, 2), (1, 2), (1, 3), (2, 2)):
        method = lora(2)
        apply_resize(method.model, {QUERY: 32}, seed=seed, step=step)
        rows = adapted_layers(method.model)[QUERY].lora_A[ADAPTER].weight[2:].detach()
        if (seed, step) in drawn:
            assert torch.equal(drawn[seed, step], rows)
        drawn[seed, step] = rows
    assert len({float(rows.sum()) for rows in drawn.values()}) == 3
    rows = drawn[1, 2]
    assert float(rows.abs().max()) <= 32**-0.5
    assert float(rows.var()) == pytest.approx(1 / (3 * 32), rel=0.1)


def factors(out, in_, old, b_rank, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(old, in_, generator=generator)
    b = torch.randn(out, max(b_rank, 1), generator=generator) @ torch.randn(max(b_rank, 1), old, generator=generator)
    return a, b * (b_rank > 0)


@st.composite
def shrinks(draw):
    in_, out = draw(st.integers(2, 24)), draw(st.integers(2, 24))
    old = draw(st.integers(2, min(in_, 12)))
    return in_, out, old, draw(st.integers(1, old - 1)), draw(st.integers(0, old)), draw(st.integers(0, 10**6))


@given(shrinks())
def test_shrinking_is_the_truncated_svd(case):
    """Also for a B of zero or of deficient rank, for rank 1, and for more components than outputs."""
    in_, out, old, rank, b_rank, seed = case
    a, b = factors(out, in_, old, b_rank, seed)
    a, b = a.double(), b.double()
    maps = shrink_map(a, b, rank)
    assert maps.rows.shape == (rank, old)
    assert maps.columns.shape == (old, rank)
    new = (b @ maps.columns) @ (maps.rows @ a)
    best = truncated(b @ a, rank)
    assert float((new - best).norm()) <= 1e-8 * max(1.0, float((b @ a).norm()))


def test_shrinking_keeps_the_size_of_a_so_that_adam_steps_mean_the_same():
    a, b = factors(40, 30, 8, 8, 0)
    maps = shrink_map(a, b, 3)
    assert float((maps.rows @ a).norm() / 3**0.5) == pytest.approx(float(a.norm() / 8**0.5), rel=1e-4)


@pytest.mark.parametrize("zero", [0, 3])
def test_shrinking_survives_dead_rows_of_a(zero):
    """A component whose row of A is zero, or a copy of another, must not stop the run."""
    a, b = factors(12, 10, 4, 4, 1)
    a[zero] = 0
    a[1] = a[2]
    maps = shrink_map(a, b, 2)
    new = (b @ maps.columns) @ (maps.rows @ a)
    torch.testing.assert_close(new.double(), truncated(b @ a, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_shrinking_a_layer_in_float32(rank):
    method = lora(8)
    expected = {name: truncated(delta(layer), rank) for name, layer in adapted_layers(method.model).items()}
    apply_resize(method.model, dict.fromkeys(method.matrices, rank))
    for name, layer in adapted_layers(method.model).items():
        error = (delta(layer) - expected[name]).norm() / expected[name].norm()
        assert float(error) < 1e-5


@settings(max_examples=10)
@given(st.lists(st.integers(0, 12), min_size=12, max_size=12), st.floats(0.25, 8), st.integers(1, 6))
def test_any_pattern_keeps_scaling_and_reloads(tmp_path_factory, ranks, scaling, start):
    method = lora(start, scaling=scaling)
    wanted = dict(zip(method.matrices, ranks, strict=True))
    apply_resize(method.model, wanted, seed=1, step=1)
    assert method.rank_pattern() == wanted
    layers = adapted_layers(method.model)
    assert all(layer.scaling[ADAPTER] == pytest.approx(scaling) for layer in layers.values())
    expected = logits(method.model)
    if not any(ranks):
        return
    folder = tmp_path_factory.mktemp("pattern")
    method.model.save_pretrained(folder / "own")
    method.export(folder / "compact")
    for name in ("own", "compact"):
        again = PeftModel.from_pretrained(tiny_model(), folder / name)
        torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5)
        config = json.loads((folder / name / "adapter_config.json").read_text())
        assert len(config["target_modules"]) == sum(rank > 0 for rank in ranks)


def test_rank_zero_takes_the_adapter_off_for_good():
    method = lora(4)
    optimizer = adam(method)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    apply_resize(method.model, {QUERY: 0}, optimizer=optimizer)
    module = method.model.base_model.model.get_submodule(QUERY)
    assert type(module) is nn.Linear
    assert not any(p.requires_grad for p in module.parameters())
    assert method.rank_pattern()[QUERY] == 0
    now = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(now) == len(held) - 2 == len(optimizer.state)
    one_step(method, optimizer)
    apply_resize(method.model, {QUERY: 0}, optimizer=optimizer)
    with pytest.raises(AllocationError, match="carries no adapter"):
        apply_resize(method.model, {QUERY: 2}, optimizer=optimizer)


def test_modules_that_keep_their_rank_are_not_touched():
    method = lora(4)
    optimizer = adam(method)
    layer = adapted_layers(method.model)[OTHER]
    before = [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
    apply_resize(method.model, dict.fromkeys(method.matrices, 4) | {QUERY: 2}, optimizer=optimizer)
    assert before[0] is layer.lora_A[ADAPTER].weight
    assert before[1] is layer.lora_B[ADAPTER].weight


@pytest.mark.parametrize("rank", [2, 9])
def test_gradients_follow_the_maps(rank):
    """Why moments can follow, in float64: mapped old gradients are autograd's gradients after the resize."""
    torch.manual_seed(0)
    a, b = torch.randn(5, 7, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    if rank < 5:  # B A of the new rank already, so that the resize changes nothing and both losses are the same
        b = b[:, :rank] @ torch.randn(rank, 5, dtype=torch.float64)
    target, x = torch.randn(6, 11, dtype=torch.float64), torch.randn(7, 11, dtype=torch.float64)

    def gradients(a, b):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        return torch.autograd.grad(((b @ a @ x - target) ** 2).sum(), (a, b))

    maps = shrink_map(a, b, rank) if rank < 5 else grow_map(5, rank, a)
    old_a, old_b = gradients(a, b)
    kept = rank - maps.fresh
    new_a = torch.cat([maps.rows @ a, torch.randn(maps.fresh, 7, dtype=torch.float64)])
    new_b = torch.cat([b @ maps.columns, torch.zeros(6, maps.fresh, dtype=torch.float64)], 1)
    expected_a, expected_b = gradients(new_a, new_b)
    torch.testing.assert_close(maps.columns.T @ old_a, expected_a[:kept], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(old_b @ maps.rows.T, expected_b[:, :kept], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [2, 7])
def test_adam_moments_follow(rank):
    method = lora(4)
    optimizer = adam(method, amsgrad=True)
    layer = adapted_layers(method.model)[QUERY]
    old_a, old_b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    for parameter in (old_a, old_b):  # moments of a real training are far below any tolerance
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            drawn = torch.randn_like(parameter)
            optimizer.state[parameter][key] = drawn if key == "exp_avg" else drawn.square()
    state = {"a": dict(optimizer.state[old_a]), "b": dict(optimizer.state[old_b])}
    maps = shrink_map(old_a.detach(), old_b.detach(), rank) if rank < 4 else grow_map(4, rank, old_a)
    apply_resize(method.model, {QUERY: rank}, optimizer=optimizer)
    new_a, new_b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    kept = rank - maps.fresh
    for key, linear in (("exp_avg", True), ("exp_avg_sq", False), ("max_exp_avg_sq", False)):
        for side, new in (("a", new_a), ("b", new_b)):
            old, now = state[side][key], optimizer.state[new][key]
            assert now.shape == new.shape
            matrix = maps.columns.T if side == "a" else maps.rows.T
            matrix = matrix if linear else matrix**2
            now, fresh = (now[:kept], now[kept:]) if side == "a" else (now[:, :kept], now[:, kept:])
            torch.testing.assert_close(now, matrix @ old if side == "a" else old @ matrix, rtol=1e-5, atol=1e-6)
            mean = now.mean(0 if side == "a" else 1)  # what a new component starts with, per input or output
            expected = torch.zeros_like(fresh) if linear else (mean if side == "a" else mean[:, None]).expand_as(fresh)
            torch.testing.assert_close(fresh, expected, rtol=1e-5, atol=1e-6)
            assert bool((now >= 0).all()) or linear
    assert float(optimizer.state[new_a]["step"]) == 3
    assert not {old_a, old_b} & set(optimizer.state)


def test_groups_and_scheduler_survive():
    method = lora(4)
    optimizer = adam(method)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    places = [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    apply_resize(method.model, {QUERY: 7, OTHER: 2}, optimizer=optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    now = [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    assert [len(group) for group in now] == [len(group) for group in places]
    assert sum(a != b for old, new in zip(places, now, strict=True) for a, b in zip(old, new, strict=True)) == 4
    before = adapted_layers(method.model)[QUERY].lora_B[ADAPTER].weight.detach().clone()
    one_step(method, optimizer)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-4)
    moved = adapted_layers(method.model)[QUERY].lora_B[ADAPTER].weight.detach() - before
    assert bool((moved != 0).any(0).all())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
        (torch.optim.RMSprop, {"momentum": 0.9}),
        (torch.optim.Adagrad, {}),
        (torch.optim.Adam, {"foreach": True}),
    ],
)
def test_other_optimizers_go_on_after_a_resize(kind, options):
    method = lora(4)
    optimizer = adam(method, kind=kind, **options)
    apply_resize(method.model, {QUERY: 7, OTHER: 2}, optimizer=optimizer)
    for layer in adapted_layers(method.model).values():
        for parameter in (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight):
            for value in optimizer.state[parameter].values():
                assert not torch.is_tensor(value) or value.numel() == 1 or value.shape == parameter.shape
    one_step(method, optimizer)


def test_momentum_of_sgd_is_mapped_like_the_gradient():
    method = lora(4)
    optimizer = adam(method, kind=torch.optim.SGD, momentum=0.9)
    layer = adapted_layers(method.model)[QUERY]
    old_a, old_b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    buffer = optimizer.state[old_a]["momentum_buffer"]
    maps = shrink_map(old_a.detach(), old_b.detach(), 2)
    apply_resize(method.model, {QUERY: 2}, optimizer=optimizer)
    mapped = optimizer.state[layer.lora_A[ADAPTER].weight]["momentum_buffer"]
    torch.testing.assert_close(mapped, maps.columns.T @ buffer)


def test_state_that_cannot_follow_is_refused():
    method = lora(4)
    optimizer = adam(method, kind=torch.optim.Adafactor)
    with pytest.raises(AllocationError, match=r"state 'row_var' .* cannot follow a resize; use AdamW"):
        apply_resize(method.model, {QUERY: 2}, optimizer=optimizer)


def test_loss_does_not_jump_after_a_resize():
    """Growing and shrinking in mid-training, against the same run left alone."""
    losses = {}
    for change in (False, True):
        method = lora(4)
        optimizer = adam(method, steps=20)
        if change:
            ranks = {name: 6 if i % 2 else 3 for i, name in enumerate(method.matrices)}
            apply_resize(method.model, ranks, optimizer=optimizer)
        losses[change] = [one_step(method, optimizer, seed=s) for s in range(20, 26)]
    for alone, resized in zip(losses[False], losses[True], strict=True):
        assert abs(alone - resized) < 0.05


def test_one_component_of_one_input_grows():
    """State tensors of one element are not mistaken for step counters."""
    from peft import LoraConfig, get_peft_model

    peft_model = get_peft_model(nn.Sequential(nn.Linear(1, 3)), LoraConfig(r=1, target_modules=["0"]))
    layer = adapted_layers(peft_model)["0"]
    optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad])
    for _ in range(2):
        peft_model(torch.ones(2, 1)).square().sum().backward()
        optimizer.step()
    resize_layer(layer, 2, optimizer=optimizer, generator=torch.Generator().manual_seed(0))
    assert optimizer.state[layer.lora_A[ADAPTER].weight]["exp_avg"].shape == (2, 1)
    peft_model(torch.ones(2, 1)).square().sum().backward()
    optimizer.step()
