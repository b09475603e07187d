"""What a sweep searches: grids, what cannot be one, and the run config of a choice."""

import pytest

from rankwise.errors import ConfigError
from rankwise.experiments.config import check, from_dict
from rankwise.experiments.schema import Distribution, RunConfig, SweepConfig
from rankwise.experiments.sweep_results import Trial, best_of, notes, trials_csv
from rankwise.experiments.sweep_space import grid, grid_size, in_words, points, refusals, trial_config
from rankwise.tasks.base import MetricValue

RATE = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
SIZE = {"type": "categorical", "choices": [2, 4]}
STEPS = {"type": "int", "low": 1, "high": 3}
RATES = "training.learning_rate"


def config(space=None, sweep=None, **sections):
    search = {"search_space": space or {RATES: RATE}} | (sweep or {})
    return RunConfig.model_validate({"task": "glue/rte", "sweep": search} | sections)


def said(found):
    return [str(finding) for finding in found]


def test_points_of_a_grid():
    def of(count=None, **fields):
        return points(Distribution.model_validate(fields), count)

    assert of(**SIZE) == [2, 4]
    assert of(**STEPS) == [1, 2, 3]
    assert of(3, **RATE) == [1e-4, 1e-3, 1e-2]
    assert of(3, type="float", low=0.0, high=0.5) == [0.0, 0.25, 0.5]
    assert of(3, type="int", low=1, high=100, log=True) == [1, 10, 100]
    assert of(9, **STEPS) == [1, 2, 3]  # no value twice


def test_a_grid_is_every_combination():
    sweep = config({RATES: RATE, "training.batch_size": SIZE}, {"sampler": "grid", "grid_points": 3}).sweep
    found = grid(sweep)
    assert len(found) == grid_size(sweep) == 6
    assert found[0] == {RATES: 1e-4, "training.batch_size": 2}
    assert len({tuple(values.items()) for values in found}) == 6
    assert list(found[1].values()) == [1e-4, 4]


def test_what_cannot_be_swept_is_said_all_at_once():
    space = {RATES: RATE, "seed": STEPS, "evaluation.batch_size": SIZE}
    found = said(refusals(config(space, {"sampler": "grid"}, evaluation={"holdout": 0.2})))
    assert len(found) == 4
    assert found[0].startswith("sweep.search_space.seed: a seed is no setting")
    assert found[1].startswith("sweep.search_space.evaluation.batch_size: decides how trials are measured")
    assert found[2].startswith("evaluation.holdout: is 0.2, but a sweep measures its trials on sweep.holdout (0.1")
    assert found[3].startswith(f"sweep.search_space.{RATES}: a float range (0.0001 to 0.01) has no end of values")
    assert "nothing is searched" in said(refusals(RunConfig()))[0]


def test_a_grid_larger_than_its_trials_is_refused():
    many = config({RATES: RATE, "training.batch_size": SIZE}, {"sampler": "grid", "grid_points": 3, "n_trials": 5})
    assert said(refusals(many)) == [
        "sweep.n_trials: 5, but the grid has 6 points (3 x 2); raise it to 6, or search less"
    ]
    assert refusals(config({RATES: RATE}, {"sampler": "grid", "grid_points": 3, "n_trials": 3})) == []


def test_the_run_of_a_choice():
    made = trial_config(config(), {RATES: 2e-3, "method.budget": "r=2"}, 0.2)
    assert (made.training.learning_rate, made.method.budget) == (2e-3, "r=2")
    assert (made.evaluation.holdout, made.sweep) == (0.2, None)
    assert made.run_id == trial_config(config(), {"method.budget": "r=2", RATES: 2e-3}, 0.2).run_id
    assert trial_config(config(), {RATES: 2e-3}, None).evaluation.holdout is None


def test_a_searched_length_replaces_the_other_one():
    made = trial_config(config(training={"max_steps": 40}), {"training.epochs": 2}, None)
    assert (made.training.max_steps, made.training.epochs) == (None, 2)


def test_a_choice_that_cannot_run_is_refused():
    with pytest.raises(ConfigError, match="the learning rate would never reach its peak"):
        trial_config(config(training={"max_steps": 40}), {"training.warmup": 50}, None)


def test_the_direction_is_that_of_the_metric():
    def errors(**sweep):
        data = {
            "task": "glue/stsb",
            "evaluation": {"metrics": ["mse"]},
            "sweep": {"search_space": {RATES: RATE}} | sweep,
        }
        from rankwise.errors import ConfigError as Refused

        try:
            from_dict(data)
        except Refused as error:
            return str(error)
        return ""

    assert "sweep.direction: maximize, but mse is better when lower; write minimize, or leave it out" in errors(
        direction="maximize"
    )
    assert errors(direction="minimize") == errors() == ""


def test_a_holdout_makes_epochs_shorter(tmp_path):
    text = "task: glue/rte\ntraining: {epochs: 1, batch_size: 1, warmup: 2300}\n"
    (tmp_path / "whole.yaml").write_text(text)
    (tmp_path / "held.yaml").write_text(text + "evaluation: {holdout: 0.1}\n")
    assert not check(tmp_path / "whole.yaml").errors
    assert "2,300 steps of a run of 2,241" in str(check(tmp_path / "held.yaml").errors[0])


def trial(number, value=None, **fields):
    return Trial(
        number,
        fields.pop("state", "complete"),
        fields.pop("values", {RATES: 1e-3}),
        None if value is None else MetricValue(value, 0.01, 50),
        fields.pop("run_id", f"run-{number}"),
        fields.pop("reason", ""),
        1.0,
    )


def test_the_best_trial_and_what_must_be_known_about_it():
    sweep = config().sweep
    high = {RATES: 9.9e-3}
    found = [
        trial(0, 0.7),
        trial(1, 0.8, values=high),
        trial(2, 0.8, run_id="run-0"),
        trial(3, state="pruned", reason="worse"),
    ]
    best = best_of(found, "maximize")
    assert best.number == 1
    assert best_of(found, "minimize").number == 0
    text = "\n".join(notes(sweep, "accuracy", found, best))
    assert "1 of 4 trials pruned" in text
    assert "1 of 4 trials repeated the run of another" in text
    assert f"{RATES}: the best value (0.0099) is the largest of what is searched (0.0001 to 0.01)" in text
    assert "largest" not in "\n".join(notes(sweep, "accuracy", found, found[0]))
    lines = trials_csv(sweep, "accuracy", found).splitlines()
    assert lines[0] == f"trial,state,{RATES},accuracy,se,n,train_seconds,run_id,reason"
    assert lines[4] == "3,pruned,0.001,,,,1.000,run-3,worse"
    assert in_words(high) == "learning_rate 0.0099"


def test_fields_of_a_sweep_have_defaults():
    sweep = SweepConfig()
    assert (sweep.sampler, sweep.pruner, sweep.holdout, sweep.seeds, sweep.direction) == ("tpe", "none", 0.1, 3, None)
