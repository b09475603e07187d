"""What an override leaves contradictory in the rest of its file is settled here, and said.

A file is written for one length of training and one task. When an override changes either, numbers of steps that the
file gave are kept in proportion, a length given another way steps back, and metrics that the new task does not have
are left out. Everything works on plain data in the shape of our schema, before it is validated.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from rankwise.errors import Finding
from rankwise.experiments.schema import DEFAULT_TASK, Plain, TrainingConfig, task_section
from rankwise.tasks.glue import OFFICIAL_TRAIN_ROWS, SPECS
from rankwise.tasks.metrics import allowed_metrics, canonical_metric

LENGTHS = ("training.warmup", "method.warmup", "method.final")
"""Fields that count steps of the whole run."""


def pick(data: Mapping[str, Any], path: str) -> Plain:
    """The value at a dotted path, or None."""
    value: Any = data
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def put(data: Mapping[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy of `data` with `value` at a dotted path whose sections exist."""
    first, _, rest = path.partition(".")
    return {**data, first: put(data[first], rest, value) if rest else value}


def task_name(data: Mapping[str, Any]) -> str:
    """Our name of the task."""
    section = task_section(data.get("task", DEFAULT_TASK))
    return str(section.get("name", DEFAULT_TASK)) if isinstance(section, Mapping) else ""


def number(value: object) -> float | None:
    """A positive number, also when written as text; None for anything else."""
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return found if found > 0 and math.isfinite(found) else None


def steps_per_epoch(data: Mapping[str, Any]) -> int | None:
    """Optimizer steps in one pass over the official training examples; None where their number is not known."""
    rows = OFFICIAL_TRAIN_ROWS.get(task_name(data))
    if rows is None:
        return None
    rows = int(min(rows, number(pick(data, "task.train_examples")) or rows))
    share = number(pick(data, "evaluation.holdout"))
    if share and share < 1:
        rows -= min(rows - 1, max(1, round(share * rows)))
    training = TrainingConfig.model_fields
    batch = number(pick(data, "training.batch_size")) or training["batch_size"].default
    accumulation = number(pick(data, "training.gradient_accumulation_steps")) or 1
    return math.ceil(math.ceil(rows / batch) / accumulation)


def planned_steps(data: Mapping[str, Any]) -> int | None:
    """Optimizer steps of the run; None where they depend on a number of examples that is not known beforehand."""
    if steps := number(pick(data, "training.max_steps")):
        return int(steps)
    if epochs := number(pick(data, "training.epochs")):
        per_epoch = steps_per_epoch(data)
        return None if per_epoch is None else math.ceil(epochs * per_epoch)
    default: int = TrainingConfig.model_fields["max_steps"].default
    return default


def settle_length(
    data: Mapping[str, Any], given: Callable[[str], bool], words: Callable[[str], str]
) -> tuple[dict[str, Any], list[Finding]]:
    """An override of one of max_steps and epochs replaces the file's other one. `given` tells what overrides set."""
    steps, epochs = "training.max_steps", "training.epochs"
    if pick(data, steps) is None or pick(data, epochs) is None:
        return dict(data), []
    if given(steps) == given(epochs):
        text = f"is {pick(data, steps)} and {words(epochs)} is {pick(data, epochs)}; set one and leave out the other"
        return put(data, epochs, None), [Finding(words(steps), text)]
    winner, loser = (steps, epochs) if given(steps) else (epochs, steps)
    message = f"{pick(data, loser)} of the file gives way to {words(winner)}={pick(data, winner)}"
    return put(data, loser, None), [Finding(words(loser), message, "note")]


def keep_in_proportion(
    data: Mapping[str, Any], before: Mapping[str, Any], given: Callable[[str], bool], words: Callable[[str], str]
) -> tuple[dict[str, Any], list[Finding]]:
    """Turn the file's numbers of steps into fractions when overrides changed the length that they were meant for.

    `before` is the file without overrides.
    """
    result: dict[str, Any] = dict(data)
    findings: list[Finding] = []
    meant, now = planned_steps(before), planned_steps(data)
    if meant is None or meant == now:
        return result, findings
    for path in LENGTHS:
        steps = number(pick(data, path))
        if steps is None or given(path) or steps < 1 or steps >= meant or pick(before, path) != pick(data, path):
            continue
        fraction = round(steps / meant, 6)
        result = put(result, path, fraction)
        run = f"{now:,} steps" if now else "the run"
        message = f"{steps:.0f} of the file's {meant:,} steps -> {fraction:.3g} of the run ({run})"
        findings.append(Finding(words(path), message, "note"))
    return _ranges_in_proportion(result, meant), findings


def _ranges_in_proportion(data: dict[str, Any], meant: int) -> dict[str, Any]:
    """The same for search ranges of the fields that became fractions."""
    space = pick(data, "sweep.search_space")
    if not isinstance(space, Mapping):
        return data
    scaled = dict(space)
    for path in LENGTHS:
        found, fixed = space.get(path), pick(data, path)
        if not isinstance(found, Mapping) or found.get("type") != "int" or not isinstance(fixed, float):
            continue
        low, high = number(found.get("low")), number(found.get("high"))
        if low and high and high < meant:
            scaled[path] = {**found, "type": "float", "low": round(low / meant, 6), "high": round(high / meant, 6)}
    return put(data, "sweep.search_space", scaled)


def settle_metrics(
    data: Mapping[str, Any], *, given: bool, borrowed: bool, words: Callable[[str], str]
) -> tuple[dict[str, Any], list[Finding]]:
    """Leave out metrics of the file that its task does not have.

    `given`: an override set the metrics, so they are kept (and refused by the checks if they cannot be computed).
    `borrowed`: the file was written for another task or in another dialect; then what the task does not report by
    convention is left out too.
    """
    path = "evaluation.metrics"
    names, spec = pick(data, path), SPECS.get(task_name(data).removeprefix("glue/"))
    if given or not borrowed or spec is None or not isinstance(names, list):
        return dict(data), []
    kept: list[Plain] = []
    findings: list[Finding] = []
    for name in names:
        own = canonical_metric(str(name))
        if own is None or own in spec.metrics:
            kept.append(name)  # an unknown metric stays, to be refused
            continue
        possible = own in allowed_metrics(spec.kind, max(1, len(spec.label_names)))
        reason = "is not what GLUE reports for it" if possible else "does not exist for it"
        message = f"{name} is left out: task {task_name(data)} has {', '.join(spec.metrics)}, {own} {reason} [43]"
        findings.append(Finding(words(path), message, "warning"))
    return put(data, path, kept or None), findings
