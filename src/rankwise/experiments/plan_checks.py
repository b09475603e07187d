"""What is wrong with a plan before anything is run: can these runs answer these claims?

Every rule yields findings. Errors are refused: a claim that these runs cannot decide at all. At the profiles `smoke`
and `pilot` a plan may see less than it is made for; there, too few seeds are a warning.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scipy import stats

from rankwise.allocation.budget import parse_budget
from rankwise.errors import Finding, UnknownNameError
from rankwise.experiments.claim_power import seeds_needed, smallest_effect
from rankwise.experiments.plan import COSTS, MAIN, MEASURES, OF_THE_MACHINE, ClaimConfig, PlanConfig
from rankwise.experiments.plan_runs import Plan
from rankwise.experiments.verdicts import COUNTED
from rankwise.tasks.metrics import METRICS, check_metric

SPREAD = 0.01
"""Standard deviation over seeds of a paired difference that is assumed before there are runs: one point."""
DISAGREEMENT = 0.1
"""Share of the evaluation examples on which two arms are assumed to differ in whether they are right."""
SMALL = ("smoke", "pilot")


@dataclass(frozen=True)
class TaskFacts:
    """What the checks know of a task: its kind, numbers of examples, metrics (the deciding one first)."""

    name: str
    kind: str
    num_labels: int
    train: int
    validation: int
    metrics: tuple[str, ...]


def facts_of(plan: Plan) -> dict[str, TaskFacts]:
    """Load every task of a plan.

    Raises:
        DataError: one cannot be loaded.
    """
    from rankwise.experiments.runner import load_task

    found = {}
    for task in plan.config.tasks:
        data = load_task(task)
        metrics = plan.config.evaluation.metrics or data.metrics
        validation = len(next(iter(data.validation.values())))
        found[task.name] = TaskFacts(task.name, data.kind, data.num_labels, len(data.train), validation, metrics)
    return found


def check_plan(plan: Plan, tasks: Mapping[str, TaskFacts]) -> list[Finding]:
    """Every finding that needs no model, errors first."""
    rules = (_coverage, _metrics, _steps, _freedom, _parity, _seeds, _timing)
    found = [finding for rule in rules for finding in rule(plan, tasks)]
    order = ("error", "warning", "note")
    return sorted(dict.fromkeys(found), key=lambda finding: order.index(finding.level))


def _claims(config: PlanConfig) -> Iterator[tuple[str, ClaimConfig]]:
    """Testable claims that this profile has runs for, with their places in the file."""
    here = {task.name for task in config.tasks}
    for index, claim in enumerate(config.claims):
        left_out = set(claim.tasks or ()) - here or set(claim.budgets or ()) - set(config.budgets)
        if claim.kind != "not-testable" and not left_out:
            yield f"claims.{index} ({claim.id})", claim


def _coverage(plan: Plan, tasks: Mapping[str, TaskFacts]) -> Iterator[Finding]:
    """Every claim has its runs, every arm a claim, every gain a plain reference."""
    config = plan.config
    if not config.claims:
        yield Finding("claims", "the plan makes no claims, so `rankwise verdict` will have nothing to judge", "warning")
        return
    testable = dict(_claims(config))
    for index, claim in enumerate(config.claims):
        where = f"claims.{index} ({claim.id})"
        if claim.kind == "not-testable":
            yield Finding(where, f"not testable: {claim.reason}", "note")
        elif where not in testable:
            yield Finding(where, f"profile '{plan.profile}' leaves out its tasks or budgets: not tested", "note")
    named = {name for claim in config.claims for name in claim.arms}
    for name in config.arms:
        if name not in named:
            yield Finding(f"arms.{name}", "no claim is about it; its runs only show in tables", "note")
    plain = [name for name, arm in config.arms.items() if arm.method.get("name") == "lora"]
    gains = [claim for claim in testable.values() if claim.kind == "superiority" and claim.metric not in MEASURES]
    if not plain and gains:
        message = "no arm is plain `lora`, so no gain can be told from what the same budget gives when spent uniformly"
        yield Finding("arms", message, "warning")


def _metrics(plan: Plan, tasks: Mapping[str, TaskFacts]) -> Iterator[Finding]:
    """A claim's metric exists on all of its tasks and is measured there."""
    for where, claim in _claims(plan.config):
        own = [tasks[name] for name in claim.tasks or tasks]
        if claim.metric in MEASURES:
            if not plan.config.evaluation.premise:
                message = f"'{claim.metric}' is only measured with evaluation.premise: true"
                yield Finding(f"{where}.metric", message)
            continue
        if claim.metric in (MAIN, *COSTS):
            mains = sorted({task.metrics[0] for task in own})
            if claim.metric == MAIN and len(mains) > 1 and claim.margin:
                message = f"the margin {claim.margin:g} is in points of different metrics: {', '.join(mains)}"
                yield Finding(where, message, "note")
            if claim.metric == MAIN and len({METRICS[name].higher_is_better for name in mains}) > 1:
                yield Finding(where, f"`main` is better high on some tasks and low on others: {', '.join(mains)}")
            continue
        for task in own:
            try:
                check_metric(claim.metric, task.kind, task.num_labels)  # type: ignore[arg-type]
            except UnknownNameError as error:
                yield Finding(f"{where}.metric", f"{task.name}: {error}")
                continue
            if claim.metric not in task.metrics:
                message = f"'{claim.metric}' is not measured on {task.name}; add it to evaluation.metrics"
                yield Finding(f"{where}.metric", message)


