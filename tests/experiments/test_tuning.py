"""Learning rates of a plan: the same trials for every arm, and grids that grow where the best is at an end."""

import dataclasses
import math
from collections import Counter

import pytest

from rankwise.errors import ConfigError, TrainingError
from rankwise.experiments.plan_runs import plan_of
from rankwise.experiments.records import RunRecord
from rankwise.experiments.runner import new_record, run
from rankwise.experiments.store import Store
from rankwise.experiments.tuning import MOST_EXTENSIONS, every_run, trials, tune, tuned
from rankwise.tasks.base import MetricValue

GRID = [0.001, 0.003, 0.009]
PLAN = {
    "name": "mine",
    "arms": {
        "lora": {"method": {"name": "lora", "dropout": 0.1}, "training": {"weight_decay": 0.1}, "reason": "its paper"},
        "glora": {"method": {"name": "glora", "warmup": 0.2}},
        "whole": "full",
    },
    "tasks": ["rte", "sst2"],
    "budgets": ["r=2", "r=4"],
    "seeds": [3, 4],
    "training": {"max_steps": 40, "batch_size": 8, "learning_rate": 5e-4},
    "protocol": {"tuning": {"learning_rates": GRID, "share": 0.2, "seed": 7}},
}


def plan(**changes):
    return plan_of(PLAN | changes, "plan.yaml")


def small(**changes):
    return plan(**({"tasks": ["rte"], "budgets": ["r=2"], "arms": {"lora": "lora", "glora": "glora"}} | changes))


RECORD = RunRecord(run_id="", method="", task="", model="", seed=0, budget=None)


class Curves:
    """Does runs by looking at a curve: the best rate of each method; keeps what it was asked for."""

    def __init__(self, best, metric="accuracy", worse=()):
        self.best, self.metric, self.worse = best, metric, worse
        self.calls = []

    def __call__(self, configs):
        self.calls.append(configs)
        found = {}
        for config in configs:
            rate = config.training.learning_rate
            if (config.method.name, rate) in self.worse:
                continue
            distance = abs(math.log(rate / self.best[config.method.name]))
            value = -distance if self.metric == "accuracy" else distance
            record = dataclasses.replace(
                RECORD, run_id=config.run_id, status="completed", metrics={self.metric: MetricValue(value, 0.1, 50)}
            )
            found[config.run_id] = record
        return found


def test_every_arm_tries_every_rate_on_held_out_examples_and_is_otherwise_as_it_is():
    found = trials(plan())
    assert len(found) == 3 * 2 * 2 * 3
    assert set(Counter((t.arm, t.task, t.budget) for t in found).values()) == {3}
    assert [t.learning_rate for t in found[:3]] == GRID
    runs = {(r.arm, r.config.task.name, r.budget): r.config for r in reversed(plan().runs)}
    for trial in found:
        config, own = trial.config, runs[trial.of]
        assert (config.evaluation.holdout, config.seed, config.training.learning_rate) == (0.2, 7, trial.learning_rate)
        assert config.method == own.method
        assert config.task == own.task
        same = {"learning_rate": own.training.learning_rate}
        assert config.training.model_copy(update=same) == own.training
    assert {t.config.training.weight_decay for t in found if t.arm == "lora"} == {0.1}
    assert not {t.config.run_id for t in found} & {r.config.run_id for r in plan().runs}


def test_the_best_rate_of_each_arm_is_chosen_without_an_extension():
    do = Curves({"lora": 0.0031, "glora": 0.0029, "full": 0.003})
    result = tune(plan(), do)
    assert set(result.rates.values()) == {0.003}
    assert len(result.rates) == 12
    assert result.notes == ()
    assert len(do.calls) == 1
    ids = [config.run_id for config in do.calls[0]]
    assert len(ids) == len(set(ids)) == 2 * 3 * (2 * 2 + 1)  # full fine-tuning is one run at both budgets
    changed = tuned(plan(), result)
    assert {run.config.training.learning_rate for run in changed.runs} == {0.003}
    assert {run.config.evaluation.holdout for run in changed.runs} == {None}
    assert [(r.arm, r.budget, r.config.seed) for r in changed.runs] == [
        (r.arm, r.budget, r.config.seed) for r in plan().runs
    ]


def test_a_best_rate_at_an_end_extends_the_grid_for_all_arms():
    do = Curves({"lora": 0.003, "glora": 0.027})
    result = tune(small(), do)
    assert result.rates == {("lora", "glue/rte", "r=2"): 0.003, ("glora", "glue/rte", "r=2"): 0.027}
    asked = [sorted((c.method.name, c.training.learning_rate) for c in configs) for configs in do.calls]
    assert asked[1:] == [[("glora", 0.027), ("lora", 0.027)], [("glora", 0.081), ("lora", 0.081)]]
    assert set(Counter(t.trial.arm for t in result.tried).values()) == {5}
    assert result.notes == (
        "glue/rte at r=2: the best learning rate of glora (0.009) is the largest of the grid; 0.027 is tried too, "
        "for all 2 arms",
        "glue/rte at r=2: the best learning rate of glora (0.027) is the largest of the grid; 0.081 is tried too, "
        "for all 2 arms",
    )
    rates = {r.arm: r.config.training.learning_rate for r in tuned(small(), result).runs}
    assert rates == {"lora": 0.003, "glora": 0.027}


