import json
import os
from pathlib import Path

import pytest

from rankwise.errors import ConfigError, OutputError
from rankwise.experiments.import_record import read_run_configs, safe_name, write_run_configs

RECORD = Path(__file__).parents[1] / "data" / "record.txt"
ENTRIES = [{"run_id": "a", "run_config_yaml": "seed: 1\n"}, {"run_id": "b", "run_config_yaml": "seed: 2\n"}]
WANTED = {"a": "seed: 1\n", "b": "seed: 2\n"}


def record(tmp_path, text):
    path = tmp_path / "record.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_the_answer_and_not_the_examples_of_the_prompt():
    configs = read_run_configs(RECORD)
    assert list(configs) == [
        "proposed-DeBERTa-v3-base-86M--GLUE-MNLI",
        "comparative-1-DeBERTa-v3-base-86M--GLUE-MNLI",
    ]
    assert all(text.startswith(f"run_id: {run_id}\n") for run_id, text in configs.items())


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"run_configs": ENTRIES}),
        f"Here you are:\n```json\n{json.dumps({'run_configs': ENTRIES})}\n```\nDone.",
        "\n".join(json.dumps({"run_configs": [entry]}) for entry in ENTRIES),
        "\n".join(json.dumps(entry) for entry in ENTRIES),
        repr({"run_configs": ENTRIES}),
        f"Output: {{'answer': {ENTRIES and {'run_configs': ENTRIES}!r}}}",
        json.dumps({"answer": {"run_configs": ENTRIES}}),
        "\ufeff" + json.dumps({"run_configs": ENTRIES}),
        json.dumps({"run_configs": [*ENTRIES, ENTRIES[0]]}),
    ],
    ids=["bare", "fenced", "concatenated", "entries", "repr", "nested repr", "nested", "bom", "same twice"],
)
def test_reads_every_form_of_answer(tmp_path, text):
    assert read_run_configs(record(tmp_path, text)) == WANTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no `run_configs`"),
        ("Output:\nsorry", "no `run_configs`"),
        ('{"run_configs": []}', "no `run_configs`"),
        ('{"run_configs": ["a"]}', r"run_configs\[0\].run_id: None must be text"),
        ('{"run_configs": [{"run_id": "a"}]}', "run_config_yaml: None must be the YAML text of a"),
        (json.dumps({"run_configs": [ENTRIES[0], {**ENTRIES[1], "run_id": "a"}]}), "'a' is there twice"),
    ],
)
def test_says_what_is_wrong_with_a_record(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_run_configs(record(tmp_path, text))


@pytest.mark.timeout(120)  # what starts again at every brace takes hours
def test_a_record_made_to_be_slow_is_not(tmp_path):
    with pytest.raises(ConfigError, match="no `run_configs`"):
        read_run_configs(record(tmp_path, "{" * 3_000_000))
    assert read_run_configs(record(tmp_path, '{"a" ' * 20_000 + json.dumps({"run_configs": ENTRIES}))) == WANTED


def test_says_why_a_file_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_run_configs(tmp_path / "absent.txt")
    with pytest.raises(ConfigError, match="is a folder"):
        read_run_configs(tmp_path)
    (tmp_path / "latin").write_bytes(b'{"run_configs": "\xe9"}')
    with pytest.raises(ConfigError, match="byte 17 is not UTF-8"):
        read_run_configs(tmp_path / "latin")


def test_writes_files_once_and_never_over_others(tmp_path):
    path = record(tmp_path, json.dumps({"run_configs": ENTRIES}))
    folder = tmp_path / "new" / "folder"
    files = write_run_configs(path, folder)
    assert [file.name for file in files] == ["a.yaml", "b.yaml"]
    assert files[0].read_text() == "seed: 1\n"
    assert write_run_configs(path, folder) == files

    files[0].unlink()
    files[1].write_text("mine")
    with pytest.raises(OutputError, match=r"b\.yaml exists and differs"):
        write_run_configs(path, folder)
    assert not files[0].exists()
    assert files[1].read_text() == "mine"


def test_two_ids_for_one_file_name_are_refused(tmp_path):
    entries = [{"run_id": "a/b", "run_config_yaml": "x"}, {"run_id": "a b", "run_config_yaml": "y"}]
    with pytest.raises(OutputError, match=r"a-b\.yaml"):
        write_run_configs(record(tmp_path, json.dumps({"run_configs": entries})), tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = record(tmp_path, json.dumps({"run_configs": ENTRIES}))
    with pytest.raises(OutputError, match="cannot write run configs"):
        write_run_configs(path, tmp_path / "file" / "sub")


@pytest.mark.parametrize("run_id", ["../../etc/passwd", "..", ".hidden", "a/b", "ä ö", "", "x" * 500, "-rf", "a\0b"])
def test_names_are_safe(run_id):
    name = safe_name(run_id)
    assert name
    assert os.sep not in name
    assert not name.startswith((".", "-"))
    assert len(name) <= 200
    assert "\0" not in name
