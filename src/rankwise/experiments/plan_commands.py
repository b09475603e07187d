"""What `compare PLAN` and `verdict` do, from plain values to plain values."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankwise.errors import AllocationError, ConfigError, DivergedError, Finding, OutputError, StoreError, TrainingError
from rankwise.experiments import compare as comparing
from rankwise.experiments.arm_progress import ArmReporter
from rankwise.experiments.environment import machine, versions
from rankwise.experiments.frozen import FROZEN, check_frozen, freeze
from rankwise.experiments.judgement import Judgement, at_rates, completed, judgement
from rankwise.experiments.plan_check import refuse
from rankwise.experiments.plan_runs import Plan, PlannedRun, load_plan
from rankwise.experiments.plan_table import arm_rows, arms_table, rows_data
from rankwise.experiments.processes import is_first, joined
from rankwise.experiments.progress import reporter
from rankwise.experiments.records import RunRecord
from rankwise.experiments.results import write_atomically
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.shown import RUNS, Shown, Summary
from rankwise.experiments.spreading import How
from rankwise.experiments.store import Store
from rankwise.experiments.tuning import TuningResult, every_run, trials, tune, tuned
from rankwise.experiments.verdict_table import as_data, verdict_table

VERDICTS = "verdicts.json"


@joined()
def compare_plan(
    file: Path, *, profile: str | None, output: Path | None, store: Path | None, command: str, how: How
) -> Shown | None:
    """Do what is missing of a plan's runs, and judge its claims. Of several processes only the first shows something.

    Raises:
        ConfigError: the plan cannot answer its own claims, or is none.
        RankwiseError: what can go wrong in a run.
    """
    plan = load_plan(file, profile)
    folder = output or default_folder(plan)
    if not is_first():
        comparing.follow(folder)
        return None
    refuse(plan)
    begun = (folder / FROZEN).is_file()
    if begun:
        check_frozen(folder, plan)
    doing = Doing(folder, store or folder / comparing.STORE, command, how, plan.runs)
    first = [trial.config for trial in trials(plan)] or [run.config for run in plan.runs]
    comparing.claim(folder, first, command, doing.store, more=begun)
    with Store(doing.store) as opened:
        freeze(folder, plan, opened.completed())
        chosen = tuned(plan, tune(plan, lambda configs: doing.try_out(configs, opened)))
        try:
            doing.carry_out([run.config for run in chosen.runs], opened)
        except TrainingError as error:
            judge(folder, opened, plan, command)
            raise TrainingError(f"{error}\nWhat is done is judged in {folder / VERDICTS}") from error
        comparing.lead(None)
        return judge(folder, opened, plan, command)


@dataclass(frozen=True)
class Doing:
    """Where and how runs are done."""

    folder: Path
    store: Path
    command: str
    how: How
    runs: Sequence[PlannedRun]
    """Of the plan, at whatever rates: they give its arms their names."""

    def carry_out(self, configs: Sequence[RunConfig], store: Store) -> dict[str, RunRecord]:
        """Do the missing ones of these runs, each once; returns the completed ones by run id."""
        once = list({config.run_id: config for config in configs}.values())
        comparing.claim(self.folder, once, self.command, self.store, more=True)
        comparing.lead(once)
        with reporter(len(once)) as shown:
            self.how.carry_out(once, store, self.folder, ArmReporter(shown, self.runs))
        return completed([config.run_id for config in once], store)

    def try_out(self, configs: Sequence[RunConfig], store: Store) -> dict[str, RunRecord]:
        """The same for trials: one that fails by itself (its learning rate is too high, say) counts as the worst.

        Those that diverged before are not done again: they would diverge at the same step.

        Raises:
            TrainingError: trials did not even fail, their workers were lost.
        """
        open_ones = [config for config in configs if not _diverged(store.get(config.run_id))]
        try:
            return self.carry_out(open_ones, store)
        except (TrainingError, AllocationError):
            there = [store.get(config.run_id) for config in open_ones]
            if any(record is None or record.status not in ("completed", "failed") for record in there):
                raise
            failed = [f"\n  {one.run_id}: {one.error}" for one in there if one is not None and one.status == "failed"]
            message = f"rankwise: {len(failed)} of {len(open_ones)} trials failed, and count as the worst:"
            print(message, *failed, sep="", file=sys.stderr)
            return completed([config.run_id for config in open_ones], store)


def _diverged(record: RunRecord | None) -> bool:
    return record is not None and record.status == "failed" and DivergedError.MARK in (record.error or "")


def verdict(where: Path, *, profile: str | None, output: Path | None, store: Path | None) -> Shown:
    """Judge the claims of a plan from the store, without running anything.

    Args:
        where: a run folder of `compare PLAN`, or a plan's file.
        profile: of the file.
        output: run folder that belongs to the file, if it is not the default one.
        store: results store, if it is not the run folder's.

    Raises:
        OutputError: no plan was run there.
        StoreError: there is no results store.
    """
    folder, now = _where(where, profile, output)
    written = comparing.read_plan(folder)
    path = store or folder / written.get("store", comparing.STORE)
    if not path.is_file():
        raise StoreError(f"the results store of {folder} is not at {path}; name it with --store")
    with Store(path) as opened:
        return judge(folder, opened, now, str(written.get("command", "")))


def _where(where: Path, profile: str | None, output: Path | None) -> tuple[Path, Plan | None]:
    """The run folder, and the plan as its file says now (None for a folder)."""
    if where.is_dir():
        for option, given in (("--profile", profile), ("--output", output)):
            if given is not None:
                raise ConfigError("verdict", [Finding(option, f"is for a plan's file; {where} is a run folder")])
        return where, None
    now = load_plan(where, profile)
    folder = output or default_folder(now)
    if not (folder / FROZEN).is_file():
        raise OutputError(f"{folder} holds no {FROZEN}: run `rankwise compare {where}` first, or name its --output")
    check_frozen(folder, now)
    return folder, now


def judge(folder: Path, store: Store, now: Plan | None, command: str) -> Shown:
    """Write `verdicts.json` and the page, from the frozen plan of a folder, later claims of `now`, and the store."""
    from rankwise.experiments.folder_report import report_of
    from rankwise.experiments.html.writing import write_html

    found = judgement(folder, store, now)
    content = _content(found, command)
    write_atomically(folder / VERDICTS, json.dumps(content, indent=1, ensure_ascii=False).encode())
    page = write_html(report_of(found, command), store, folder)[0]
    runs = _runs(found)
    tables = [arms_table(arm_rows(runs, _completed(found)))]
    if found.verdicts:
        tables.append(verdict_table(found.verdicts, found.frozen.plan.config.protocol.alpha))
    return Shown(tuple(tables), (*found.notes, "", str(folder / VERDICTS), str(page)), content)


def _content(found: Judgement, command: str) -> dict[str, Any]:
    config, done = found.frozen.plan.config, _completed(found)
    return {
        "plan": config.name,
        "question": config.question,
        "profile": found.frozen.plan.profile,
        "protocol": config.protocol.model_dump(mode="json"),
        "verdicts": [as_data(each) for each in found.verdicts],
        "runs": rows_data(arm_rows(_runs(found), done)),
        "tuning": [] if found.tuning is None else _tuning_data(found.tuning),
        "notes": list(found.notes),
        "command": command,
        "machine": _of_runs(done, "machine") or machine(),
        "versions": _of_runs(done, "versions") or versions(),
    }


def _tuning_data(result: TuningResult) -> list[dict[str, Any]]:
    return [
        {
            "arm": one.trial.arm,
            "task": one.trial.task,
            "budget": one.trial.budget,
            "learning_rate": one.trial.learning_rate,
            "metric": one.metric,
            "value": None if one.value is None else one.value.value,
            "chosen": result.rates.get(one.trial.of) == one.trial.learning_rate,
            "run_id": one.trial.config.run_id,
        }
        for one in result.tried
    ]


def _runs(found: Judgement) -> list[Any]:
    """Every run of the plans once, in order."""
    return list({(run.arm, run.budget, run.config.run_id): run for plan in found.plans for run in plan.runs}.values())


def _completed(found: Judgement) -> dict[str, RunRecord]:
    return {name: record for name, record in found.records.items() if record.status == "completed"}


def default_folder(plan: Plan) -> Path:
    """Where a plan's runs go if nothing else is said."""
    return RUNS / (plan.config.name + (f"-{plan.profile}" if plan.profile else ""))


def dry_run(
    file: Path, *, profile: str | None, output: Path | None, store: Path | None, how: How, price: float | None
) -> Summary:
    """What a plan's missing runs would take on so many workers. Trials that extend a grid are not foreseen.

    Raises:
        ConfigError: the plan is none, or cannot answer its claims.
        RankwiseError: no such engine, or its options mean nothing.
    """
    from rankwise.experiments.engines.estimate import dry_run as schedule

    plan = load_plan(file, profile)
    refuse(plan)
    workers, known = how.at_once()
    path = store or (output or default_folder(plan)) / comparing.STORE
    with Store(path) if path.is_file() else nullcontext() as opened:
        tuned_plan = plan if opened is None else at_rates(plan, opened)[0]
        found = schedule(every_run(tuned_plan), opened, workers, price)
    found = replace(found, workers_from=known)
    return Summary(found.text(), found.data())


def _of_runs(records: Mapping[str, RunRecord], name: str) -> object:
    return next((record.environment.get(name) for record in records.values()), None)
