"""What must be true of every registered task."""

import json

import numpy as np
import pytest

from rankwise.tasks import TASKS
from rankwise.tasks.families import describe_task
from rankwise.tasks.glue import OFFICIAL_TRAIN_ROWS
from rankwise.tasks.metrics import METRICS, allowed_metrics, decode, evaluate


@pytest.fixture(params=list(TASKS), scope="module")
def settings(request, tmp_path_factory):
    """The settings that load one registered task."""
    if request.param == "docstrings":
        request.getfixturevalue("docstrings_cache")
    elif request.param == "files":
        path = tmp_path_factory.mktemp("own") / "reviews.csv"
        rows = [f"text number {i},{'good' if i % 3 else 'bad'}" for i in range(90)]
        path.write_text("\n".join(["text,label", *rows]) + "\n")
        return {"name": "files", "path": str(path)}
    else:
        return {"name": request.param, "data": str(request.getfixturevalue("glue_folder"))}
    return {"name": request.param}


@pytest.fixture(scope="module")
def data(settings):
    return TASKS[settings["name"]].model_validate(settings).load()


def test_columns_and_types(data):
    columns = data.train.column_names
    assert columns in (["text", "label"], ["text", "text_pair", "label"])
    for split in (data.train, *data.validation.values()):
        assert len(split) > 0
        assert split.column_names == columns
        assert split.features["label"].dtype == ("int64" if data.kind == "classification" else "float64")
        assert all(split.features[name].dtype == "string" for name in columns[:-1])
        assert not any(split[name][i] is None for name in columns for i in range(0, len(split), 97))


def test_labels_are_covered_by_their_names(data):
    if data.kind == "regression":
        assert (data.label_names, data.num_labels) == ((), 1)
        return
    assert data.num_labels == len(set(data.label_names)) >= 2
    assert set(data.train["label"]) == set(range(data.num_labels))
    for split in data.validation.values():
        assert set(split["label"]) <= set(range(data.num_labels))


def test_metrics_exist_and_fit(data):
    assert data.metrics
    assert set(data.metrics) <= set(allowed_metrics(data.kind, data.num_labels)) <= set(METRICS)
    references = np.array(next(iter(data.validation.values()))["label"])
    logits = np.eye(data.num_labels)[references] if data.kind == "classification" else references[:, None]
    for name, result in evaluate(data.metrics, decode(data.kind, logits), references).items():
        assert result.n == len(references)
        assert result.value == pytest.approx(1.0 if METRICS[name].higher_is_better else 0.0)


def test_loading_twice_gives_the_same_examples(settings, data):
    again = TASKS[settings["name"]].model_validate(settings).load()
    assert again.fingerprint == data.fingerprint
    assert again.train[0] == data.train[0]


def test_caps_keep_a_stratified_part(settings, data):
    capped = TASKS[settings["name"]].model_validate({**settings, "train_examples": 40, "validation_examples": 7}).load()
    assert len(capped.train) == 40
    assert {len(split) for split in capped.validation.values()} == {7}
    assert capped.label_names == data.label_names
    assert capped.fingerprint != data.fingerprint
    if data.kind == "classification":
        whole, part = (np.bincount(d.train["label"], minlength=d.num_labels) / len(d.train) for d in (data, capped))
        assert np.abs(whole - part).max() <= 1 / 40 + 1e-9


def test_caps_beyond_the_size_change_nothing(settings, data):
    capped = TASKS[settings["name"]].model_validate({**settings, "train_examples": 10**6}).load()
    assert capped.fingerprint == data.fingerprint


def test_it_can_be_described(settings, data):
    found, printed = describe_task(TASKS[settings["name"]].model_validate(settings))
    assert json.loads(json.dumps(found)) == found
    assert found["examples"] == {"train": len(data.train)} | {k: len(v) for k, v in data.validation.items()}
    assert f"fingerprint: {data.fingerprint}" in printed.splitlines()


def test_every_glue_task_has_its_official_size():
    assert set(OFFICIAL_TRAIN_ROWS) == {name for name in TASKS if name.startswith("glue/")}
