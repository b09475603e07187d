import contextlib
import copy
import io
import json
import math
import os
import re
import resource
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from rankwise.errors import DataError, OutputError
from rankwise.experiments.records import RunRecord
from rankwise.experiments.results import build_results, check_results, describe_fields, read_results, write_results
from rankwise.experiments.statistics import _ONE_SEED, Comparison
from rankwise.experiments.store import Store
from rankwise.experiments.table import comparison_table, short_count, table_rows
from rankwise.tasks.base import MetricValue

DOCS = Path(__file__).parents[2] / "docs" / "results.md"
META = {"machine": {"cores": 2}, "versions": {"torch": "2.9"}, "command": "rankwise compare"}


def run(method, seed=0, value=0.8, seconds=60.0, **changes):
    values = {
        "status": "completed",
        "parameters": 147_456,
        "peak_parameters": 221_184,
        "metrics": {"accuracy": MetricValue(value, 0.013, 1000), "f1": MetricValue(0.5, 0.01, 1000)},
        "train_seconds": seconds,
        "rank_pattern": {"encoder.layer.0.output.dense": 4},
        "costs": {},
        "checkpoint": f"{method}-{seed}",
        **changes,
    }
    return RunRecord(f"{method}-{seed}", method, "docstrings", "minilm", seed, "r=4", **values)


RUNS = [run(method, seed, 0.8 + 0.01 * seed + bonus, seconds) for method, bonus, seconds in
        (("lora", 0.0, 60.0), ("peft_adalora", 0.02, 90.0), ("glora", -0.01, 61.2)) for seed in range(3)]  # fmt: skip
COMPARISONS = [
    Comparison(arm, "lora", "docstrings", metric, difference, difference - 0.02, difference + 0.02, 3, 1000)
    for arm, difference in (("peft_adalora", 0.02), ("glora", -0.01))
    for metric in ("accuracy", "f1")
]


def test_results_come_back_as_written(tmp_path):
    content = build_results(RUNS, COMPARISONS, META)
    path = write_results(tmp_path / "new" / "results.json", content)
    assert read_results(path) == content
    assert json.loads(path.read_text()) == content
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]
    assert content["schema_version"] == 1
    assert content["runs"][3] == {
        "run_id": "peft_adalora-0",
        "method": "peft_adalora",
        "task": "docstrings",
        "model": "minilm",
        "seed": 0,
        "budget": "r=4",
        "parameters": 147_456,
        "peak_parameters": 221_184,
        "metrics": {
            "accuracy": {"value": 0.8200000000000001, "se": 0.013, "n": 1000},
            "f1": {"value": 0.5, "se": 0.01, "n": 1000},
        },
        "train_seconds": 90.0,
        "rank_pattern": {"encoder.layer.0.output.dense": 4},
        "costs": {},
        "checkpoint": "peft_adalora-0",
    }
    assert content["comparisons"][0] == {
        "arm": "peft_adalora",
        "reference": "lora",
        "task": "docstrings",
        "metric": "accuracy",
        "difference": 0.02,
        "interval": [0.0, 0.04],
        "confidence": 0.95,
        "n": 3,
        "examples": 1000,
        "note": "",
    }
    assert {name: content[name] for name in META} == META


def test_only_completed_runs_are_results():
    records = [*RUNS, run("glora", 7, status="failed"), run("glora", 8, status="running")]
    assert len(build_results(records, [], META)["runs"]) == len(RUNS)


def test_numbers_that_do_not_exist_are_null(tmp_path):
    odd = run("lora", metrics={"pearson": MetricValue(math.nan, math.inf, 5)}, train_seconds=math.nan)
    comparison = replace(COMPARISONS[0], difference=math.nan, low=-math.inf, high=math.nan)
    path = write_results(tmp_path / "results.json", build_results([odd], [comparison], META))
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    content = read_results(path)
    assert content["runs"][0]["metrics"]["pearson"] == {"value": None, "se": None, "n": 5}
    assert content["runs"][0]["train_seconds"] is None
    assert content["comparisons"][0]["interval"] == [None, None]


def test_meta_must_be_complete():
    with pytest.raises(DataError, match=r"(?s)results: not a results file:.*versions: Field required"):
        build_results(RUNS, [], {name: value for name, value in META.items() if name != "versions"})


