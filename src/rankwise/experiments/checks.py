"""Contradictions that can be seen without running anything: in one config, and between configs that belong together.

Messages end with the item of the catalogue in `docs/config.md` that they belong to, such as `[34]`. An `error` cannot
run; a `warning` runs, but a claim built on it suffers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rankwise.allocation.budget import parse_budget
from rankwise.errors import BudgetError, Finding
from rankwise.experiments.model_facts import model_facts
from rankwise.experiments.schema import Distribution, Plain, RunConfig, Scalar, SweepConfig
from rankwise.experiments.settle import planned_steps, steps_per_epoch
from rankwise.tasks.glue import SPECS
from rankwise.tasks.metrics import METRICS, allowed_metrics

HELD_EQUAL = {"method.budget": "equal budget", "training.batch_size": "equal training and equal time"}
"""Fields that a comparison claims to hold equal over its arms, and what the claim is."""

MANY_EXAMPLES = 5_000_000
"""A search that trains on more is worth planning."""

Level = Literal["error", "warning", "note"]
Words = Callable[[str], str]


@dataclass(frozen=True)
class Named:
    """A config under the name it is spoken of (file or label)."""

    name: str
    config: RunConfig


def check_config(config: RunConfig, words: Words = str) -> tuple[Finding, ...]:
    """Everything contradictory in one config; `words` turns our paths into the file's."""
    parts = (_lengths, _impossible, _budget, _metrics, _adalora, _sweep)
    return tuple(
        Finding(", ".join(words(p) for p in path.split(", ")), text, level)
        for part in parts
        for level, path, text in part(config, words)
    )


def total_steps(config: RunConfig) -> int | None:
    """Optimizer steps of the run; None where they depend on a number of examples that is not known beforehand."""
    return planned_steps(config.model_dump(mode="json"))


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _method(config: RunConfig, name: str) -> Plain:
    return getattr(config.method, name, None)


Found = Iterator[tuple[Level, str, str]]


def _lengths(config: RunConfig, words: Words) -> Found:
    """Numbers of steps that do not fit into the run."""
    total = total_steps(config)
    if total is None:
        return
    never = {
        "training.warmup": "the learning rate would never reach its peak",
        "method.warmup": "ranks would never be reallocated",
        "method.final": "no step would be left for pruning",
    }
    long = False
    for path, reason in never.items():
        steps = _whole(config.training.warmup if path.startswith("training") else _method(config, path[7:]))
        if steps is not None and steps >= total:
            long = True
            text = f"{steps:,} steps of a run of {total:,}: {reason}; use fewer, or a fraction such as 0.1 [34]"
            yield "error", path, text
    start, final = _method(config, "warmup"), _method(config, "final")
    if not long and start is not None and final is not None:
        first = start if isinstance(start, int) else max(1, round(start * total))
        last = final if isinstance(final, int) else max(1, round(final * total))
        if first >= total - last:
            text = f"{first:,} steps before and {last:,} after leave none of {total:,} for pruning [38]"
            yield "error", "method.warmup, method.final", text


def _impossible(config: RunConfig, words: Words) -> Found:
    """What the method itself cannot do in that many steps, where `_lengths` has not said it already."""
    total = total_steps(config)
    if total is None:
        return
    said = {part for _, path, _ in _lengths(config, words) for part in path.split(", ")}
    for finding in config.method.check(total):
        if not said & set(finding.path.split(", ")):
            yield "error", finding.path, finding.message


def _budget(config: RunConfig, words: Words) -> Found:
    text = _method(config, "budget")
    if text is None:
        return
    try:
        budget = parse_budget(text)
    except BudgetError as error:
        yield "error", "method.budget", str(error)
        return
    facts = model_facts(config.model.name)
    if facts is None or _method(config, "target_modules") is not None or budget.unit != "ranks":
        return
    if budget.amount < facts.matrices:
        message = f"{budget} is below one rank for each of the {facts.matrices} matrices of {config.model.name} [35]"
        yield "error", "method.budget", message


