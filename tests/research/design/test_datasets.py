"""Which dataset is meant, whether it is that one, and whether it is here."""

import json

import pytest

from rankwise.experiments.schema import task_config
from rankwise.research.artefacts import Dataset
from rankwise.research.datasets import identity, task_entry, task_named, why_no_model, why_not_here


@pytest.mark.parametrize(
    ("said", "task"),
    [
        ("GLUE MNLI", "glue/mnli"),
        ("SST-2 (one sentence)", "glue/sst2"),
        ("somebody/copy-of-glue-mnli", "glue/mnli"),
        ("docstring", "docstrings"),
        ("SQuAD", None),
        ("", None),
    ],
)
def test_names(said, task):
    assert task_named(said) == task


def test_a_copy_with_other_rows_or_columns_is_another_dataset():
    copy = Dataset(task="glue/mnli", said="somebody/mnli", rows=1_119_828, columns=("x", "y", "text"))
    rows, columns = identity(copy)
    assert "1,119,828 training rows" in rows
    assert "392,702" in rows
    assert "premise, hypothesis, label" in columns


def test_the_real_one_passes():
    assert identity(Dataset(task="glue/mnli", rows=392_702, columns=("premise", "hypothesis", "label", "idx"))) == []
    assert identity(Dataset(task="glue/rte")) == []
    assert identity(Dataset(task="docstrings", rows=3)) == []


def test_data_that_are_here(tmp_path, monkeypatch):
    monkeypatch.delenv("RANKWISE_DATA", raising=False)
    assert "RANKWISE_DATA" in why_not_here("glue/rte")
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue/manifest.json").write_text(json.dumps({"rte": {}}))
    monkeypatch.setenv("RANKWISE_DATA", str(tmp_path))
    assert why_not_here("glue/rte") is None
    assert "no 'mnli'" in why_not_here("glue/mnli")
    assert "no file" in why_not_here(str(tmp_path / "none.csv"))


def test_models_that_are_here(tmp_path):
    assert why_no_model(str(tmp_path)) is None
    assert "downloaded" in why_no_model("no-such/model-at-all")
    assert "neither" in why_no_model("just-a-word")
    assert why_no_model("no/such/thing/at/all") is not None


def test_a_file_with_its_columns(data_file):
    entry = task_entry(Dataset(task=str(data_file), columns=("sentence", "verdict")), {"train_examples": 9})
    task = task_config(entry)
    assert (task.name, task.text, task.label, task.train_examples) == ("files", ("sentence",), "verdict", 9)
    assert task_entry(Dataset(task="glue/rte")) == "glue/rte"
