"""From a hypothesis to a design, a plan and run configs that the code which runs them accepts."""

import json

import pytest
import yaml
from research.design.hypotheses import ALLOCATION, LOCAL

from rankwise.errors import ConfigError, ModelAnswerError, OutputError, UnknownNameError
from rankwise.experiments.config import check
from rankwise.experiments.plan_checks import check_plan, facts_of
from rankwise.experiments.plan_runs import load_plan
from rankwise.research.artefacts import Claim, Dataset, Design, DesignArm, Search
from rankwise.research.asking import Answer
from rankwise.research.design import DesignOptions, design_problems, make_design, make_plan, run_problems
from rankwise.research.design_claims import plan_claim
from rankwise.research.design_controls import completed
from rankwise.research.design_draft import draft
from rankwise.research.design_plan import made_from
from rankwise.research.design_power import decidable, task_facts
from rankwise.research.project import Made, Project, Settings, hypothesis_file
from rankwise.research.review import review

SETTINGS = Settings(topic="Ranks")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("RANKWISE_DATA", raising=False)
    found = Project(tmp_path / "project")
    found.write("project.json", SETTINGS, Made(by="hand"))
    found.write(hypothesis_file(0), ALLOCATION, Made(by="hand"))
    return found


def arms(design):
    return {arm.name: (arm.role, arm.method["name"]) for arm in design.arms}


def test_a_hypothesis_alone_is_enough(project):
    design = make_design(project)
    assert arms(design) == {
        "glora": ("proposed", "glora"),
        "peft_adalora": ("comparative", "peft_adalora"),
        "lora": ("control", "lora"),
        "random": ("control", "random"),
    }
    assert design.arms[0].method == {"name": "glora", "beta": 0.8, "warmup": 0.25}
    assert design.model == "microsoft/deberta-v3-base"
    assert [dataset.task for dataset in design.datasets] == ["glue/mnli", "glue/rte"]
    assert design.training == {"epochs": 4, "batch_size": 16, "learning_rate": 1e-4}
    assert design.budgets == ("r=4",)
    assert {claim.id for claim in design.claims} == {"C1", "C2", "control-lora", "control-random"}


def test_what_was_added_or_is_not_here_is_noted(project):
    notes = "\n".join(make_design(project).notes)
    assert "arm lora added by code" in notes
    assert "arm random added by code" in notes
    assert "microsoft/deberta-v3-base is not here" in notes
    assert "data of glue/mnli are not here" in notes
    assert "profiles smoke and pilot run docstrings instead" in notes


def test_strict_refuses_what_would_be_added(project):
    with pytest.raises(ConfigError, match="no arm is lora") as caught:
        make_design(project, options=DesignOptions(strict=True))
    assert len(caught.value.findings) == 2
    assert not project.has("design.json")


def test_the_files_are_what_runs_them_accepts(project):
    design = make_design(project)
    files = make_plan(project)
    names = {name for name in files if name.startswith("configs/")}
    assert "configs/proposed-deberta-v3-base--glue-mnli.yaml" in names
    assert "configs/comparative-1-deberta-v3-base--glue-rte.yaml" in names
    assert len(names) == len(design.arms) * len(design.datasets)
    for name in names:
        assert not check(project.path(name)).errors
    for profile in (None, "full", "pilot", "smoke"):
        assert load_plan(project.path("plan.yaml"), profile).runs
    smoke = load_plan(project.path("plan.yaml"), "smoke")
    assert smoke.config.model.name == "minilm"
    assert not [one for one in check_plan(smoke, facts_of(smoke)) if one.level == "error"]
    assert made_from(project.path("plan.yaml").read_text()) == project.digest("design.json")


def test_the_full_plan_is_not_refused_either(project):
    """Claims that its examples cannot decide are changed so that they can be, and say so."""
    design = make_design(project)
    plan = load_plan(make_plan(project) and project.path("plan.yaml"))
    assert not [one for one in check_plan(plan, task_facts(design)) if one.level == "error"]
    first = next(claim for claim in design.claims if claim.id == "C1")
    assert first.expected is None
    assert "without promise" in first.reason


def test_tuning_is_alike_for_all(project):
    make_design(project)
    make_plan(project)
    plan = load_plan(project.path("plan.yaml"))
    assert plan.config.protocol.tuning.learning_rates == (5e-5, 1e-4, 2e-4)
    configs = [yaml.safe_load(path.read_text()) for path in project.path("configs").glob("*.yaml")]
    spaces = [config["sweep"]["search_space"] for config in configs]
    assert all(space == spaces[0] for space in spaces)
    assert list(spaces[0]) == ["training.learning_rate"]
    assert all(isinstance(value, float) for value in spaces[0]["training.learning_rate"]["choices"])


