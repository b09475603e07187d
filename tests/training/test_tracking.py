"""Trackers are passed through: what TensorBoard gets, what is refused, and that a run stays the run it was."""

import pytest
from tiny_files import write_data
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from rankwise.errors import ConfigError, MissingPackageError
from rankwise.experiments.config import from_dict
from rankwise.experiments.runner import run
from rankwise.experiments.store import Store


@pytest.fixture
def config(tmp_path, model_folder):
    data = write_data(tmp_path / "tiny.csv", 80)

    def made(*report_to):
        return from_dict(
            {
                "method": "glora",
                "model": str(model_folder),
                "task": {"name": "files", "path": str(data), "text": ["sentence"], "label": "verdict"},
                "training": {"max_steps": 30, "batch_size": 8, "report_to": report_to},
            }
        ).config

    return made


def done(config, folder):
    with Store(folder / "store.sqlite") as store:
        return run(config, store, folder).record


class Listener(TrainerCallback):
    """A tracker that writes down what it is told."""

    heard: list = []  # noqa: RUF012 - Trainer makes the instance

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.heard.append((args.run_name, state.global_step, dict(logs)))


def test_a_tracker_hears_of_loss_and_rate_and_of_the_end(config, tmp_path, monkeypatch):
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mlflow", Listener)
    monkeypatch.setattr(Listener, "heard", [])
    record = done(config("mlflow"), tmp_path / "a")
    steps = [(step, logs) for name, step, logs in Listener.heard if "learning_rate" in logs]
    assert [step for step, _ in steps] == [10, 20, 30]
    assert all({"loss", "grad_norm"} <= set(logs) for _, logs in steps)
    assert {name for name, _, _ in Listener.heard} == {record.run_id}
    assert Listener.heard[-1][2]["eval_validation_loss"] == pytest.approx(record.metrics["loss"].value, rel=1e-4)


def test_the_run_is_the_same_with_and_without(config, tmp_path, monkeypatch):
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mlflow", Listener)
    with_one, without = config("mlflow"), config()
    assert with_one.run_id == without.run_id
    one, other = done(with_one, tmp_path / "a"), done(without, tmp_path / "b")
    assert one.metrics == other.metrics
    assert one.rank_pattern == other.rank_pattern


def test_tensorboard_writes_beside_the_runs(config, tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    record = done(config("tensorboard"), tmp_path / "a")
    events = reader.EventAccumulator(str(tmp_path / "a" / "tracking" / record.run_id)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [10, 20, 30]
    assert len(events.Scalars("eval/validation_loss")) == 1
    assert not (tmp_path / "a" / "unfinished").exists()


def test_unknown_and_missing_trackers(config, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"training\.report_to: no tracker 'tensorbord', did you mean 'tensorboard'"):
        done(config("tensorbord"), tmp_path / "a")
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    with pytest.raises(MissingPackageError, match="TensorBoardCallback requires tensorboard to be installed"):
        done(config("tensorboard"), tmp_path / "b")
