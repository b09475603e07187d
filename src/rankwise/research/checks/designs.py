"""Rules on a typed design: can these arms, data and settings test these claims?"""

import re
from collections.abc import Iterator

from rankwise.experiments.model_facts import model_facts
from rankwise.research.artefacts import Defect, Design
from rankwise.research.checks.facts import steps_per_epoch, task_words
from rankwise.research.checks.registry import Subject, defect, listed, rule
from rankwise.research.datasets import wrong_identity
from rankwise.tasks.glue import SPECS
from rankwise.tasks.metrics import allowed_metrics, canonical_metric

_HELD = {"method.budget": "an equal budget", "training.batch_size": "equal training and time"}
_SECTIONS = ("method", "training", "task", "evaluation", "model")


def _design(subject: Subject) -> Design:
    assert subject.design is not None
    return subject.design


@rule("claim_coverage", "design", 32, 33, 81)
def coverage(subject: Subject) -> Iterator[Defect]:
    """Every claim has its arms, every gain a plain LoRA arm, the hypothesis its tasks."""
    design = _design(subject)
    names = {arm.name for arm in design.arms}
    for claim in design.claims:
        absent = [name for name in (claim.arm, claim.reference) if name and name not in names]
        if claim.kind != "not-testable" and absent:
            text = f"{claim.id} is about {listed(absent)}, which no arm is (arms: {', '.join(sorted(names))})"
            yield defect(text, 81, where=f"claims.{claim.id}")
    gains = any(claim.kind == "superiority" and claim.quantity == "accuracy" for claim in design.claims)
    if gains and not any(arm.method.get("name") == "lora" for arm in design.arms):
        yield defect("a gain is claimed and no arm is plain `lora` at the same budget", 32, where="arms")
    here = {one.task for one in design.datasets}
    wanted = subject.settings.tasks if subject.hypothesis else ()
    left = [task_words(task) for task in wanted if task not in here]
    if left and not any("data" in note or any(word in note for word in left) for note in design.notes):
        yield defect(
            f"the hypothesis is also about {listed(left)}, and no note says why they are left out",
            33,
            where="datasets",
            level="warning",
        )


@rule("dataset_identity", "design", 47)
def identity(subject: Subject) -> Iterator[Defect]:
    """Rows and columns are those of the task."""
    for one in _design(subject).datasets:
        for problem in wrong_identity(one.task, one.rows, one.columns):
            yield defect(f"{one.said or one.task}: {problem}", 47, where=f"datasets.{one.task}")


@rule("metric_exists", "design", 43)
def metrics(subject: Subject) -> Iterator[Defect]:
    """Metrics exist for the tasks."""
    design = _design(subject)
    for name in design.metrics:
        own = canonical_metric(name)
        for one in design.datasets:
            spec = SPECS.get(one.task.removeprefix("glue/"))
            if spec is None:
                continue
            allowed = allowed_metrics(spec.kind, max(1, len(spec.label_names)))
            if own not in allowed:
                yield defect(
                    f"'{name}' does not exist for {one.task}; allowed: {', '.join(allowed)}", 43, where="metrics"
                )


@rule("frozen_factors", "design", 36)
def held_equal(subject: Subject) -> Iterator[Defect]:
    """What the comparison holds equal is not searched."""
    for one in _design(subject).search:
        if one.path in _HELD:
            yield defect(
                f"{one.path} is searched, and the comparison is at {_HELD[one.path]}", 36, where=f"search.{one.path}"
            )


@rule("path_resolve", "design", 40)
def paths(subject: Subject) -> Iterator[Defect]:
    """A searched setting is named by its full path."""
    for one in _design(subject).search:
        if one.path.partition(".")[0] not in _SECTIONS or "." not in one.path:
            allowed = ", ".join(f"{name}.…" for name in _SECTIONS)
            yield defect(f"'{one.path}' is no full path; allowed: {allowed}", 40, where=f"search.{one.path}")


@rule("numeric_yaml", "design", 41)
def ranges(subject: Subject) -> Iterator[Defect]:
    """A range has a low end below its high end; choices are given where there is none."""
    for one in _design(subject).search:
        where = f"search.{one.path}"
        if one.kind == "categorical" and not one.choices:
            yield defect(f"{one.path} is categorical and has no choices", 41, where=where)
        elif one.kind != "categorical" and (one.low is None or one.high is None or one.low >= one.high):
            yield defect(f"{one.path}: low {one.low} must be below high {one.high}", 41, where=where)
        elif one.log and one.low is not None and one.low <= 0:
            yield defect(f"{one.path}: low {one.low:g} must be above 0 on a log scale", 41, where=where)


@rule("in_space", "design", 34)
def fixed_in_range(subject: Subject) -> Iterator[Defect]:
    """A fixed value lies in its own search range."""
    design = _design(subject)
    for one in design.search:
        value = design.training.get(one.path.removeprefix("training.")) if one.path.startswith("training.") else None
        if (
            isinstance(value, int | float)
            and one.low is not None
            and one.high is not None
            and not one.low <= value <= one.high
        ):
            text = f"{one.path} is {value:g}, outside its own range {one.low:g} to {one.high:g}"
            yield defect(text, 34, where=f"training.{one.path.removeprefix('training.')}", level="warning")


@rule("step_arith", "design", 34)
def warmups(subject: Subject) -> Iterator[Defect]:
    """A warm-up is shorter than the run."""
    design = _design(subject)
    length, epochs, batch = (design.training.get(name) for name in ("max_steps", "epochs", "batch_size"))
    warm = {
        "training.warmup": design.training.get("warmup"),
        **{f"arms.{arm.name}.method.warmup": arm.method.get("warmup") for arm in design.arms},
    }
    for one in design.datasets:
        epoch = steps_per_epoch(one.task, batch) if isinstance(batch, int) else None
        by_epochs = epoch * epochs if epoch and isinstance(epochs, int | float) else None
        total = length if isinstance(length, int) else by_epochs
        for where, steps in warm.items():
            if total and isinstance(steps, int) and not isinstance(steps, bool) and steps >= total:
                yield defect(
                    f"{steps:,} steps of a run of {total:,.0f} on {one.task}: it would never end", 34, where=where
                )


@rule("split_policy", "design", 45)
def seeds(subject: Subject) -> Iterator[Defect]:
    """There is more than one seed."""
    if _design(subject).seeds < 2:
        yield defect("one seed has no spread, so no difference can be judged", 45, where="seeds")


@rule("budget_arith", "design", 35)
def budgets(subject: Subject) -> Iterator[Defect]:
    """A budget in ranks holds at least one for every matrix, and the same whole number for uniform LoRA."""
    design = _design(subject)
    facts = model_facts(design.model)
    for text in design.budgets:
        match = re.fullmatch(r"\s*(\d+)\s*ranks?\s*", text)
        if match is None or facts is None:
            continue
        total = int(match[1])
        if total < facts.matrices:
            yield defect(
                f"{total} ranks are below one for each of the {facts.matrices} matrices of {design.model}",
                35,
                where="budgets",
            )
        elif total % facts.matrices:
            found = (
                f"{total} ranks over {facts.matrices} matrices are {total / facts.matrices:.2f} each: uniform LoRA is "
                "not uniform"
            )
            yield defect(found, 35, where="budgets", level="warning")