def _metrics(config: RunConfig, words: Words) -> Found:
    spec = SPECS.get(config.task.name.removeprefix("glue/"))
    names = config.evaluation.metrics
    if spec is not None:
        allowed = allowed_metrics(spec.kind, max(1, len(spec.label_names)))
        for name in names or ():
            if name not in allowed:
                text = f"{name} does not exist for task {config.task.name}; allowed: {', '.join(allowed)} [43]"
                yield "error", "evaluation.metrics", text
    wanted = config.sweep.metric if config.sweep else None
    measured = names or (spec.metrics if spec else None)
    if wanted is not None and measured is not None and wanted not in measured:
        yield "error", "sweep.metric", f"{wanted} is not among the metrics measured: {', '.join(measured)} [43]"
    deciding = wanted or (measured[0] if measured else None)
    if config.sweep is not None and deciding is not None and (wrong := wrong_way(config.sweep, deciding)):
        yield "error", "sweep.direction", wrong


def wrong_way(sweep: SweepConfig, metric: str) -> str | None:
    """What is wrong if a sweep's direction is not the one in which its metric gets better; None if it is."""
    way = "maximize" if METRICS[metric].higher_is_better else "minimize"
    if sweep.direction in (None, way):
        return None
    better = "higher" if way == "maximize" else "lower"
    return f"{sweep.direction}, but {metric} is better when {better}; write {way}, or leave it out [43]"


def _adalora(config: RunConfig, words: Words) -> Found:
    """A baseline weakened by its settings makes every comparison with it worthless."""
    weight = _method(config, "orthogonality")
    if weight is not None and weight < 0.05:
        times = f"{0.5 / weight:,.0f} times" if weight else "infinitely"
        text = f"{weight:g} is {times} below PEFT's default 0.5 (the paper: 0.1 to 0.5): the baseline is weakened [39]"
        yield "warning", "method.orthogonality", text
    for name in ("beta1", "beta2"):
        value = _method(config, name)
        if value is not None and abs(value - 0.85) > 0.02:
            yield "warning", f"method.{name}", f"{value:g} differs from the paper's (and PEFT's) 0.85 [39]"


def _value(config: RunConfig, path: str) -> Plain:
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part, None)
    return value


def _sweep(config: RunConfig, words: Words) -> Found:
    if config.sweep is None:
        return
    for path, spread in config.sweep.search_space.items():
        value = _value(config, path)
        if value is not None and not _drawable(spread, value):
            unit = " steps" if _whole(value) is not None and "warmup" in path else ""
            text = f"{value}{unit} lies outside its own search range ({spread}) [34]"
            yield "warning", path, text
        if path in HELD_EQUAL:
            text = f"{words(path)} is searched ({spread}), but a comparison at {HELD_EQUAL[path]} holds it fixed [36]"
            yield "warning", f"sweep.search_space.{path}", text
    yield from _fixed_steps(config, words)
    yield from _cost(config)


def _drawable(spread: Distribution, value: Scalar) -> bool:
    return spread.holds(value) or (spread.choices is not None and str(value) in map(str, spread.choices))


def _fixed_steps(config: RunConfig, words: Words) -> Found:
    """Steps that mean another share of the run as soon as the search changes the batch size."""
    spread = config.sweep.search_space.get("training.batch_size") if config.sweep else None
    total = total_steps(config)
    if spread is None or config.training.epochs is None or total is None:
        return
    sizes = [size for size in spread.choices or (spread.low, spread.high) if isinstance(size, int | float) and size > 0]
    for path in ("training.warmup", "method.warmup", "method.final"):
        steps = _whole(_value(config, path))
        if not steps or not sizes:
            continue
        data = config.model_dump(mode="json")
        runs = {int(size): planned_steps(_with_batch(data, int(size))) for size in (min(sizes), max(sizes))}
        shares = ", ".join(
            f"{steps / run:.0%} of {run:,} steps at batch size {size}" for size, run in runs.items() if run
        )
        yield "warning", path, f"{steps:,} fixed steps while {words('training.batch_size')} is searched: {shares} [37]"


