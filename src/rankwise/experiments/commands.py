"""What each command does, from plain values to plain values. The command line parses before it and prints after it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from rankwise.errors import BudgetError, ConfigError, Finding, OutputError, StoreError
from rankwise.experiments import compare as comparing
from rankwise.experiments import config as configs
from rankwise.experiments.frozen import FROZEN
from rankwise.experiments.import_record import write_run_configs
from rankwise.experiments.processes import is_first, joined
from rankwise.experiments.progress import reporter
from rankwise.experiments.report import Report, write_report
from rankwise.experiments.results import write_atomically
from rankwise.experiments.schema import RunConfig, TrainingConfig, method_registry, task_registry
from rankwise.experiments.shown import PLAN_FILE, RUNS, Shown, Summary
from rankwise.experiments.spreading import How
from rankwise.experiments.store import Store
from rankwise.experiments.table import comparison_table

HERE = How()
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Size:
    """How large a comparison is when nothing else is said."""

    seeds: int
    steps: int
    validation_examples: int | None


DEFAULT = Size(seeds=3, steps=150, validation_examples=None)
QUICK = Size(seeds=2, steps=20, validation_examples=240)


@dataclass(frozen=True)
class CompareOptions:
    """The options of `rankwise compare` as they were typed."""

    methods: str = "lora,peft_adalora,glora"
    task: str = "docstrings"
    model: str = "minilm"
    budget: str = "r=4"
    seeds: str = ""
    steps: int | None = None
    batch_size: int = 8
    learning_rate: float = 3e-3
    quick: bool = False
    text: str | None = None
    label: str | None = None
    validation: str | None = None


@joined()
def compare(
    options: CompareOptions, *, output: Path | None, store: Path | None, command: str, how: How = HERE
) -> Shown | None:
    """Run a comparison and write its report. Of several processes only the first has something to show.

    Raises:
        RankwiseError: see `experiments.compare` and `experiments.runner`.
    """
    plan = plan_of(options)
    runs = plan.configs()
    folder = output or RUNS / _folder_name(plan, runs)
    if not is_first():
        comparing.assist_all(runs, folder)
        return None
    with _open(folder, store, runs, command) as opened, reporter(len(runs)) as shown:
        _keep_plan(plan, runs, opened, folder)
        ids = how.carry_out(runs, opened, folder, shown)
        return _shown(write_report(opened, ids, folder, command=command), folder)


def plan_of(options: CompareOptions) -> comparing.Comparing:
    """The comparison that the options describe.

    Raises:
        ConfigError: a list of seeds, a budget or a task that cannot be read.
    """
    from rankwise.allocation.budget import parse_budget
    from rankwise.tasks.families import parse_task_spec

    size = QUICK if options.quick else DEFAULT
    if parse_budget(options.budget).unit == "ranks":
        raise BudgetError(
            f"budget '{options.budget}' counts ranks, but methods are compared at equal parameters; write '0.5%', "
            "'r=4' or '200k' (ranks are for `rankwise run`)"
        )
    task = parse_task_spec(
        options.task,
        text=options.text,
        label=options.label,
        validation=options.validation,
        validation_examples=size.validation_examples,
    )
    try:
        training = TrainingConfig(
            max_steps=options.steps or size.steps, batch_size=options.batch_size, learning_rate=options.learning_rate
        )
    except ValidationError as error:
        findings = [Finding(f"--{str(e['loc'][0]).replace('_', '-')}", str(e["msg"])) for e in error.errors()]
        raise ConfigError("compare", findings) from None
    methods = tuple(name.strip() for name in options.methods.split(",") if name.strip())
    seeds = parse_seeds(options.seeds or str(size.seeds))
    return comparing.Comparing(methods, task, options.model, options.budget, seeds, training)


def parse_seeds(text: str) -> tuple[int, ...]:
    """`3` is three seeds (0, 1, 2); `0,5,7` are those.

    Raises:
        ConfigError: neither, or a seed out of range.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if (
        not parts
        or not all(part.isdecimal() and int(part) < 2**32 for part in parts)
        or ("," not in text and int(parts[0]) < 1)
    ):
        message = f"'{text}' is neither a number of seeds (3) nor a list of seeds from 0 to 4294967295 (0,5,7)"
        raise ConfigError("compare", [Finding("--seeds", message)])
    if "," in text:
        return tuple(int(part) for part in parts)
    if int(parts[0]) > MOST_SEEDS:
        message = f"{text} seeds are more than {MOST_SEEDS}; for one seed of that number write '{text},'"
        raise ConfigError("compare", [Finding("--seeds", message)])
    return tuple(range(int(parts[0])))


@joined()
def run(file: Path, overrides: Sequence[str], *, output: Path | None, store: Path | None, command: str) -> Shown | None:
    """Do the run that a config file describes. Of several processes only the first has something to show.

    Raises:
        ConfigError: every error of the file at once.
        RankwiseError: what can go wrong in a run.
    """
    loaded = configs.load(file, overrides)
    folder = output or RUNS / loaded.config.run_id
    if not is_first():
        comparing.assist_all([loaded.config], folder)
        return None
    with _open(folder, store, [loaded.config], command) as opened, reporter(1) as shown:
        ids = comparing.run_all([loaded.config], opened, folder, shown)
        made = _shown(write_report(opened, ids, folder, command=command), folder)
    notes = (
        [f"{len(loaded.findings)} findings about {file}; `rankwise config check` shows them"] if loaded.findings else []
    )
    return Shown(made.tables, (*notes, *made.lines), made.content)