def test_the_same_twice_and_nothing_overwritten(project):
    make_design(project)
    before = {name: project.path(name).read_text() for name in make_plan(project)}
    with pytest.raises(OutputError, match="exists"):
        make_design(project)
    assert {name: project.path(name).read_text() for name in make_plan(project)} == before


def test_an_unknown_method(project):
    project.write(hypothesis_file(0), ALLOCATION.model_copy(update={"title": "(ZZLoRA)"}), Made(by="hand"), again=True)
    with pytest.raises(UnknownNameError, match="no method is registered for 'ZZLoRA'"):
        make_design(project)
    design = make_design(project, options=DesignOptions({"ZZLoRA": "glora"}))
    assert design.arms[0].method["name"] == "glora"


def test_a_baseline_may_be_left_out():
    extra = ALLOCATION.model_copy(update={"experimental_setup": f"{ALLOCATION.experimental_setup} Baselines: BitFit."})
    with pytest.raises(UnknownNameError, match="BitFit"):
        draft(extra)
    found = draft(extra, extra={"BitFit": "none"})
    assert "'BitFit' is left out, as asked" in found.notes


def test_a_design_edited_by_hand_is_checked(project):
    make_design(project)
    body = json.loads(project.path("design.json").read_text())
    body["content"]["arms"][0]["method"]["betta"] = 0.5
    body["content"]["budgets"] = ["128 ranks"]
    project.path("design.json").write_text(json.dumps(body))
    with pytest.raises(ConfigError) as caught:
        make_plan(project)
    text = str(caught.value)
    assert "betta" in text
    assert "counts ranks" in text
    assert not project.has("plan.yaml")


class Sends:
    """Answers with one design, and keeps what was found wrong with it."""

    def __init__(self, content):
        self.content, self.problems, self.prompt = content, [], None

    def ask(self, prompt, kind, problems=None):
        assert kind is Design
        self.prompt = prompt
        self.problems = list(problems(self.content))
        if self.problems:
            raise ModelAnswerError("; ".join(self.problems))
        return Answer(self.content, Made(by="model", model="m"))


def proposal(**changes):
    values = {
        "name": "p",
        "question": "?",
        "model": "minilm",
        "arms": (DesignArm(name="glora", role="proposed", method={"name": "GLoRA"}),),
        "datasets": (Dataset(task="docstrings"),),
        "training": {"max_steps": 30, "batch_size": 8},
        "claims": (Claim(id="C", text="better", kind="superiority", arm="glora", reference="LoRA"),),
    }
    return Design(**{**values, **changes})


def test_a_model_proposes_and_code_completes(project):
    sends = Sends(proposal())
    design = make_design(project, sends)
    assert arms(design)["lora"] == ("control", "lora")
    assert design.claims[0].reference == "lora"
    assert project.made("design.json").by == "model"
    assert "the hypothesis" in sends.prompt.text
    assert "`glora`" in sends.prompt.text
    assert "`signal` (estimate)" in sends.prompt.text
    assert not [note for note in design.notes if "stand-in" in note]


