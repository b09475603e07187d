import gzip
import hashlib
import json

import pytest
from pydantic import ValidationError

from rankwise.errors import DataError
from rankwise.tasks.glue import SPECS, GlueTask


def write_task(root, key, columns, splits):
    """A local copy in the documented layout."""
    (root / key).mkdir(parents=True)
    listed = {}
    for split, rows in splits.items():
        lines = "".join(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
        content = gzip.compress(lines.encode())
        (root / key / f"{split}.jsonl.gz").write_bytes(content)
        listed[split] = {"rows": len(rows), "sha256": hashlib.sha256(content).hexdigest()}
    (root / "manifest.json").write_text(json.dumps({key: {"splits": listed}}))
    return root


ROWS = [("one \u2028 line", "a", 0), ("two", "b", 1), ("three", "c", 0)]


@pytest.fixture
def rte(tmp_path):
    splits = {"train": ROWS, "validation": ROWS[:2]}
    write_task(tmp_path / "glue", "rte", ("sentence1", "sentence2", "label"), splits)
    return tmp_path


def load(name, folder):
    return GlueTask(name=name, data=str(folder)).load()


@pytest.mark.parametrize("inside", ["", "glue"])
def test_the_folder_or_the_manifests_own_folder(rte, inside):
    data = load("glue/rte", rte / inside)
    assert data.train[0] == {"text": "one \u2028 line", "text_pair": "a", "label": 0}
    assert data.label_names == ("entailment", "not_entailment")
    assert {name: len(split) for name, split in data.validation.items()} == {"validation": 2}


def test_the_environment_variable(rte, monkeypatch):
    monkeypatch.setenv("RANKWISE_DATA", str(rte))
    assert len(GlueTask(name="glue/rte").load().train) == 3


@pytest.mark.parametrize("mismatched", [False, True])
def test_mnli_has_its_second_validation_set_where_it_is_there(tmp_path, mismatched):
    rows = [("p", "h", k) for k in range(3)]
    splits = {"train": rows, "validation": rows} | ({"validation_mismatched": rows[:2]} if mismatched else {})
    write_task(tmp_path, "mnli", ("premise", "hypothesis", "label"), splits)
    found = {name: len(split) for name, split in load("glue/mnli", tmp_path).validation.items()}
    assert found == {"validation_matched": 3} | ({"validation_mismatched": 2} if mismatched else {})


def test_stsb_is_a_regression(tmp_path):
    rows = [("a", "b", 5.0), ("c", "d", 0), ("e", "f", 2.5)]
    write_task(tmp_path, "stsb", ("sentence1", "sentence2", "label"), {"train": rows, "validation": rows})
    data = load("glue/stsb", tmp_path)
    assert (data.kind, data.num_labels, data.metrics) == ("regression", 1, ("pearson", "spearman"))
    assert data.train["label"][:] == [5.0, 0.0, 2.5]


def test_a_damaged_file_is_named(rte):
    path = rte / "glue" / "rte" / "train.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"train\.jsonl\.gz is damaged: its sha256 is"):
        load("glue/rte", rte)


def test_a_missing_file_is_named(rte):
    (rte / "glue" / "rte" / "validation.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"validation\.jsonl\.gz is listed in the manifest but cannot be read"):
        load("glue/rte", rte)


def test_a_task_that_the_folder_lacks_is_named(rte):
    with pytest.raises(DataError, match="no entry 'cola'"):
        load("glue/cola", rte)


def test_a_split_that_the_manifest_lacks_is_named(tmp_path):
    write_task(tmp_path, "rte", ("sentence1", "sentence2", "label"), {"train": ROWS})
    with pytest.raises(DataError, match="lists no validation split for 'rte'; it has: train"):
        load("glue/rte", tmp_path)


def test_a_folder_without_a_manifest_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no glue/manifest\.json in .*RANKWISE_DATA"):
        load("glue/rte", tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"rte": {}}', '{"rte": {"splits": 3}}'])
def test_a_malformed_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        load("glue/rte", tmp_path)


def test_a_wrong_column_is_named(tmp_path):
    write_task(tmp_path, "rte", ("sentence1", "other", "label"), {"train": ROWS, "validation": ROWS})
    with pytest.raises(DataError, match="lacks the column 'sentence2'"):
        load("glue/rte", tmp_path)


def test_a_label_out_of_range_is_named(tmp_path):
    rows = [*ROWS, ("x", "y", 7)]
    write_task(tmp_path, "rte", ("sentence1", "sentence2", "label"), {"train": rows, "validation": ROWS})
    with pytest.raises(DataError, match="class indices 0 to 7; allowed are 0 to 1"):
        load("glue/rte", tmp_path)


def test_without_network_and_folder_the_variable_is_mentioned(monkeypatch):
    import datasets

    def offline(*_args):
        raise ConnectionError("no route to the hub")

    monkeypatch.delenv("RANKWISE_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"nyu-mll/glue \(rte\)' could not .* no route to the hub Set RANKWISE_DATA"):
        GlueTask(name="glue/rte").load()


def test_the_hubs_columns_are_read_the_same(rte, monkeypatch):
    import datasets

    local = load("glue/rte", rte)
    rows = [{"sentence1": a, "sentence2": b, "label": c, "idx": i} for i, (a, b, c) in enumerate(ROWS)]
    hub = {"train": datasets.Dataset.from_list(rows), "validation": datasets.Dataset.from_list(rows[:2])}
    asked = []
    monkeypatch.delenv("RANKWISE_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: asked.append(args) or hub)
    assert GlueTask(name="glue/rte").load().fingerprint == local.fingerprint
    assert asked == [("nyu-mll/glue", "rte")]


def test_only_glue_names():
    with pytest.raises(ValidationError, match="allowed: glue/sst2"):
        GlueTask(name="glue/wnli")


def test_the_real_copy_agrees_with_our_table(glue_folder):
    manifest = json.loads((glue_folder / "glue" / "manifest.json").read_text())
    for key, spec in SPECS.items():
        assert tuple(manifest[key]["text_columns"]) == spec.texts
        assert tuple(manifest[key]["label_names"] or ()) == spec.label_names
