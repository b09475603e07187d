"""Every example record goes on: 000 to a design, 001 to its check and a plan, 002 to an evaluation, 004 to a plan.

The folder of the records is named by RANKWISE_EXAMPLES.
"""

import os
from pathlib import Path

import pytest

from rankwise.experiments.plan_runs import load_plan
from rankwise.research.choice import choose
from rankwise.research.design import make_design, make_plan
from rankwise.research.evaluate import evaluate
from rankwise.research.import_commands import import_record
from rankwise.research.page import write_page
from rankwise.research.project import Project
from rankwise.research.review import review

EXAMPLES = os.environ.get("RANKWISE_EXAMPLES", "")
pytestmark = [
    pytest.mark.skipif(not EXAMPLES, reason="RANKWISE_EXAMPLES does not name the folder of example records"),
    pytest.mark.slow,
]


@pytest.fixture
def imported(tmp_path, monkeypatch):
    monkeypatch.delenv("RANKWISE_DATA", raising=False)

    def make(number):
        (path,) = Path(EXAMPLES).glob(f"{number}_*")
        project = Project(tmp_path / number)
        import_record(path, project.folder)
        return project

    return make


def designed(project):
    design = make_design(project)
    make_plan(project)
    for profile in (None, "smoke", "pilot", "full"):
        load_plan(project.path("plan.yaml"), profile)
    found = review(project)
    write_page(project)
    return design, found


def test_a_proposal_goes_on_to_a_design(imported):
    design, _ = designed(imported("000"))
    methods = {arm.method["name"]: arm for arm in design.arms}
    assert set(methods) == {"glora", "lora", "peft_adalora", "random"}
    assert methods["glora"].method | {"warmup": 0.3333} == {"name": "glora", "beta": 0.9, "warmup": 0.3333}
    assert [dataset.task for dataset in design.datasets] == ["glue/mnli", "glue/sst2", "glue/rte"]
    assert {claim.metric for claim in design.claims} >= {"main", "train_seconds", "parameters"}


def test_run_configs_are_read_and_repaired(imported):
    project = imported("001")
    before = {path.name: path.read_bytes() for path in project.path("configs").iterdir()}
    design, found = designed(project)
    notes = "\n".join(design.notes)
    assert "the record has no run of lora; the plan has" in notes
    assert "1,119,828 training rows" in notes
    assert "training.batch_size is not searched" in notes
    assert "method.budget is not searched" in notes
    (search,) = design.search
    assert (search.path, search.low, search.high, search.log) == ("training.learning_rate", 1e-4, 5e-4, True)
    assert design.training["weight_decay"] == 0.01
    assert {name: project.path(f"configs/{name}").read_bytes() for name in before} == before
    items = {item for defect in found.defects for item in defect.items}
    assert {32, 34, 36, 47} <= items


def test_the_best_round_of_a_refinement_is_designed(imported):
    project = imported("002")
    for number in range(3):
        evaluate(project, number, None)
    number = choose(project).round
    design, _ = designed(project)
    assert design.name == ("test-galora", "test-cogalora", "test-radlora")[number]
    untestable = {claim.id for claim in design.claims if claim.kind == "not-testable"}
    assert untestable < {claim.id for claim in design.claims}


def test_a_review_becomes_a_plan_and_is_corrected(imported):
    design, found = designed(imported("004"))
    assert {arm.method["name"] for arm in design.arms} == {"adalora", "peft_adalora", "lora", "random", "glora"}
    text = " ".join(leaf.text for leaf in found.corrections)
    for words in ("sensitivity", "0 free parameters", "without a single run", "11 % and 16 %"):
        assert words in text, words
    assert all(not response.runs for response in found.responses)
    assert {comment.status for comment in found.comments} <= {"open", "not testable"}
    assert [comment.about for comment in found.comments if comment.id == "major-1"] == ["A-random, A-glora"]