def test_a_model_that_takes_another_method_for_the_proposal_is_told_on(project):
    """The verdicts would be about a method that nobody proposed."""
    other = DesignArm(
        name="ours", role="proposed", method={"name": "glora"}, said="Entropy-Weighted Sheaf LoRA (ShLoRA)"
    )
    peer = DesignArm(name="adalora", role="comparative", method={"name": "peft_adalora"}, said="AdaLoRA")
    claim = Claim(id="C", text="better", kind="superiority", arm="ours", reference="LoRA")
    sends = Sends(proposal(arms=(other, peer), claims=(claim,)))
    told = [note for note in make_design(project, sends).notes if "stand-in" in note]
    assert len(told) == 1
    assert "arm ours runs glora" in told[0]
    assert "ShLoRA" in told[0]
    make_plan(project)
    found = {one.id: one for one in review(project).comments}["S1"]
    assert (found.severity, found.status) == ("major", "open")
    said = DesignOptions({"Entropy-Weighted Sheaf LoRA (ShLoRA)": "glora"})
    assert not [note for note in make_design(project, sends, said, again=True).notes if "stand-in" in note]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": (DesignArm(name="x", role="proposed", method={"name": "glorra"}),)}, "did you mean 'glora'"),
        ({"arms": (DesignArm(name="x", role="proposed", method={"name": "glora", "beta": 3}),)}, "arms.x.method.beta"),
        ({"arms": (DesignArm(name="x", role="control", method={"name": "lora"}),)}, "role `proposed`"),
        ({"datasets": (Dataset(task="/etc/passwd"),)}, "is no task"),
        ({"datasets": (Dataset(task="glue/mnli", rows=7),)}, "7 training rows"),
        ({"model": "/some/folder"}, "must be minilm or a name on the hub"),
        ({"budgets": ("128 ranks",)}, "counts ranks"),
        ({"training": {"max_steps": 0}}, "training.max_steps"),
        ({"training": {"max_steps": 10, "warmup": 20}}, "20 steps"),
        ({"search": (Search(path="training.lr", kind="float", low=1e-4, high=1e-3),)}, "no field 'training.lr'"),
        ({"search": (Search(path="training.learning_rate", kind="float", low=1, high=0.1),)}, "must be below"),
    ],
)
def test_what_is_wrong_goes_back(project, changes, words):
    """Every problem in the answer, found by the code that would run it; nothing is written."""
    sends = Sends(proposal(**changes))
    with pytest.raises(ModelAnswerError):
        make_design(project, sends)
    assert any(words in problem for problem in sends.problems), sends.problems
    assert not project.has("design.json")


def test_a_sane_proposal_has_no_problems():
    assert design_problems(proposal(), SETTINGS, DesignOptions()) == []


def claim(**changes):
    values = {"id": "C", "text": "t", "kind": "superiority", "arm": "GLoRA", "reference": "LoRA"}
    return Claim(**{**values, **changes})


def mapped(**changes):
    return plan_claim(claim(**changes), {"GLoRA": "glora", "LoRA": "lora"}.get, "lora")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantity": "latency_ms", "kind": "bound", "at_most": 0.5}, "rankwise cost"),
        ({"arm": "Nobody"}, "no arm of the design is 'Nobody'"),
        ({"arm": None}, "which method"),
        ({"kind": "bound"}, "without a number"),
        ({"kind": "bound", "reference": None, "at_least": 0.9}, "by itself"),
        ({"kind": "bound", "quantity": "parameters", "at_most": 0.0}, "impossible"),
        ({"arm": "LoRA"}, "same arm"),
        ({"kind": "not-testable", "reason": "why not"}, "why not"),
    ],
)
def test_claims_that_no_run_decides(changes, words):
    found = mapped(**changes)
    assert found.kind == "not-testable"
    assert words in found.reason


def test_claims_are_completed():
    assert mapped(kind="equivalence").margin == 0.005
    assert mapped(kind="equivalence", quantity="train_seconds").margin == 0.02
    assert mapped(reference=None).reference == "lora"
    assert mapped(quantity="adapter_memory", kind="bound", at_most=0.05).metric == "parameters"
    both = mapped(kind="bound", quantity="parameters", at_least=0.99, at_most=1.01)
    assert (both.kind, both.at_most, both.at_least) == ("equivalence", None, None)
    assert both.margin == pytest.approx(0.0101)
    share = mapped(kind="bound", quantity="active_share", reference=None, at_most=0.2)
    assert (share.kind, share.reference, share.metric) == ("bound", "lora", "active_share")


def test_completing_twice_changes_nothing():
    once = completed(draft(ALLOCATION))
    assert completed(once) == once


def test_more_seeds_where_they_help_and_margins_where_they_do_not():
    design = completed(draft(LOCAL))
    facts = task_facts(design)
    big = design.model_copy(
        update={"claims": (claim(arm="glora", reference="lora", expected=0.05),), "seeds": 2, "notes": ()}
    )
    found = decidable(big, facts)
    assert 2 < found.seeds <= 20
    assert found.claims == big.claims
    tight = big.model_copy(update={"claims": (claim(arm="glora", reference="lora", kind="equivalence", margin=0.001),)})
    changed = decidable(tight, facts).claims[0]
    assert changed.margin > 0.001
    assert "tested at a margin of" in changed.text
    assert decidable(decidable(tight, facts), facts).claims == decidable(tight, facts).claims


def test_a_local_design_runs_as_it_stands():
    design = completed(draft(LOCAL))
    assert design.model == "minilm"
    assert run_problems(decidable(design, task_facts(design)), SETTINGS) == []