def test_every_wrong_field_is_named(tmp_path):
    content = build_results(RUNS, COMPARISONS, META)
    wrong = copy.deepcopy(content)
    del wrong["runs"][1]["seed"]
    wrong["runs"][2]["metrics"]["accuracy"]["n"] = "many"
    wrong["comparisons"][0]["interval"] = [0.1]
    wrong["extra"] = 1
    with pytest.raises(DataError) as caught:
        write_results(tmp_path / "results.json", wrong)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'results.json'}: not a results file:")
    for field in ("runs.1.seed", "runs.2.metrics.accuracy.n", "comparisons.0.interval", "extra"):
        assert f"  {field}" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a results file"),
        ('{"schema_version": 2}', "newer than this Rankwise"),
        ("\xff", "not JSON"),
    ],
)
def test_file_that_is_not_results_is_refused(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message) as caught:
        read_results(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: the results cannot be read: No such file"):
        read_results(tmp_path / "none.json")


def test_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "results.json"
    with pytest.raises(OutputError, match="cannot be written: ") as caught:
        write_results(path, build_results(RUNS, [], META))
    assert str(caught.value).startswith(f"{path}: ")


def test_full_disk_leaves_the_old_file_and_no_remains(tmp_path):
    path = write_results(tmp_path / "results.json", build_results([], [], META))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            write_results(path, build_results(RUNS, COMPARISONS, META))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def held(name: str, text: str) -> None:
    """The document holds `text` between its two marks; RANKWISE_UPDATE_DOCS=1 writes it there."""
    document = DOCS.read_text(encoding="utf-8")
    marks = (f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->")
    start, end = document.index(marks[0]) + len(marks[0]), document.index(marks[1])
    wanted = f"\n{text}\n\n"
    if os.environ.get("RANKWISE_UPDATE_DOCS"):
        DOCS.write_text(document[:start] + wanted + document[end:], encoding="utf-8")
        return
    assert document[start:end] == wanted, "out of date: run this test with RANKWISE_UPDATE_DOCS=1"


def test_documented_fields_are_the_real_ones():
    held("fields", describe_fields())


def test_documented_tables_are_the_real_ones(tmp_path):
    with Store(tmp_path / "store.sqlite") as store:
        held("schema", f"```sql\n{store.schema()}\n```")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_documented_example_is_valid_and_shows_every_field():
    (example,) = blocks("json")
    content = json.loads(example)
    results = check_results(content, "docs/results.md")
    assert results.model_dump(mode="json") == content
    assert content["comparisons"][0]["note"] == _ONE_SEED
    arm, reference = (next(r for r in content["runs"] if r["method"] == name) for name in ("glora", "lora"))
    values = [r["metrics"]["accuracy"]["value"] for r in (arm, reference)]
    assert content["comparisons"][0]["difference"] == pytest.approx(values[0] - values[1])


def test_documented_query_works(tmp_path):
    with Store(tmp_path / "store.sqlite") as store:
        store.begin(run("lora"))
        store.add_steps("lora-0", [(1, "train_loss", 0.5)])
        store.finish(run("lora"))
    (query,) = (block for block in blocks("sql") if "SELECT" in block)
    with contextlib.closing(sqlite3.connect(tmp_path / "store.sqlite")) as database:
        assert database.execute(query).fetchall() == [("lora", 0, 1, 0.5)]


def printed(records, comparisons, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(comparison_table(records, comparisons))
    return console.file.getvalue()


def test_table_rows_hold_the_numbers():
    lora, adalora, glora = table_rows(RUNS, COMPARISONS)
    assert (lora.method, lora.seeds, lora.parameters, lora.peak_parameters) == ("lora", 3, 147_456, 221_184)
    assert lora.metric == MetricValue(pytest.approx(0.81), pytest.approx(0.01 / math.sqrt(3)), 3)
    assert lora.comparison is None
    assert lora.time is None
    assert adalora.comparison == COMPARISONS[0]
    assert adalora.time.median == pytest.approx(1.5)
    assert glora.comparison.difference == -0.01


def test_table_fits_80_columns_with_everything_on_one_line():
    text = printed(RUNS, COMPARISONS)
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    assert "docstrings · minilm · budget r=4" in lines[0]
    rows = [line for line in lines if line.startswith(("lora ", "peft_adalora ", "glora "))]
    assert [" ".join(line.split()) for line in rows] == [
        "lora 147,456 221k 0.810 ± 0.006 – 1.00",
        "peft_adalora 147,456 221k 0.830 ± 0.006 +0.020 [+0.000, +0.040] 1.50",
        "glora 147,456 221k 0.800 ± 0.006 -0.010 [-0.030, +0.010] 1.02",
    ]
    assert len({len(line) for line in rows}) == 1  # right-aligned columns end together
    assert "n = 3" in text
    assert "standard error over 3 seeds, each evaluated on 1,000 examples" in text
    assert "noise of seeds and examples" in text
    assert "95 % interval" in text


def test_table_of_one_seed_says_what_its_errors_mean():
    records = [record for record in RUNS if record.seed == 0]
    text = " ".join(printed(records, [replace(comparison, n=1) for comparison in COMPARISONS]).split())
    assert "0.800 ± 0.013" in text
    assert "over the 1,000 evaluation examples (n = 1 seed)" in text
    assert "noise of examples, not of seeds" in text


def test_table_without_a_reference_has_no_difference():
    text = printed([record for record in RUNS if record.method == "glora"], [])
    assert "glora" in text
    assert "difference" not in text


def test_table_marks_what_could_not_be_compared():
    records = [record for record in RUNS if (record.method, record.seed) != ("glora", 2)]
    text = printed(records, COMPARISONS[:2])
    (line,) = (line for line in text.splitlines() if line.startswith("glora"))
    assert "not compared" in line
    assert "(2)" in line


def test_table_takes_times_from_the_seeds_that_both_ran():
    records = [record for record in RUNS if (record.method, record.seed) not in (("glora", 2), ("lora", 0))]
    comparisons = [replace(comparison, n=2) for comparison in COMPARISONS]
    *_, glora = table_rows(records, comparisons)
    assert glora.seeds == 2
    assert glora.time.median == pytest.approx(1.02)
    assert "interval: noise of seeds and examples" in " ".join(printed(records, comparisons).split())


def test_table_shows_large_models_and_brackets_as_they_are():
    big = [replace(r, model="a/[b]", parameters=124_055_040, peak_parameters=124_055_040) for r in RUNS[:3]]
    text = printed(big, [])
    assert "124M" in text
    assert "a/[b]" in text


def test_table_of_nothing_is_an_error():
    with pytest.raises(DataError, match="no completed run with a metric"):
        table_rows([run("lora", status="failed")], [])


COUNTS = {0: "0", 950: "950", 999.6: "1.00k", 2_210: "2.21k", 70_000: "70.0k", 147_456: "147k", 999_700: "1.00M",
          22_713_216: "22.7M", 124_055_040: "124M", 7e9: "7.00G", 1.5e12: "1500G"}  # fmt: skip


@pytest.mark.parametrize(("count", "text"), COUNTS.items())
def test_short_counts_have_three_digits(count, text):
    assert short_count(count) == text
