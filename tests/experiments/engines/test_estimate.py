"""The dry run: arithmetic that can be checked by hand, from the nearest stored runs, for 10,000 runs too."""

from dataclasses import replace

import pytest
from engine_runs import configs, record_of

from rankwise.experiments.engines.estimate import ASSUMED_SECONDS_PER_STEP, Estimate, dry_run, estimates, schedule
from rankwise.experiments.store import Store


def test_runs_go_to_the_worker_that_is_free_first():
    wanted = configs(5)
    seconds = dict(zip([c.run_id for c in wanted], [100.0, 10.0, 10.0, 10.0, 50.0], strict=True))
    plan = schedule(wanted, 2, {run_id: Estimate(value, "said") for run_id, value in seconds.items()}, 36.0)
    assert plan.loads == (100.0, 80.0)
    assert plan.wall_hours == pytest.approx(100 / 3600)
    assert plan.worker_hours == pytest.approx(180 / 3600)
    assert plan.cost == pytest.approx(2.0)  # two workers, 100 s, a cent a second each
    assert plan.data()["waves"] == 3


def finished(store, config, seconds, steps=100, **changes):
    record = replace(record_of(config), **changes)
    store.begin(record)
    store.finish(replace(record, train_seconds=seconds, steps=steps))


def test_nearest_stored_runs_tell_how_long_steps_take(tmp_path):
    (lora, *_), (glora, *_) = configs(3), configs(3, "glora")
    steps = lora.training.max_steps
    with Store(tmp_path / "store.sqlite") as store:
        assert estimates([lora], store)[lora.run_id].seconds == steps * ASSUMED_SECONDS_PER_STEP
        assert "assumed: 0.5 s a step" in estimates([lora], None)[lora.run_id].source
        finished(store, glora, 30.0)
        assert estimates([lora], store)[lora.run_id].seconds == pytest.approx(steps * 0.3)
        finished(store, lora, 40.0, task="another", run_id="b")
        assert estimates([lora], store)[lora.run_id].seconds == pytest.approx(steps * 0.4)
        for number, seconds in enumerate((70.0, 50.0, 990.0)):
            finished(store, lora, seconds, run_id=f"c{number}")
        found = estimates([lora], store)[lora.run_id]
        assert found.seconds == pytest.approx(steps * 0.7)  # the median
        assert found.source == "3 stored runs of this method, model and task, 0.7 s a step"


def test_finished_runs_cost_nothing(tmp_path):
    wanted = configs(3)
    with Store(tmp_path / "store.sqlite") as store:
        finished(store, wanted[1], 10.0)
        plan = dry_run(wanted, store, 4)
    assert (plan.total, plan.done, plan.data()["to_do"], len(plan.groups)) == (3, 1, 2, 1)
    assert plan.groups[0].runs == 2
    assert plan.cost is None
    assert plan.text().splitlines()[0] == "3 runs: 1 are in the store, 2 would be done by 4 workers in 1 wave"


def test_nothing_to_do():
    plan = dry_run([], None, 3, 1.0)
    assert (plan.wall_hours, plan.cost, plan.data()["waves"]) == (0.0, 0.0, 0)


@pytest.mark.slow
@pytest.mark.timeout(300)  # it takes some seconds
def test_ten_thousand_runs():
    wanted = configs(5000) + configs(5000, "glora")
    text = dry_run(wanted, None, 64, 2.5).text()
    assert text.startswith("10,000 runs: 0 are in the store, 10,000 would be done by 64 workers in 157 waves")
    assert "cost 1,046.67: 64 workers for 6.54 h at 2.50 an hour" in text
