"""A made-up plan for tests of the report: its runs in a real store, and all five words of a verdict."""

import json
import math
from dataclasses import replace

import numpy as np

from rankwise.experiments.frozen import freeze
from rankwise.experiments.html.inputs import ReportInput, ReportRun, TuningRow
from rankwise.experiments.plan_runs import plan_of
from rankwise.experiments.records import RunRecord
from rankwise.experiments.verdicts import verdicts
from rankwise.tasks.base import MetricValue

KINDS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
         "intermediate.dense", "output.dense")  # fmt: skip
MODULES = [f"encoder.layer.{layer}.{kind}" for layer in range(6) for kind in KINDS]
TASKS = ("glue/rte", "glue/cola")
EVIL = '<script>alert("1")</script>'
BASE = {"kind": "superiority", "arm": "glora", "reference": "lora"}
CLAIMS = [
    BASE | {"id": "C1", "text": f"GLoRA beats uniform LoRA at equal parameters {EVIL}", "source": "record 000"},
    BASE | {"id": "C2", "text": "GLoRA gains more than four points", "margin": 0.04},
    BASE | {"id": "C3", "text": "Random ranks do no harm", "kind": "non-inferiority", "arm": "random",
            "margin": 0.0015, "tasks": "glue/rte"},
    BASE | {"id": "C4", "text": "Full fine-tuning is no better than GLoRA", "arm": "full", "kind": "bound",
            "reference": "glora", "at_most": 0.01},
    {"id": "C5", "text": "GLoRA is what practitioners prefer", "kind": "not-testable", "reason": "nobody was asked"},
    BASE | {"id": "C6", "text": "It takes at most a tenth longer", "kind": "bound", "metric": "train_seconds",
            "at_most": 1.1},
    BASE | {"id": "C8", "text": "Random ranks win at twice the budget", "tasks": "glue/cola",
            "arm": "random", "budgets": "r=8"},
    BASE | {"id": "C7", "text": "As many parameters", "kind": "equivalence", "metric": "parameters", "margin": 0.01},
]  # fmt: skip


def plan(seeds=3):
    data = {
        "name": "which-ranks",
        "question": "Does it matter where the ranks go?",
        "arms": {"lora": "lora", "glora": "glora", "random": "random", "full": "full"},
        "tasks": list(TASKS),
        "budgets": ["r=4", "r=8"],
        "seeds": seeds,
        "claims": CLAIMS,
    }
    return plan_of(data, "plan.yaml")


def record_of(run, model="minilm"):
    """What a run might have come to."""
    seed, task, arm = run.config.seed, run.config.task.name, run.arm
    rng = np.random.default_rng([seed, len(task), len(arm), len(run.budget)])
    gain = {"glora": 0.02, "full": 0.035}.get(arm, 0.0)
    value = 0.6 + 0.1 * (task == "glue/cola") + 0.012 * seed + gain + float(rng.normal(0, 0.003))
    size = 4 if run.budget == "r=4" else 8
    ranks = {
        "lora": dict.fromkeys(MODULES, size),
        "glora": {name: int(rng.integers(0, 2 * size)) for name in MODULES},
        "random": {name: int(rng.integers(0, 2 * size)) for name in MODULES},
    }.get(arm, {})
    main = "matthews_correlation" if task == "glue/cola" else "accuracy"
    return RunRecord(
        run_id=run.config.run_id,
        method=run.config.method.name,
        task=task,
        model=model,
        seed=seed,
        budget=None if arm == "full" else run.budget,
        status="completed",
        parameters=22_713_216 if arm == "full" else 36_864 * size,
        peak_parameters=22_713_216 if arm == "full" else 36_864 * size * (1 + (arm == "glora")),
        metrics={main: MetricValue(value, 0.02, 60), "loss": MetricValue(1 - value, 0.03, 60)},
        train_seconds=20.0 + seed + {"glora": 1.0 + 0.05 * seed, "full": 9.0}.get(arm, 0.0),
        costs={"peak_memory_bytes": (900.0 + {"full": 300, "glora": 10}.get(arm, 0) + seed) * 2**20},
        steps=150,
        rank_pattern=ranks,
        config=run.config.model_dump(mode="json"),
        environment={"machine": {"cores": 2, "processor": "a processor"}, "versions": {"torch": "2.9.1"}, "code": "c0"},
    )


def save(store, record, *, curves=True, predictions=True):
    """Through the store's own doors."""
    store.begin(record)
    rng = np.random.default_rng(record.seed)
    if curves:
        falls = [(s, "train_loss", 0.7 * math.exp(-s / 60) + 0.1 + float(rng.normal(0, 0.03))) for s in range(1, 151)]
        store.add_steps(record.run_id, falls)
    if predictions:
        right = np.arange(60) % 2
        share = next(iter(record.metrics.values())).value
        wrong = rng.random(60) > share
        store.add_predictions(record.run_id, "validation", np.where(wrong, 1 - right, right), right)
    store.finish(record)


def fill(store, planned, *, leave=0):
    """Save a plan's runs but the last few; returns the saved records by run id."""
    found = {}
    runs = {run.config.run_id: run for run in planned.runs}
    for run in list(runs.values())[: len(runs) - leave]:
        record = record_of(run)
        save(store, record)
        found[record.run_id] = record
    return found


def trials(arms=("lora", "glora", "random")):
    rates = (3e-4, 1e-3, 3e-3, 1e-2)
    best = {"lora": 1e-3, "glora": 3e-3, "random": 1e-2}
    return tuple(
        TuningRow(arm, task, "r=4", rate, 0.6 - 0.03 * abs(math.log10(rate / best[arm])), rate == best[arm],
                    "accuracy", 0.02, 249)
        for task in TASKS for arm in arms for rate in rates
    )  # fmt: skip


def report_of(planned, records, *, extra=()):
    """A report of a plan, whose claim C6 came after the first run and whose last claim's runs are missing."""
    found = [
        replace(verdict, post_hoc=verdict.claim.id == "C6")
        for verdict in verdicts(planned.config, planned.runs, records)
    ]
    return ReportInput(
        title=planned.config.name,
        question=planned.config.question,
        runs=tuple(
            ReportRun(records[run.config.run_id], run.arm, run.budget)
            for run in planned.runs
            if run.config.run_id in records
        )
        + tuple(extra),
        verdicts=tuple(found),
        tuning=trials(),
        waiting=tuple(dict.fromkeys(run.config.run_id for run in planned.runs if run.config.run_id not in records)),
        notes=("made of synthetic numbers",),
        command="rankwise plan run plan.yaml --store postgresql://me:secret@localhost/runs",
    )


def failed(run, error=f"TrainingError: diverged {EVIL}"):
    return replace(record_of(run), run_id="failed-run", status="failed", error=error, metrics={})


def write_folder(folder, planned):
    """What `compare PLAN` leaves in a run folder beside the store."""
    runs = {run.config.run_id: run.config.model_dump(mode="json") for run in planned.runs}
    content = {"command": "rankwise compare plan.yaml", "store": "store.sqlite", "runs": runs}
    (folder / "comparison.json").write_text(json.dumps(content))
    freeze(folder, planned, ())