def _with_batch(data: dict[str, Any], size: int) -> dict[str, Any]:
    return {**data, "training": {**data["training"], "batch_size": size}}


def _cost(config: RunConfig) -> Found:
    """What a search costs, in passes over the data."""
    sweep, total = config.sweep, total_steps(config)
    if sweep is None or total is None:
        return
    data = config.model_dump(mode="json")
    per_epoch = steps_per_epoch(data)
    trained = sweep.n_trials * total
    passes = f" = {trained / per_epoch:,.4g} passes over {config.task.name}" if per_epoch else ""
    examples = trained * config.training.batch_size * config.training.gradient_accumulation_steps
    if examples > MANY_EXAMPLES:
        end = "every trial to its end: no pruner" if sweep.pruner == "none" else "if none is pruned"
        text = (
            f"{sweep.n_trials} trials x {total:,} steps = {trained:,} steps{passes} ({examples:,} examples), {end}, "
            "no time limit, no smaller stand-in for the task [46]"
        )
        yield "warning", "sweep.n_trials", text


def check_together(configs: Sequence[Named]) -> tuple[Finding, ...]:
    """Contradictions between configs that are meant to be compared with each other."""
    if len(configs) < 2:
        return ()
    return (*_missing_arms(configs), *_unequal(configs), *_unequal_search(configs))


def _missing_arms(configs: Sequence[Named]) -> Iterator[Finding]:
    methods = {named.config.method.name for named in configs}
    if "lora" not in methods:
        shown = ", ".join(sorted(methods))
        yield Finding("", f"no uniform LoRA run among the methods ({shown}): nothing to be better than [32]", "warning")
    tasks = {named.config.task.name for named in configs}
    if len(tasks) == 1 and next(iter(tasks)).startswith("glue/"):
        text = f"every run is on {next(iter(tasks))}: nothing can be said about GLUE from one of its tasks [33]"
        yield Finding("", text, "warning")
    if len({named.config.seed for named in configs}) == 1:
        seed = configs[0].config.seed
        yield Finding(
            "seed", f"every run has seed {seed}: one seed has no spread, so no difference can be judged [45]", "warning"
        )


_EQUAL = {
    "method.budget": "[35]",
    "training.batch_size": "[36]",
    "training.max_steps": "[37]",
    "training.epochs": "[37]",
    "model.name": "[48]",
    "task.max_length": "[48]",
}


def _unequal(configs: Sequence[Named]) -> Iterator[Finding]:
    """Fields that a comparison holds equal and these configs do not."""
    for path, item in _EQUAL.items():
        values = {named.name: _value(named.config, path) for named in configs if named.config.method.name != "full"}
        if len(set(values.values())) > 1:
            shown = "; ".join(f"{name}: {value}" for name, value in values.items())
            yield Finding(path, f"differs between runs that are compared ({shown}) {item}", "warning")


def _unequal_search(configs: Sequence[Named]) -> Iterator[Finding]:
    """Every arm deserves the same tuning."""
    trials = {named.name: named.config.sweep.n_trials if named.config.sweep else 0 for named in configs}
    if len(set(trials.values())) > 1:
        shown = "; ".join(f"{name}: {n}" for name, n in trials.items())
        yield Finding("sweep.n_trials", f"arms get different numbers of trials ({shown}) [39]", "warning")
    spaces = [named.config.sweep.search_space for named in configs if named.config.sweep]
    for path in sorted({path for space in spaces for path in space if not path.startswith("method.")}):
        if len({str(space.get(path)) for space in spaces}) > 1:
            yield Finding(f"sweep.search_space.{path}", "arms search different ranges [39]", "warning")