def test_a_grid_grows_at_both_ends_and_only_where_it_must():
    best = {"lora": 0.0003, "glora": 0.03}
    result = tune(small(tasks=["rte", "sst2"]), Curves(best))
    tried = {task: sorted({t.trial.learning_rate for t in result.tried if t.trial.task == task})
             for task in ("glue/rte", "glue/sst2")}  # fmt: skip
    assert tried["glue/rte"] == pytest.approx([0.001 / 9, 0.001 / 3, 0.001, 0.003, 0.009, 0.027, 0.081])
    assert set(Counter((t.trial.arm, t.trial.task) for t in result.tried).values()) == {7}


def test_extensions_end_and_that_is_said():
    result = tune(small(), Curves({"lora": 100.0, "glora": 0.003}))
    assert max(t.trial.learning_rate for t in result.tried) == pytest.approx(0.009 * 3**MOST_EXTENSIONS)
    assert set(Counter(t.trial.arm for t in result.tried).values()) == {3 + MOST_EXTENSIONS}
    assert len(result.notes) == MOST_EXTENSIONS + 1
    assert "extended 3 times already, so the true best may lie beyond" in result.notes[-1]


def test_ties_go_to_the_smaller_rate():
    def plateau(configs):
        done = Curves(dict.fromkeys(("lora", "glora"), 1.0))(configs)
        for config in configs:
            value = MetricValue(0.5 if config.training.learning_rate > 0.001 else 0.4, 0.1, 9)
            done[config.run_id] = dataclasses.replace(done[config.run_id], metrics={"accuracy": value})
        return done

    assert set(tune(small(), plateau).rates.values()) == {0.003}


def test_a_metric_that_is_better_when_lower():
    result = tune(small(tasks=["stsb"], evaluation={"metrics": ["mse"]}), Curves({"lora": 3e-3, "glora": 3e-3}, "mse"))
    assert set(result.rates.values()) == {0.003}


def test_a_failed_run_counts_as_worst_and_is_said():
    result = tune(small(), Curves({"lora": 0.003, "glora": 0.003}, worse={("glora", 0.009)}))
    assert set(result.rates.values()) == {0.003}
    assert result.notes == ("glora on glue/rte at r=2: the run at learning rate 0.009 failed and counts as worst",)
    with pytest.raises(TrainingError, match="no learning rate worked for glora on glue/rte at r=2"):
        tune(small(), Curves({"lora": 0.003}, worse={("glora", rate) for rate in GRID}))


def test_a_plan_without_tuning_has_no_trials():
    bare = plan(protocol={})
    assert trials(bare) == []
    result = tune(bare, lambda configs: pytest.fail("nothing is to be run"))
    assert tuned(bare, result) == bare


def test_two_tasks_of_one_name_are_refused():
    tasks = [{"name": "files", "path": "a.csv"}, {"name": "files", "path": "b.csv"}]
    with pytest.raises(ConfigError, match="two tasks are called files"):
        trials(plan(tasks=tasks))


@pytest.mark.slow
def test_a_real_search_and_nothing_is_paid_for_twice(tmp_path, model_folder, data_file):
    files = {"name": "files", "path": str(data_file), "text": ["sentence"], "label": "verdict"}
    real = plan(
        model=str(model_folder),
        tasks=[files],
        budgets=["r=2"],
        arms={"lora": "lora", "glora": "glora"},
        seeds=1,
        training={"max_steps": 8, "batch_size": 4},
        protocol={"tuning": {"learning_rates": [1e-3, 1e-2], "share": 0.25}},
    )
    done = []
    with Store(tmp_path / "store.sqlite") as store:

        def do(configs):
            ran = [run(config, store, tmp_path) for config in configs]
            done.extend(ran)
            return {one.record.run_id: one.record for one in ran}

        result = tune(real, do)
        assert not any(one.reused for one in done)
        assert all(store.splits(one.record.run_id) == ["holdout"] for one in done)
        count = len(done)
        again = tune(real, do)
        assert all(one.reused for one in done[count:])
        assert again == result
    assert set(Counter(t.trial.arm for t in result.tried).values()) == {count // 2}
    assert (
        new_record(trials(real)[0].config).environment["inputs"]
        != new_record(real.runs[0].config).environment["inputs"]
    )


def test_what_a_plan_takes_is_its_trials_and_its_runs_each_once():
    """Full fine-tuning is the same at both budgets."""
    takes = every_run(plan())
    assert len({config.run_id for config in takes}) == len(takes)
    searched = [config for config in takes if config.evaluation.holdout is not None]
    assert (len(searched), len(takes) - len(searched)) == ((2 * 2 + 1) * 2 * 3, (2 * 2 + 1) * 2 * 2)
    assert takes[: len(searched)] == searched


def test_a_plans_cost_is_that_of_all_it_takes(monkeypatch):
    from rankwise.experiments import plan_model

    monkeypatch.setattr(plan_model, "pace_of", lambda config: plan_model.Pace(step=1.0, batch=0.0, modules=1))
    assert plan_model.seconds_of(plan()) == {"glue/rte": 25 * 40, "glue/sst2": 25 * 40}
