"""GaLoRA where the truth is known: matrices that differ from the base model are found among those that do not."""

import pytest
import torch
from tiny import WORDS, build, tiny_model

from rankwise.adapters.attach import find_matrices
from rankwise.adapters.methods.galora import Galora
from rankwise.adapters.resize import apply_resize


def planted(seed, count=4):
    """A wide-awake tiny BERT, and a copy with something of rank 2 added to `count` of its 18 matrices."""
    shape = {"num_hidden_layers": 3, "initializer_range": 0.18}
    base, teacher = tiny_model(**shape).eval(), tiny_model(**shape).eval()
    generator = torch.Generator().manual_seed(100 + seed)
    names = list(find_matrices(teacher))
    chosen = [names[i] for i in torch.randperm(len(names), generator=generator)[:count].tolist()]
    with torch.no_grad():
        for name in chosen:
            w = teacher.get_submodule(name).weight
            d = torch.randn(w.shape[0], 2, generator=generator) @ torch.randn(2, w.shape[1], generator=generator)
            w += d / d.norm() * w.norm()
    return base, teacher, chosen


def fit_planted(name, seed, steps=300):
    """Train `name` to imitate the teacher's hidden states; (mean squared error, planted matrices found)."""
    base, teacher, chosen = planted(seed)
    method = build(name, base, total_steps=steps, seed=seed)
    trained = [p for n, p in method.model.named_parameters() if p.requires_grad and ".lora_" in n]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    generator = torch.Generator().manual_seed(seed)
    student = method.model.base_model.model.bert

    def error(count):
        ids = torch.randint(3, WORDS, (count, 10), generator=generator)
        with torch.no_grad():
            wanted = teacher.bert(ids).last_hidden_state
        return (student(ids).last_hidden_state - wanted).square().mean()

    for step in range(1, steps + 1):
        optimizer.zero_grad()
        error(16).backward()
        method.before_optimizer_step(step)
        optimizer.step()
        scheduler.step()
        if (resize := method.after_optimizer_step(step)) is not None:
            apply_resize(method.model, resize.ranks, optimizer=optimizer, seed=seed, step=step)
    if isinstance(method, Galora):
        method.check_finished()
    with torch.no_grad():
        return float(error(256)), sum(method.rank_pattern()[n] > 0 for n in chosen)


@pytest.mark.slow
def test_finds_what_was_planted_and_beats_uniform_ranks_there():
    """Four of eighteen matrices differ; a third is kept, so chance would find 4/3 of them."""
    seeds = range(3)
    results = [fit_planted("galora", seed) for seed in seeds]
    uniform = [fit_planted("lora", seed) for seed in seeds]
    assert sum(found for _, found in results) / len(results) >= 3
    assert sum(e for e, _ in results) < 0.8 * sum(e for e, _ in uniform)
