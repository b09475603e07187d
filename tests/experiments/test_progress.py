"""The line that is printed when a run is done tells it from the others of a plan."""

import io
from dataclasses import replace

from rich.console import Console

from rankwise.experiments.arm_progress import ArmReporter
from rankwise.experiments.plan_runs import PlannedRun
from rankwise.experiments.progress import Lines
from rankwise.experiments.records import RunRecord
from rankwise.experiments.schema import RunConfig
from rankwise.tasks.base import MetricValue

RECORD = RunRecord(
    "id", "glora", "glue/sst2", "minilm", 3, "r=4", parameters=1234, metrics={"accuracy": MetricValue(0.5, 0.01, 9)}
)


def line(record, reused=False):
    console = Console(file=io.StringIO(), width=40)
    Lines(console, 9).end(record, reused=reused)
    return console.file.getvalue()


def test_budget_task_and_rate_are_said_on_one_line():
    record = replace(RECORD, config={"training": {"learning_rate": 2e-3}}, train_seconds=1.25)
    assert line(record) == (
        "[1/9] glora at r=4 on glue/sst2, rate 0.002, seed 3: accuracy 0.5000 ± 0.0100, 1,234 parameters, 1.2 s\n"
    )


def test_what_is_not_there_is_left_out():
    assert line(replace(RECORD, budget=None), reused=True) == (
        "[1/9] glora on glue/sst2, seed 3: accuracy 0.5000 ± 0.0100, 1,234 parameters, from the store\n"
    )


def test_a_run_of_a_plan_goes_by_its_arm():
    """Two arms of one method are told apart; a trial is known by its method; what nobody planned keeps its method."""
    methods = {"open": {"name": "cogalora"}, "sparse": {"name": "cogalora", "active": 0.2}, "plain": {"name": "lora"}}
    runs = [PlannedRun(arm, "r=4", RunConfig.model_validate({"method": method})) for arm, method in methods.items()]
    twin = PlannedRun("same", "r=4", runs[2].config)
    console = Console(file=io.StringIO(), width=200)
    shown = ArmReporter(Lines(console, 4), [*runs, twin])
    for run in runs:
        trial = run.config.model_copy(update={"seed": 9})
        shown.end(replace(RECORD, method=run.config.method.name, config=trial.model_dump(mode="json")), reused=False)
    shown.end(replace(RECORD, method="stranger"), reused=False)
    names = [one.split(" at ")[0] for one in console.file.getvalue().splitlines()]
    assert names == ["[1/4] open", "[2/4] sparse", "[3/4] plain, same", "[4/4] stranger"]
