"""`rankwise research check`: records, projects, artefacts, run configs; exit codes and JSON."""

import json
from dataclasses import replace

import pytest
from research.checks.judged import changed, repaired
from research.checks.test_broken_records import DESIGN
from typer.testing import CliRunner

from rankwise.cli import app
from rankwise.errors import ConfigError
from rankwise.research.artefacts import Dataset, Design, DesignArm, Papers
from rankwise.research.check_commands import check
from rankwise.research.project import Made, Project, hypothesis_file
from rankwise.research.records_files import RECORD, RecordFile

MADE = Made(by="hand")


def project(tmp_path, **fields):
    record = repaired("refinement")
    made = Project(tmp_path / "project")
    made.write("papers.json", Papers(papers=record.papers), MADE)
    for number, one in enumerate(record.rounds):
        last = number == len(record.rounds) - 1
        made.write(hypothesis_file(number), changed(one.hypothesis, **fields) if last else one.hypothesis, MADE)
    return made


def test_a_sane_project_has_none(tmp_path):
    found = check(project(tmp_path).folder)
    assert not found.failed
    assert found.text.endswith("no defects found")
    assert found.data["defects"] == []


def test_defects_name_their_files(tmp_path):
    made = project(tmp_path, primary_metric="", expected_result="It saves 60 % of inference FLOPs.")
    arms = (DesignArm(name="glora", role="proposed", method={"name": "glora"}),)
    design = Design(
        name="d", question="q", model="minilm", arms=arms, datasets=(Dataset(task="glue/mnli", rows=3),), seeds=1
    )
    made.write("design.json", design, MADE)
    made.write_text("configs/bad.yaml", "method: {name: nonsense}\n")
    found = check(made.folder)
    assert found.failed
    where = {one["where"].partition(":")[0] for one in found.data["defects"]}
    assert {hypothesis_file(2), "design.json"} <= where
    assert any(one["where"].startswith("configs.bad") for one in found.data["defects"])
    assert {21, 45, 47, 58} <= set(found.data["items"])
    assert "flops_bound [58]  hypothesis/002.json: expected_result" in found.text
    assert found.data["errors"] == sum(one["level"] == "error" for one in found.data["defects"])


def test_an_imported_project_is_held_against_its_record(tmp_path):
    record = replace(repaired("configs"), design_text=DESIGN, answer_form="python")
    made = project(tmp_path)
    made.write(RECORD, RecordFile(sha256="0", record=record), MADE)
    found = check(made.folder).data
    own = {item for one in found["defects"] if one["where"].startswith("record.json") for item in one["items"]}
    assert {47, 49, 63} <= own


@pytest.mark.parametrize(("seeds", "told"), [(1, True), (3, False)])
def test_configs_of_a_plan_have_the_plans_seeds(tmp_path, seeds, told):
    made = project(tmp_path)
    arms = (DesignArm(name="glora", role="proposed", method={"name": "glora"}),)
    datasets = (Dataset(task="glue/mnli"), Dataset(task="glue/qnli"), Dataset(task="glue/qqp"))
    design = Design(name="d", question="q", model="minilm", arms=arms, datasets=datasets, seeds=seeds)
    made.write("design.json", design, MADE)
    for name in ("lora", "glora"):
        made.write_text(f"configs/{name}.yaml", f"task: docstrings\nmethod: {{name: {name}, budget: r=4}}\n")
    assert any(one["where"] == "configs.seed" for one in check(made.folder).data["defects"]) == told


def test_single_files(tmp_path):
    made = project(tmp_path, primary_metric="")
    assert check(made.path(hypothesis_file(2))).data["items"] == [21]
    assert check(made.path("papers.json")).data["defects"] == []
    config = tmp_path / "run.yaml"
    config.write_text("task: docstrings\nmethod: {name: lora, budget: r=4}\n", encoding="utf-8")
    assert not check(config).failed


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", '{"kind": "choice", "content": {}}', "choice"),
        ("a.json", '{"kind": "hypothesis", "content": {"method": 3}}', "content.method"),
        ("a.txt", "nothing at all", "no record"),
        ("missing.txt", None, "no such file"),
        ("empty", "", "no research project"),
    ],
)
def test_what_cannot_be_checked_is_said(tmp_path, name, content, says):
    path = tmp_path / name
    if name == "empty":
        path.mkdir()
    elif content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        check(path)


def test_the_command(tmp_path):
    made = project(tmp_path, expected_result="It saves 60 % of inference FLOPs.")
    told = CliRunner().invoke(app, ["research", "check", str(made.folder)])
    assert told.exit_code == 2
    assert "errors:" in told.stdout
    data = json.loads(CliRunner().invoke(app, ["research", "check", str(made.folder), "--json"]).stdout)
    assert data["errors"] >= 1
    clean = project(tmp_path / "other")
    assert CliRunner().invoke(app, ["research", "check", str(clean.folder)]).exit_code == 0
