"""A comparison: several methods, one task, one budget, paired seeds. Builds the runs and does the missing ones."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rankwise.errors import (
    AllocationError,
    ConfigError,
    DivergedError,
    Finding,
    OutputError,
    RankwiseError,
    TrainingError,
)
from rankwise.experiments.progress import Reporter
from rankwise.experiments.results import write_atomically
from rankwise.experiments.runner import CHECKPOINTS, assist, data_of, inputs_of, run, total_steps
from rankwise.experiments.schema import ModelConfig, RunConfig, TrainingConfig, method_registry
from rankwise.experiments.store import Store
from rankwise.experiments.store_merge import Shard, no_worker
from rankwise.experiments.sweep_locks import cleared, locked, locks_of
from rankwise.tasks.base import TaskConfig

PLAN = "comparison.json"
STORE = "store.sqlite"


@dataclass(frozen=True)
class Comparing:
    """What is compared. Every method gets the same task, budget, training and seeds; nothing is tuned for one alone."""

    methods: tuple[str, ...]
    task: TaskConfig
    model: str
    budget: str
    seeds: tuple[int, ...]
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def configs(self) -> list[RunConfig]:
        """One run per seed and method, seed by seed, so that paired runs are near in time.

        Raises:
            ConfigError: every problem at once: unknown or repeated methods, repeated seeds, bad values.
        """
        self._check()
        return [self._config(method, seed) for seed in self.seeds for method in self.methods]

    def _config(self, method: str, seed: int) -> RunConfig:
        budgeted = "budget" in method_registry()[method].model_fields
        settings = {"name": method} | ({"budget": self.budget} if budgeted else {})
        try:
            return RunConfig.model_validate(
                {
                    "model": ModelConfig(name=self.model),
                    "task": self.task,
                    "method": settings,
                    "training": self.training,
                    "seed": seed,
                }
            )
        except ValidationError as error:
            findings = [
                Finding(".".join(map(str, e["loc"])), f"{e['msg']}, got {e['input']!r}") for e in error.errors()
            ]
            raise ConfigError("compare", findings) from None

    def _check(self) -> None:
        known = method_registry()
        findings = [Finding("--methods", known.explain(m)) for m in self.methods if m not in known]
        findings += _repeated("--methods", self.methods) + _repeated("--seeds", self.seeds)
        if not self.methods:
            findings.append(Finding("--methods", f"empty; name at least one of {', '.join(known)}"))
        if not self.seeds:
            findings.append(Finding("--seeds", "empty; give a number of seeds (3) or a list (0,1,2)"))
        if findings:
            raise ConfigError("compare", findings)


def _repeated(option: str, values: Sequence[object]) -> list[Finding]:
    twice = sorted({str(v) for v in values if list(values).count(v) > 1})
    return [Finding(option, f"named twice: {', '.join(twice)}")] if twice else []


def run_all(configs: Sequence[RunConfig], store: Store, output: Path, reporter: Reporter) -> list[str]:
    """Do the missing ones of these runs; returns the run ids in order. Finished runs survive any interruption.

    Raises:
        TrainingError: runs failed by themselves; the others were done all the same. A single run raises its own error.
        RankwiseError: a config, data, model or output problem, which ends everything at once.
    """
    refuse_impossible(configs)
    failed: dict[str, str] = {}
    for config in configs:
        try:
            with _alone(config, store, output.resolve()):
                run(config, store, output, reporter)
        except RankwiseError as error:
            if len(configs) == 1 or not isinstance(error, _survived()):
                raise
            failed[config.run_id] = str(error)
            reporter.skip(f"{config.method.name}, seed {config.seed}: failed: {error}")
    refuse_failed(failed, len(configs))
    return [config.run_id for config in configs]


@contextmanager
def _alone(config: RunConfig, store: Store, output: Path) -> Iterator[None]:
    """Keep other commands from doing the same run at the same time, with this store or in this folder."""

    def say() -> None:
        print(f"rankwise: another command is doing {config.run_id}; this one waits for it", file=sys.stderr)

    folder, shard = locks_of(store.path), Shard(output, config.run_id)
    with (
        cleared(folder),
        locked(folder, config.run_id, busy=say, tidy=True),
        no_worker(shard, store, lambda: inputs_of(config), say),
    ):
        yield


def refuse_failed(failed: Mapping[str, str], of: int) -> None:
    """Say which runs failed, and why.

    Raises:
        TrainingError: there are such runs.
    """
    if failed:
        listed = "".join(f"\n  {run_id}: {reason}" for run_id, reason in failed.items())
        raise TrainingError(
            f"{len(failed)} of {of} runs failed; the others are kept, and the same command tries the failed ones "
            f"again:{listed}"
        )


def _survived() -> tuple[type[RankwiseError], ...]:
    """What one run can fail with while others go well; not a budget that cannot be met, which is wrong use.

    Of several processes, only what all of them raise together.
    """
    from rankwise.adapters.distributed import world_size

    return (TrainingError, AllocationError) if world_size() == 1 else (DivergedError,)


def lead(configs: Sequence[RunConfig] | None) -> None:
    """Tell the processes that `follow` which runs come next; None: there are no more."""
    from rankwise.adapters.distributed import broadcast_object

    broadcast_object(None if configs is None else [config.canonical() for config in configs])


def follow(output: Path) -> None:
    """What every process but the first does where only that one knows which runs come next (rates are tuned, say)."""
    from rankwise.adapters.distributed import broadcast_object

    led: list[str] | None = None
    while (texts := broadcast_object(led)) is not None:
        assist_all([RunConfig.model_validate_json(text) for text in texts], output)


def assist_all(configs: Sequence[RunConfig], output: Path) -> None:
    """What every process but the first does while that one is in `run_all`."""
    refuse_impossible(configs)
    for config in configs:
        with suppress(*_survived()):
            assist(config, output)


def refuse_impossible(configs: Sequence[RunConfig]) -> None:
    """Before the first run, not after hours: what no method can do in the steps there are.

    Raises:
        ConfigError: with every problem.
    """
    from rankwise.adapters.distributed import world_size
    from rankwise.training.fit import split_evenly

    found: dict[Finding, None] = {}
    for config in configs:
        split_evenly(config.training.batch_size, world_size())
        steps = total_steps(config, len(data_of(config).train))
        found |= {replace(f, path=f"{config.method.name}: {f.path}"): None for f in config.method.check(steps)}
    if found:
        raise ConfigError("compare" if len(configs) > 1 else "run", list(found))


def claim(output: Path, configs: Sequence[RunConfig], command: str, store: Path, *, more: bool = False) -> None:
    """Mark a run folder as belonging to these runs, or find that it does already.

    A folder that was claimed for other runs, none of which was ever finished, is free to take; with `more` these runs
    are added to those that are there.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
    """
    content: dict[str, Any] = {
        "command": command,
        "store": os.path.relpath(store, output),
        "runs": {config.run_id: config.model_dump(mode="json") for config in configs},
    }
    plan = output / PLAN
    if plan.is_file():
        known = read_plan(output)
        if more:
            content["runs"] = known["runs"] | content["runs"]
        if list(known["runs"]) == list(content["runs"]):
            return
        if more:
            write_atomically(plan, _json(content))
            return
        if any((output / CHECKPOINTS).glob("*")):
            raise OutputError(
                f"{output} holds another comparison ({_difference(known['runs'], content['runs'])}); choose another "
                f"--output. To use its finished runs again, add --store {output / STORE}"
            )
        write_atomically(plan, _json(content))
        return
    try:
        foreign = output.is_dir() and [p.name for p in output.iterdir() if not p.name.startswith((STORE, "."))]
        if (output.exists() and not output.is_dir()) or foreign:
            what = f"holds other files ({', '.join(sorted(foreign)[:3])})" if foreign else "is a file"
            raise OutputError(f"{output} {what}; choose another --output, nothing is overwritten")
        output.mkdir(parents=True, exist_ok=True)
    except PermissionError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}; choose another --output") from error
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {output}: {error.strerror or error}; choose another --output") from error
    write_atomically(plan, _json(content))


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def read_plan(output: Path) -> dict[str, Any]:
    """The `comparison.json` of a run folder.

    Raises:
        OutputError: there is none, or it is damaged.
    """
    path = output / PLAN
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OutputError(f"{output} is no run folder: it holds no {PLAN}") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {path}: {error}") from error
    if not isinstance(plan, dict) or not isinstance(plan.get("runs"), dict):
        raise OutputError(f"cannot read {path}: it holds no 'runs'")
    return plan


def _difference(known: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first few settings in which two comparisons differ, in words."""

    def values(runs: dict[str, Any]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for config in runs.values():
            for section, content in config.items():
                entries = content.items() if isinstance(content, dict) else [("", content)]
                for name, value in entries:
                    found.setdefault(f"{section}.{name}".rstrip("."), set()).add(str(value))
        return found

    old, new = values(known), values(wanted)
    parts = [
        f"{key}: {', '.join(sorted(old.get(key, {'-'})))} there, {', '.join(sorted(new.get(key, {'-'})))} here"
        for key in new | old
        if old.get(key) != new.get(key)
    ]
    return "; ".join(parts[:3]) or "in another order"