def report(folder: Path, *, store: Path | None) -> Shown:
    """Rebuild a run folder's report from its store; the command that made the runs stays named in results.json.

    Of a plan's folder it is the verdicts and the page.

    Raises:
        OutputError: `folder` is no run folder.
    """
    plan = comparing.read_plan(folder)
    if (folder / FROZEN).is_file() and not (folder / PLAN_FILE).is_file():
        from rankwise.experiments.plan_commands import verdict

        return verdict(folder, profile=None, output=None, store=store)
    command = str(plan.get("command", ""))
    path = store or folder / plan.get("store", comparing.STORE)
    if not path.is_file():
        raise StoreError(f"the results store of {folder} is not at {path}; name it with --store")
    with Store(path) as opened:
        return _shown(write_report(opened, list(plan["runs"]), folder, command=command), folder)


def known_names() -> dict[str, dict[str, str]]:
    """Every registered method, task, signal and metric with the first line of what it is."""
    from rankwise.allocation.signals import SIGNALS
    from rankwise.tasks.metrics import METRICS

    def first(entry: object) -> str:
        return (getattr(entry, "__doc__", None) or "").strip().partition("\n")[0]

    methods, tasks = method_registry(), task_registry()
    return {
        "methods": {name: first(methods[name]) for name in methods},
        "tasks": {name: first(tasks[name]) for name in tasks},
        "signals": {name: SIGNALS[name].summary for name in SIGNALS},
        "metrics": {name: METRICS[name].summary for name in METRICS},
    }


def task_summary(name: str, *, text: str | None, label: str | None, validation: str | None) -> Summary:
    """Statistics of a task.

    Raises:
        DataError: the task cannot be loaded.
    """
    from rankwise.tasks.families import describe_task, parse_task_spec

    config = parse_task_spec(name, text=text, label=label, validation=validation)
    data, shown = describe_task(config)
    return Summary(shown, data)


def check_configs(files: Sequence[Path], more: Sequence[str]) -> Summary:
    """Check one or several config files; `more` holds further files and `key=value` overrides.

    Raises:
        ConfigError: a file cannot be read at all.
    """
    overrides = [word for word in more if "=" in word or word.startswith(("+", "~"))]
    paths = [*files, *(Path(word) for word in more if word not in overrides)]
    checked = [configs.check(path, overrides) for path in paths]
    together = configs.check_together(checked) if len(checked) > 1 else ()
    parts, data = [], []
    for path, one in zip(paths, checked, strict=True):
        findings = "\n".join(f"{f.level}: {f}" for f in one.findings) or "no findings"
        parts.append(f"# {path}\n{one.canonical or '# cannot run: see the errors'}\n{findings}")
        entry = {"file": str(path), "canonical": one.canonical, "findings": [_plain(f) for f in one.findings]}
        data.append(entry)
    if together:
        parts.append("# together\n" + "\n".join(f"{f.level}: {f}" for f in together))
        data.append({"file": None, "canonical": None, "findings": [_plain(f) for f in together]})
    failed = any(f.level == "error" for one in checked for f in one.findings)
    return Summary("\n\n".join(parts), data, failed)


def import_configs(record: Path, output: Path) -> list[Path]:
    """Save the run configs of a research record.

    Raises:
        ConfigError: the record cannot be read.
        OutputError: a file of that name with other content exists.
    """
    return write_run_configs(record, output)


def _plain(finding: Finding) -> dict[str, str]:
    return {"level": finding.level, "path": finding.path, "message": finding.message}


def _open(folder: Path, store: Path | None, runs: Sequence[RunConfig], command: str) -> Store:
    """The store of a run folder, after the folder has been claimed: a wrong folder must not get a store."""
    path = store or folder / comparing.STORE
    comparing.claim(folder, runs, command, path)
    return Store(path)


def _keep_plan(plan: comparing.Comparing, runs: Sequence[RunConfig], store: Store, folder: Path) -> None:
    """Write `plan.yaml`, which a person may go on with, and freeze its claims.

    Those of an earlier command here that never finished a run are replaced.

    Raises:
        OutputError: such a `plan.yaml` was edited.
    """
    from rankwise.experiments.frozen import freeze, read_frozen
    from rankwise.experiments.plan_runs import load_plan
    from rankwise.experiments.plan_text import plan_text

    file = folder / PLAN_FILE
    if file.is_file() and (folder / FROZEN).is_file():
        earlier = read_frozen(folder).plan
        if {run.config.run_id for run in earlier.runs} == {config.run_id for config in runs}:
            return
        if load_plan(file).config.model_dump(exclude={"profiles"}) != earlier.config.model_dump(exclude={"profiles"}):
            raise OutputError(
                f"{file} is of another comparison and was edited; move it away or choose another --output"
            )
        (folder / FROZEN).unlink()
    write_atomically(file, plan_text(plan, _folder_name(plan, runs)).encode())
    freeze(folder, load_plan(file), store.completed())


def _folder_name(plan: comparing.Comparing, runs: Sequence[RunConfig]) -> str:
    digest = hashlib.sha256(json.dumps([config.run_id for config in runs]).encode()).hexdigest()[:6]
    words = f"compare-{plan.task.name}-{Path(plan.model).name}-{plan.budget}-{digest}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", words)


def _shown(made: Report, folder: Path) -> Shown:
    notes = sorted({f"note: {c.note}" for c in made.comparisons if c.note})
    lines = (*notes, "", *(str(path) for path in made.files), f"{folder}/checkpoints")
    return Shown((comparison_table(made.records, made.comparisons),), lines, made.content)
