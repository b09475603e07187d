"""What a plan asks of its base model: parameters of every arm at every budget, and the time of a step."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rankwise.errors import Finding, RankwiseError
from rankwise.experiments.plan_runs import Plan, PlannedRun

WARM, TIMED = 2, 4


@dataclass(frozen=True)
class Counted:
    """Trainable adapter parameters of an arm at the start, and the most that it will train.

    Methods that shrink end at the budget, which is the same for all arms; `rankwise compare` counts what they end with.
    """

    arm: str
    task: str
    budget: str
    start: int
    peak: int


def counted(plan: Plan) -> tuple[list[Counted], list[Finding]]:
    """Build every arm at every budget once (on the first task), without training it."""
    from rankwise.experiments.runner import load_task, total_steps
    from rankwise.training.models import load_base_model

    found: list[Counted] = []
    problems: list[Finding] = []
    for run in _one_each(plan):
        config, data = run.config, load_task(run.config.task)
        steps = total_steps(config, len(data.train))
        base = load_base_model(
            config.model.name, num_labels=data.num_labels, kind=data.kind, seed=0, revision=config.model.revision
        )
        try:
            method = config.method.build(base.model, total_steps=steps, seed=0)
        except RankwiseError as error:
            problems.append(Finding(f"arms.{run.arm}, budget {run.budget}", str(error)))
            continue
        count = method.parameter_count()
        found.append(Counted(run.arm, config.task.name, run.budget, count.final, count.peak))
    return found, problems


def _one_each(plan: Plan) -> Iterator[PlannedRun]:
    first = plan.config.tasks[0]
    seen = set()
    for run in plan.runs:
        if run.config.task == first and (run.arm, run.budget) not in seen:
            seen.add((run.arm, run.budget))
            yield run


def seconds_of(plan: Plan) -> dict[str, float]:
    """Seconds of all runs of the plan per task, from a few steps of plain LoRA and one evaluation batch, here and now.

    What methods cost beyond plain LoRA is left out, as is the time between runs.
    """
    return {
        task.name: _seconds(plan, [run for run in plan.runs if run.config.task == task]) for task in plan.config.tasks
    }


def _seconds(plan: Plan, runs: list[PlannedRun]) -> float:
    import torch
    from transformers import DataCollatorWithPadding

    from rankwise.adapters.methods.lora import LoraConfig
    from rankwise.experiments.runner import load_task, total_steps
    from rankwise.training.data import encode
    from rankwise.training.models import load_base_model

    config = runs[0].config
    data = load_task(config.task)
    base = load_base_model(
        config.model.name, num_labels=data.num_labels, kind=data.kind, seed=0, revision=config.model.revision
    )
    length = min(config.task.max_length, base.max_tokens or config.task.max_length)
    collate = DataCollatorWithPadding(base.tokenizer)
    validation = next(iter(data.validation.values()))

    def batch(source: object, size: int, number: int) -> dict[str, torch.Tensor]:
        chosen = [(number * size + i) % len(source) for i in range(size)]  # type: ignore[arg-type]
        encoded = encode(source.select(chosen), base.tokenizer, length).remove_columns(["length"])  # type: ignore[attr-defined]
        return dict(collate([encoded[i] for i in range(len(encoded))]))

    model = LoraConfig(budget="r=4").build(base.model, total_steps=10, seed=0).model.train()
    times = []
    for number in range(WARM + TIMED):
        given = batch(data.train, config.training.batch_size, number)
        begun = time.perf_counter()
        model(**given).loss.backward()
        times.append(time.perf_counter() - begun)
    step = statistics.median(times[WARM:]) * config.training.gradient_accumulation_steps
    size = config.evaluation.batch_size
    begun = time.perf_counter()
    with torch.no_grad():
        model.eval()(**batch(validation, size, 0))
    evaluation = (time.perf_counter() - begun) * -(-len(validation) // size)
    return sum(total_steps(run.config, len(data.train)) * step + evaluation for run in runs)
