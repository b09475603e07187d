import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from rankwise.errors import ConfigError, DataError, UnknownNameError
from rankwise.tasks import canonical_task, parse_task_spec
from rankwise.tasks.data import stratified_sample
from rankwise.tasks.docstrings import DocstringsTask
from rankwise.tasks.files import FilesTask
from rankwise.tasks.glue import GlueTask

ROWS = [{"text": f"text {i}", "label": "good" if i % 3 else "bad"} for i in range(30)]


def as_csv(rows, separator=","):
    return "\n".join([separator.join(rows[0]), *(separator.join(map(str, row.values())) for row in rows)]) + "\n"


def write(path, rows=ROWS):
    """The rows in the format of the file's name."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if name.endswith(".json"):
        text = json.dumps(rows)
    elif name.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = as_csv(rows, "\t" if name.endswith(".tsv") else ",")
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def load(path, **settings):
    return FilesTask(path=str(path), **settings).load()


@pytest.mark.parametrize(
    "ending", ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "tsv.gz", "jsonl.gz", "json.gz"]
)
def test_every_format_holds_the_same(tmp_path, ending):
    data = load(write(tmp_path / f"data.{ending}"))
    assert (data.kind, data.label_names) == ("classification", ("bad", "good"))
    assert data.metrics == ("accuracy", "f1", "matthews_correlation")
    assert (len(data.train), len(data.validation["validation"])) == (27, 3)
    assert sorted(data.validation["validation"]["label"]) == [0, 1, 1]
    assert not set(data.train["text"]) & set(data.validation["validation"]["text"])


def test_the_formats_are_split_alike(tmp_path):
    prints = {load(write(tmp_path / f"data.{ending}")).fingerprint for ending in ("csv", "jsonl", "parquet", "tsv.gz")}
    assert len(prints) == 1


def test_nothing_is_left_in_the_cache_of_datasets(tmp_path):
    import datasets

    def listing():
        return set(Path(datasets.config.HF_DATASETS_CACHE).rglob("*"))

    before = listing()
    load(write(tmp_path / "data.csv.gz"))
    assert listing() == before


def test_progress_bars_are_left_as_they_were(tmp_path):
    import datasets

    before = datasets.are_progress_bars_disabled()
    load(write(tmp_path / "data.csv"))
    assert datasets.are_progress_bars_disabled() == before


def test_a_validation_file_is_used_whole(tmp_path):
    data = load(write(tmp_path / "a.csv"), validation=str(write(tmp_path / "b.jsonl", ROWS[:7])))
    assert (len(data.train), len(data.validation["validation"])) == (30, 7)


def test_pairs_of_texts(tmp_path):
    rows = [{"q": f"q {i}", "a": f"a {i}", "y": i % 2} for i in range(20)]
    data = load(write(tmp_path / "a.csv", rows), text="q, a", label="y")
    assert data.train.column_names == ["text", "text_pair", "label"]
    assert data.train[0]["text_pair"] == data.train[0]["text"].replace("q", "a")


def test_cells_stay_as_written(tmp_path):
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(["007", "NA", "None", "1.50", "nan", "é"] * 3)]
    data = load(write(tmp_path / "a.csv", rows), validation=str(write(tmp_path / "b.csv", rows)))
    assert data.train["text"][:6] == ["007", "NA", "None", "1.50", "nan", "é"]


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        (["b", "a"], "classification", ("a", "b")),
        ([10, 2, 1], "classification", ("1", "2", "10")),
        ([True, False], "classification", ("False", "True")),
        ([0.5, 1.0, 2.25], "regression", ()),
        (["None", "NA"], "classification", ("NA", "None")),
        (list(range(60)), "regression", ()),
        ([-1, 1], "classification", ("-1", "1")),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_the_kind_is_told_from_the_labels(tmp_path, labels, kind, names, ending):
    rows = [{"text": f"t {i}", "label": labels[i % len(labels)]} for i in range(len(labels) * 10)]
    data = load(write(tmp_path / f"a.{ending}", rows))
    assert (data.kind, data.label_names) == (kind, names)
    assert data.train.features["label"].dtype == ("int64" if names else "float64")


def test_a_given_kind_wins(tmp_path):
    rows = [{"text": f"t {i}", "label": i % 5} for i in range(50)]
    data = load(write(tmp_path / "a.csv", rows), kind="regression")
    assert (data.kind, data.metrics[0]) == ("regression", "pearson")
    with pytest.raises(
        DataError, match=r"must hold numbers for regression; rows 1, 2, 3, 4, 5 … \(30 in all\) has 'bad'"
    ):
        load(write(tmp_path / "b.csv"), kind="regression")


def replaced(index, **change):
    return [*ROWS[:index], {**ROWS[index], **change}, *ROWS[index + 1 :]]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (ROWS, {"label": "lable"}, r"no column 'lable' for the label, did you mean 'label'\? Columns: text, label"),
        (ROWS, {"text": "text,pair"}, "no column 'pair' for the text"),
        (replaced(4, label=""), {}, "column 'label' has no value in row 5"),
        (replaced(2, text="  "), {}, "column 'text' has no value in row 3"),
        ([{**row, "label": ""} for row in ROWS], {}, r"no value in rows 1, 2, 3, 4, 5 … \(30 in all\)"),
        ([{**row, "label": "same"} for row in ROWS], {}, "every training example has the label 'same'"),
        ([{**row, "label": row["text"]} for row in ROWS], {}, "30 distinct values in 30 rows, which is no label"),
        (ROWS[:1], {}, "one row is not enough"),
    ],
)
def test_what_is_wrong_with_the_rows_is_said(tmp_path, rows, settings, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "a.csv", rows), **settings)


def test_missing_labels_in_json_are_named(tmp_path):
    with pytest.raises(DataError, match="column 'label' has no value in row 2"):
        load(write(tmp_path / "a.jsonl", replaced(1, label=None)))


def test_a_label_seen_only_in_validation_is_named(tmp_path):
    other = write(tmp_path / "b.csv", [*ROWS[:3], {"text": "new", "label": "odd"}])
    with pytest.raises(DataError, match="label 'odd' occurs in the validation split but in no training example"):
        load(write(tmp_path / "a.csv"), validation=str(other))


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_empty_split_is_named(tmp_path, split, ending):
    empty = tmp_path / f"empty.{ending}"
    if ending == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], "string"), "label": []}), empty)
    else:
        empty.write_text("text,label\n" if ending == "csv" else "\n")
    good = str(write(tmp_path / "a.csv"))
    paths = (str(empty), good) if split == "train" else (good, str(empty))
    with pytest.raises(DataError, match=rf"empty\.{ending}' is empty: it has no rows"):
        load(paths[0], validation=paths[1])


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz"])
def test_a_file_without_content_is_refused(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_bytes(b"")
    with pytest.raises(DataError, match=rf"a\.{ending}'"):
        load(tmp_path / f"a.{ending}")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "csv.gz"])
def test_bytes_that_are_not_utf8_are_located(tmp_path, ending):
    path = write(tmp_path / f"a.{ending}")
    content = gzip.decompress(path.read_bytes()) if ending.endswith("gz") else path.read_bytes()
    lines = content.split(b"\n")
    lines[4] += "é".encode("latin-1")
    bad = b"\n".join(lines)
    path.write_bytes(gzip.compress(bad) if ending.endswith("gz") else bad)
    with pytest.raises(DataError, match="is not UTF-8 text: byte 0xe9 in line 5"):
        load(path)


@pytest.mark.parametrize(
    ("ending", "content"), [("csv.gz", b"text,label\n"), ("parquet", b"nonsense"), ("jsonl", b"{]\n")]
)
def test_a_malformed_file_is_named(tmp_path, ending, content):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.{ending}' cannot be read"):
        load(path)


def test_a_row_with_too_many_cells_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,x\nb,y,z,w\n")
    with pytest.raises(DataError, match=r"a\.csv' cannot be read as csv: .*line 3"):
        load(path)


def test_a_column_named_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,text,label\na,b,c\n")
    with pytest.raises(DataError, match="names the column 'text' more than once"):
        load(tmp_path / "a.csv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file: .*nothing\.csv"):
        load(tmp_path / "nothing.csv")


def test_an_unknown_ending_lists_the_known_ones(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"ends in '\.xlsx', .* allowed: \.csv, \.tsv"):
        load(tmp_path / "a.xlsx")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = write(tmp_path / "a.csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(path).train.column_names == ["text", "label"]


def hub(monkeypatch, **splits):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    found = {name: datasets.Dataset.from_dict(columns, features=features) for name, columns in splits.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: found)


def columns(count, label=None):
    labels = [i % 2 if label is None else label for i in range(count)]
    return {"text": [f"t {i}" for i in range(count)], "label": labels}


def test_a_hub_dataset_keeps_its_label_names(monkeypatch):
    hub(monkeypatch, train=columns(20), validation=columns(6), test=columns(4, -1))
    data = load("owner/name")
    assert (data.label_names, len(data.train), len(data.validation["validation"])) == (("no", "yes"), 20, 6)


def test_the_test_split_of_the_hub_is_not_used_unasked(monkeypatch):
    hub(monkeypatch, train=columns(20), test=columns(6))
    assert (len(load("owner/name").train), len(load("owner/name", validation="test").train)) == (18, 20)
    with pytest.raises(DataError, match="has no split 'dev'; it has: train, test"):
        load("owner/name", validation="dev")


def test_unlabelled_hub_examples_are_refused(monkeypatch):
    hub(monkeypatch, train=columns(20), test=columns(6, -1))
    with pytest.raises(DataError, match=r"owner/name \(test\): column 'label' has no value in rows 1, 2, 3, 4, 5 …"):
        load("owner/name", validation="test")


def test_no_network_is_one_clear_error():
    with pytest.raises(DataError, match=r"'owner/name' could not be loaded from the Hugging Face hub: .* local file"):
        load("owner/name")


@pytest.mark.parametrize(
    ("written", "ours"),
    [
        ("glue_rte", "glue/rte"),
        ("glue-mnli", "glue/mnli"),
        ("GLUE MNLI", "glue/mnli"),
        ("mnli", "glue/mnli"),
        ("sst-2", "glue/sst2"),
        ("STS-B", "glue/stsb"),
        ("docstring", "docstrings"),
        ("imdb", None),
        ("", None),
    ],
)
def test_tasks_as_others_write_them(written, ours):
    assert canonical_task(written) == ours


def test_what_the_command_line_says(tmp_path):
    assert isinstance(parse_task_spec("docstrings"), DocstringsTask)
    assert parse_task_spec("rte", train_examples=5) == GlueTask(name="glue/rte", train_examples=5)
    own = parse_task_spec("a/b.csv", text="q,a", label="y", validation="v.csv", max_length=64)
    assert own == FilesTask(path="a/b.csv", text=("q", "a"), label="y", validation="v.csv", max_length=64)
    assert parse_task_spec("owner/name") == FilesTask(path="owner/name")


@pytest.mark.parametrize(
    ("spec", "options", "error", "message"),
    [
        ("docstring", {"text": "a"}, ConfigError, "task 'docstrings': 1 problem\n  text: is for your own files only"),
        ("docstrngs", {}, UnknownNameError, "did you mean 'docstrings'"),
        ("reviews.xlsx", {}, UnknownNameError, "CSV, TSV"),
        ("files", {}, ConfigError, "give the file itself"),
        (
            "rte",
            {"train_examples": 0},
            ConfigError,
            "train_examples: Input should be greater than or equal to 1, got 0",
        ),
        ("a.csv", {"text": "a,b,c"}, ConfigError, "text: Tuple should have at most 2 items"),
    ],
)
def test_a_spec_that_makes_no_sense(spec, options, error, message):
    with pytest.raises(error, match=message):
        parse_task_spec(spec, **options)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 33, 99])
def test_a_stratified_sample_has_the_size_and_the_shares(count):
    labels = [0] * 70 + [1] * 27 + [2] * 3
    picked = stratified_sample(labels, count, "classification")
    assert len(picked) == len(set(picked.tolist())) == count
    assert sorted(picked) == list(picked)
    counts = np.bincount(np.array(labels)[picked], minlength=3)
    assert (counts <= [70, 27, 3]).all()
    assert count < 3 or counts.min() >= 1
    assert (picked == stratified_sample(labels, count, "classification")).all()
    assert count in (1, 99) or (picked != stratified_sample(labels, count, "classification", seed=1)).any()


def test_rare_class_stays_in_training(tmp_path):
    """A class with one example is not moved into validation, where it would be unknown."""
    rows = [f"text number {i},{'a' if i % 2 else 'b'}" for i in range(60)] + ["the only one,rare"]
    (tmp_path / "d.csv").write_text("\n".join(["text,label", *rows]))
    data = FilesTask(path=str(tmp_path / "d.csv")).load()
    assert "rare" in data.label_names
    assert data.label_names.index("rare") in data.train["label"][:]


def test_whole_numbers_written_as_floats_are_classes(tmp_path):
    rows = [{"text": f"text number {i}", "label": float(i % 2)} for i in range(40)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = FilesTask(path=str(tmp_path / "d.jsonl")).load()
    assert (data.kind, data.label_names) == ("classification", ("0", "1"))


def test_one_validation_example_is_refused_before_training(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(f"text {i},{'ab'[i % 2]}" for i in range(20)))
    (tmp_path / "v.csv").write_text("text,label\nalone,a\n")
    with pytest.raises(DataError, match="has 1 example; error bars need at least 2"):
        FilesTask(path=str(tmp_path / "t.csv"), validation=str(tmp_path / "v.csv")).load()