def _steps(plan: Plan, tasks: Mapping[str, TaskFacts]) -> Iterator[Finding]:
    """What no method can do in the steps there are, per task; texts seen less than once."""
    from rankwise.experiments.runner import total_steps

    for run in plan.runs:
        facts = tasks[run.config.task.name]
        steps = total_steps(run.config, facts.train)
        training = run.config.training
        if isinstance(training.warmup, int) and training.warmup >= steps:
            yield Finding("training.warmup", f"{training.warmup} steps; {facts.name} has {steps} steps in all")
        for found in run.config.method.check(steps):
            yield Finding(f"arms.{run.arm}.{found.path}", f"{found.message} ({facts.name}, {steps} steps)", found.level)
        seen = steps * training.batch_size * training.gradient_accumulation_steps / facts.train
        if seen < 1:
            text = f"{facts.name}: {steps} steps see {seen:.0%} of its {facts.train:,} training examples once"
            yield Finding("training", text, "note")


def _freedom(plan: Plan, tasks: Mapping[str, TaskFacts]) -> Iterator[Finding]:
    """An arm whose smallest rank is all that the budget buys has nothing to allocate."""
    for run in plan.runs:
        floor, text = getattr(run.config.method, "floor", 0), getattr(run.config.method, "budget", None)
        if text is None or not floor:
            continue
        budget = parse_budget(text)
        if budget.unit == "rank" and floor >= budget.amount:
            message = f"{floor} at the budget {budget}: nothing is left to allocate, so it trains uniform LoRA"
            yield Finding(f"arms.{run.arm}.method.floor", f"{message}; lower it, or raise the budget", "warning")


def _parity(plan: Plan, tasks: Mapping[str, TaskFacts]) -> Iterator[Finding]:
    """Arms differ in their method alone, and are tuned alike."""
    config = plan.config
    for name, arm in config.arms.items():
        if arm.training:
            changed = ", ".join(f"{key} {value}" for key, value in arm.training.items())
            yield Finding(f"arms.{name}.training", f"trains otherwise ({changed}): {arm.reason}", "warning")
        if config.protocol.tuning is not None and "learning_rate" in arm.training:
            yield Finding(
                f"arms.{name}.training.learning_rate",
                "is fixed here and searched for every other arm; leave it out, protocol.tuning finds it",
            )
    if config.protocol.tuning is None and any(claim.metric not in COSTS for _, claim in _claims(config)):
        message = f"nothing is tuned: verdicts are about a learning rate of {config.training.learning_rate:g}"
        yield Finding("protocol.tuning", f"{message}, at which an arm may be better or worse than at its own", "note")


def _seeds(plan: Plan, tasks: Mapping[str, TaskFacts]) -> Iterator[Finding]:
    """The smallest effect that so many seeds and examples find, against what the claim needs."""
    seeds, level = len(plan.config.seeds), "warning" if plan.profile in SMALL else "error"
    for where, claim in _claims(plan.config):
        if claim.metric in COUNTED:
            continue
        if seeds < 2:
            yield Finding("seeds", f"one seed says nothing about seeds, and {claim.id} is about all of them", level)  # type: ignore[arg-type]
            continue
        wanted = claim.effect - claim.margin if claim.effect is not None else claim.margin
        if claim.metric in (*COSTS, *MEASURES) or claim.kind == "bound" or wanted <= 0:
            continue
        effect, needed = _needed(plan.config, claim, [tasks[name] for name in claim.tasks or tasks], wanted)
        if effect <= wanted:
            continue
        more = f"{needed} seeds would" if needed else "no number of seeds would: the evaluation examples are too few"
        yield Finding(
            where,
            f"{seeds} seeds find an effect of {effect:.4f} with power {plan.config.protocol.power:g}, the claim needs "
            f"{wanted:.4f}; {more} (assumed: a spread of {SPREAD:g} over seeds, arms that differ on "
            f"{DISAGREEMENT:.0%} of the examples)",
            level,  # type: ignore[arg-type]
        )


def _needed(config: PlanConfig, claim: ClaimConfig, own: list[TaskFacts], wanted: float) -> tuple[float, int | None]:
    """The smallest effect that is found, and the seeds that would find `wanted`; both noises add in quadrature."""
    protocol, budgets = config.protocol, len(claim.budgets or config.budgets)
    cells = len(own) * budgets
    alpha = protocol.alpha / (2 if claim.kind == "equivalence" else 1)
    of_seeds = smallest_effect(SPREAD, len(config.seeds), alpha=alpha, power=protocol.power, tasks=cells)
    quantiles = float(stats.norm.isf(alpha) + stats.norm.ppf(protocol.power))
    of_examples = quantiles * math.sqrt(sum(DISAGREEMENT / task.validation for task in own)) / len(own)
    left = wanted**2 - of_examples**2
    needed = seeds_needed(math.sqrt(left), SPREAD, alpha=alpha, power=protocol.power, tasks=cells) if left > 0 else None
    return math.hypot(of_seeds, of_examples), needed


def _timing(plan: Plan, tasks: Mapping[str, TaskFacts]) -> Iterator[Finding]:
    timed = [claim.id for _, claim in _claims(plan.config) if claim.metric in OF_THE_MACHINE]
    if timed:
        message = "compare time or memory: do their runs on one machine, one at a time, with nothing else going on"
        yield Finding("claims", f"{', '.join(timed)} {message}", "note")
