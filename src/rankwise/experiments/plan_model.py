"""What a plan asks of its base model: parameters of every arm at every budget, and the time of a step."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rankwise.errors import Finding, RankwiseError
from rankwise.experiments.plan_runs import Plan, PlannedRun
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.tuning import every_run

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


@dataclass(frozen=True)
class Pace:
    """Seconds of one training step and of one evaluation batch, and how many modules carry an adapter."""

    step: float
    batch: float
    modules: int


def seconds_of(plan: Plan) -> dict[str, float]:
    """Seconds of all trials and runs of the plan per task, from a few steps and one evaluation batch, here and now.

    The passes without one module's adapter are included, where a plan asks for `premise`. What methods cost
    beyond plain LoRA is left out, as are the time between runs and rates that extend a grid.
    """
    configs = every_run(plan)
    found = {}
    for task in plan.config.tasks:
        own = [config for config in configs if config.task == task]
        pace = pace_of(own[0])
        found[task.name] = sum(seconds_at(pace, config) for config in own)
    return found


def seconds_at(pace: Pace, config: RunConfig) -> float:
    """Seconds of one run."""
    from rankwise.experiments.run_costs import REMOVAL_EXAMPLES
    from rankwise.experiments.runner import data_of, total_steps

    data, size = data_of(config), config.evaluation.batch_size
    batches = sum(-(-len(split) // size) for split in data.validation.values())
    if config.evaluation.premise:
        first = next(iter(data.validation.values()))
        batches += -(-min(REMOVAL_EXAMPLES, len(first)) // size) * (1 + pace.modules)
    return total_steps(config, len(data.train)) * pace.step + batches * pace.batch


def pace_of(config: RunConfig) -> Pace:
    """Train plain LoRA for a few steps, and evaluate one batch."""
    import torch
    from transformers import DataCollatorWithPadding

    from rankwise.adapters.attach import adapted_layers
    from rankwise.adapters.methods.lora import LoraConfig
    from rankwise.experiments.runner import load_task
    from rankwise.training.data import encode
    from rankwise.training.models import load_base_model

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
    given = batch(validation, config.evaluation.batch_size, 0)
    begun = time.perf_counter()
    with torch.no_grad():
        model.eval()(**given)
    return Pace(step, time.perf_counter() - begun, len(adapted_layers(model)))
