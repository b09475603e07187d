"""`rankwise plan check`: what a plan will run, what is wrong with it, what it costs here."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.plan_checks import TaskFacts, check_plan, facts_of
from rankwise.experiments.plan_model import Counted, counted, seconds_of
from rankwise.experiments.plan_runs import Plan, load_plan
from rankwise.experiments.shown import Summary
from rankwise.experiments.tuning import every_run
from rankwise.experiments.verdict_table import sentence


def check_plan_file(file: Path, profile: str | None, *, probe: bool) -> Summary:
    """Everything that can be said before the first run.

    Raises:
        ConfigError: the file is no plan.
    """
    plan = load_plan(file, profile)
    tasks = facts_of(plan)
    counts, problems = counted(plan)
    found = [*check_plan(plan, tasks), *problems]
    failed = any(finding.level == "error" for finding in found)
    seconds = seconds_of(plan) if probe and not failed else None
    runs = {run.config.run_id for run in plan.runs}
    parts = [_head(plan, tasks), _claims(plan), _counts(counts)]
    if seconds is not None:
        parts.append(_cost(plan, seconds))
    parts.append("\n".join(f"{finding.level}: {finding}" for finding in found) or "no findings")
    data = {
        "plan": plan.config.name,
        "profile": plan.profile,
        "runs": len(runs),
        "trials": len(every_run(plan)) - len(runs),
        "tasks": [asdict(each) for each in tasks.values()],
        "parameters": [asdict(each) for each in counts],
        "estimated_seconds": seconds,
        "findings": [{"level": f.level, "path": f.path, "message": f.message} for f in found],
    }
    return Summary("\n\n".join(part for part in parts if part), data, failed)


def refuse(plan: Plan) -> list[Finding]:
    """Findings of a plan that is about to run, its warnings and notes.

    Raises:
        ConfigError: it cannot answer its claims.
    """
    found = check_plan(plan, facts_of(plan))
    if errors := [finding for finding in found if finding.level == "error"]:
        raise ConfigError(plan.source, errors)
    return found


def _head(plan: Plan, tasks: dict[str, TaskFacts]) -> str:
    config = plan.config
    name = config.name + (f", profile {plan.profile}" if plan.profile else "")
    arms, budgets, seeds = len(config.arms), len(config.budgets), len(config.seeds)
    product = f"{arms} arms × {len(tasks)} tasks × {budgets} budgets × {seeds} seeds"
    runs = len({run.config.run_id for run in plan.runs})
    once = "" if runs == len(plan.runs) else " (what does not depend on the budget once)"
    searched = len(every_run(plan)) - runs
    lines = [
        f"{name}: {runs} runs = {product}{once}" + (f", after {searched} trials of learning rates" if searched else ""),
        f"  model    {config.model.name}",
        f"  arms     {', '.join(config.arms)}",
        f"  budgets  {', '.join(config.budgets)}",
    ]
    for task in tasks.values():
        examples = f"{task.train:,} training and {task.validation:,} validation examples"
        lines.append(f"  task     {task.name}: {examples}, {task.metrics[0]} decides")
    return "\n".join(lines)


def _claims(plan: Plan) -> str:
    return "\n".join(f"  claim    {claim.id}: {sentence(claim)}" for claim in plan.config.claims)


def _counts(counts: Sequence[Counted]) -> str:
    lines = [f"  {each.arm} at {each.budget}: {each.start:,} parameters, at most {each.peak:,}" for each in counts]
    return "\n".join(["adapter parameters when training starts:", *lines]) if lines else ""


def _cost(plan: Plan, seconds: dict[str, float]) -> str:
    total = sum(seconds.values())
    text = f"about {_minutes(total)} here, trials included, from a few steps of plain LoRA just now"
    if plan.minutes is not None:
        text += f" (the profile is meant to take at most {plan.minutes:g})"
    return text


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
