"""A review is computed: verdicts answer comments, runs are cited, everything else stays open."""

import json
import re
from html.parser import HTMLParser

import pytest
from research.review.reviewed import DESIGN, designed, imported, ran
from typer.testing import CliRunner

from rankwise.cli import app
from rankwise.errors import ConfigError, ModelAnswerError, RankwiseError
from rankwise.experiments.plan_runs import load_plan
from rankwise.research.artefacts import Claim, DesignArm
from rankwise.research.asking import Answer
from rankwise.research.design import make_design, make_plan
from rankwise.research.page import write_page
from rankwise.research.project import Made
from rankwise.research.review import prose_problems, review, with_prose
from rankwise.research.review_ledger import ledger
from rankwise.research.review_types import ProposedComment, ProposedResponse, Review, ReviewProse


def rankwise(*words):
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])
    if isinstance(found.exception, RankwiseError):
        return 2, str(found.exception)
    return found.exit_code, found.stdout if found.exit_code == 0 else found.output


def comments(found):
    return {comment.id: comment for comment in found.comments}


def test_verdicts_answer_comments(tmp_path):
    found = review(ran(tmp_path))
    words = {claim.id: claim.verdict for claim in found.claims}
    assert words == {"better": "supported", "worse": "refuted", "close": "inconclusive", "never": "not testable"}
    states = {name: comment.status for name, comment in comments(found).items() if name.startswith("M-")}
    assert states == {
        "M-better": "answered",
        "M-worse": "answered",
        "M-close": "open",
        "M-never": "not testable",
    }
    wanted = comments(found)["M-close"].wants
    assert "seeds" in wanted  # what the verdict says, and not once more what was done
    assert found.if_right[0].text == "better: glora beats lora. So far: supported."
    by_comment = {response.comment: response for response in found.responses}
    assert set(by_comment) == {"M-better", "M-worse"}
    claim = next(claim for claim in found.claims if claim.id == "better")
    assert by_comment["M-better"].runs == claim.runs
    assert len(claim.runs) == 4
    assert by_comment["M-better"].reply.source == "measured"
    assert "main metric of glora against lora" in by_comment["M-better"].reply.text
    assert "2 paired seeds" in by_comment["M-better"].reply.text


def test_a_review_that_replaces_a_models_says_so(tmp_path):
    project = ran(tmp_path)
    project.write("review.json", review(project), Made(by="model", model="some-model"), again=True)
    assert review(project).notes[-1].startswith("without the prose of the review that was here (by some-model)")
    assert not any("prose" in note for note in review(project).notes)


def test_without_runs_nothing_is_answered(tmp_path):
    found = review(designed(tmp_path))
    assert not found.responses
    assert {comment.status for comment in found.comments} <= {"open", "not testable"}
    assert found.summary.source == "derived"
    assert "Nothing was run" in found.summary.text
    assert [circle.name for circle in found.circularity] == ["no-runs"]


def test_leaves_say_where_they_come_from(tmp_path):
    project = ran(tmp_path)
    found = review(project)
    assert found.core_claim.source == "declared"
    assert found.summary.source == "measured"
    assert "1 supported, 1 refuted, 1 inconclusive, 1 not testable" in found.summary.text
    known = {run for claim in found.claims for run in claim.runs}
    assert known <= set(found.summary.evidence)
    assert found.premise.source == "derived"
    assert "settle-premise.yaml" in found.premise.text


def test_a_measured_premise(tmp_path):
    found = review(ran(tmp_path, premise=0.42))
    assert found.premise.source == "measured"
    assert "+0.42" in found.premise.text
    assert len(found.premise.evidence) == 6


def test_what_runs_left_open_is_said_to_be_open(tmp_path):
    found = comments(review(ran(tmp_path)))
    assert re.match(r"\d+ runs leave close open: ", found["M-close"].objection.text)
    assert found["M-better"].objection.text.startswith("The text gives no measurement for better: ")


@pytest.mark.slow
def test_what_would_settle_it_can_be_run(tmp_path):
    """The open claim alone, and the plan passes the check by which plans are refused."""
    project = ran(tmp_path)
    review(project)
    plan = load_plan(project.path("settle.yaml"))
    assert [claim.id for claim in plan.config.claims] == ["close"]
    assert plan.config.protocol.tuning is not None
    for name in ("settle.yaml", "settle-premise.yaml"):
        code, text = rankwise("plan", "check", project.path(name), "--no-probe")
        assert code == 0, text
    assert load_plan(project.path("settle.yaml"), "full").config.seeds == plan.config.seeds
    premise = load_plan(project.path("settle-premise.yaml")).config
    assert premise.evaluation.premise
    assert {arm.method["signal"] for arm in premise.arms.values()} == {"estimate", "random"}


def test_other_model_than_the_text_speaks_of(tmp_path):
    """Verdicts of a profile are about that profile."""
    project = ran(tmp_path, model="microsoft/deberta-v3-base")
    found = review(project)
    comment = comments(found)["P-profile"]
    assert comment.status == "open"
    assert "minilm in place of microsoft/deberta-v3-base" in comment.objection.text


def test_circles(tmp_path):
    project = ran(tmp_path)
    states = {circle.name: circle.found for circle in review(project).circularity}
    assert states == {
        "selection-split": "no",
        "threshold-after-results": "no",
        "signal-sees-evaluation": "no",
        "baseline-transcribed": "no",
        "expected-from-measured": "no",
    }
    late = Claim(id="late", text="made later", kind="superiority", arm="glora", reference="lora", margin=0.1)
    body = json.loads(project.path("design.json").read_text())
    body["content"]["claims"].append(late.model_dump(mode="json"))
    project.path("design.json").write_text(json.dumps(body))
    make_plan(project)
    from rankwise.research.run import judge

    judge(project, "smoke")
    states = {circle.name: circle for circle in review(project).circularity}
    assert states["threshold-after-results"].found == "yes"
    assert "late" in states["threshold-after-results"].why.text


def test_a_prediction_that_is_the_estimate_is_suspicious(tmp_path):
    project = ran(tmp_path)
    body = json.loads(project.path("verdicts.json").read_text())
    body["content"]["claims"][0]["expected"] = body["content"]["claims"][0]["estimate"]
    project.path("verdicts.json").write_text(json.dumps(body))
    states = {circle.name: circle.found for circle in review(project).circularity}
    assert states["expected-from-measured"] == "yes"


def test_the_ledger_counts_every_setting():
    design = DESIGN.model_copy(
        update={
            "arms": (DesignArm(name="a", role="proposed", method={"name": "adalora", "beta1": 0.9}), *DESIGN.arms[1:])
        }
    )
    found = ledger(design, "minilm")
    own = {entry.name: entry.state for entry in found.entries if entry.arm == "a"}
    assert {"warmup", "final", "every", "beta2", "initial_ratio", "orthogonality", "scaling"} <= set(own)
    assert own["beta1"] == "given"
    assert own["initial_ratio"] == "sourced"
    assert own["scaling"] == "free"
    assert not any(entry.arm in ("lora", "random") for entry in found.entries)
    (gate,) = found.entities
    assert (gate.name, gate.parameters) == ("gate", 36 * 6)
    assert str(len(found.entries)) in found.note.text


def test_a_router_is_an_entity_with_its_parameters():
    arms = (DesignArm(name="c", role="proposed", method={"name": "cogalora"}), *DESIGN.arms[1:])
    entities = {one.name: one.parameters for one in ledger(DESIGN.model_copy(update={"arms": arms}), "minilm").entities}
    assert entities["lora_router"] > 10_000


def prose(**changes):
    values = {"summary": "s", "significance": "g", "carries": "c"}
    return ReviewProse(**{**values, **changes})


def response(comment, *runs):
    return ProposedResponse(comment=comment, reply="Yes, it was run.", runs=runs)


def test_a_response_may_only_cite_runs_about_its_claim(tmp_path):
    found = review(ran(tmp_path))
    runs = {claim.id: claim.runs for claim in found.claims}
    assert prose_problems(prose(responses=(response("M-better", runs["better"][0]),)), found) == []
    foreign = next(run for run in runs["close"] if run not in runs["better"])
    for wrong, words in (
        (response("M-better", "no-such-run"), "no run about better has the id no-such-run"),
        (response("M-better", foreign), foreign),
        (response("M-nobody", runs["better"][0]), "there is no comment 'M-nobody'"),
        (response("D1", runs["better"][0]), "no run about"),
    ):
        (problem,) = prose_problems(prose(responses=(wrong,)), found)
        assert words in problem
        with pytest.raises(ConfigError):
            with_prose(found, prose(responses=(wrong,)))


def test_words_of_a_model_decide_nothing(tmp_path):
    found = review(ran(tmp_path))
    made = with_prose(
        found,
        prose(
            comments=(
                ProposedComment(severity="major", about="close", objection="Not shown."),
                ProposedComment(severity="minor", about="better", objection="Is it?"),
                ProposedComment(severity="minor", objection="Unclear."),
            ),
            between_lines=("It may help elsewhere.",),
        ),
    )
    added = {comment.objection.text: comment.status for comment in made.comments if comment.objection.source == "model"}
    assert added == {"Not shown.": "open", "Is it?": "answered", "Unclear.": "open"}
    assert {leaf.source for leaf in (*made.prose, *made.between_lines)} == {"model"}
    assert made.claims == found.claims
    assert all(answer.runs for answer in made.responses if answer.comment.startswith("L"))


class Asks:
    """Answers with prose, as often as it takes to see what is wrong."""

    def __init__(self, content):
        self.content, self.prompt = content, None

    def ask(self, prompt, kind, problems=None):
        self.prompt = prompt
        if found := list(problems(self.content)):
            raise ModelAnswerError("; ".join(found))
        return Answer(self.content, Made(by="model", model="m"))


def test_invented_evidence_is_refused(tmp_path):
    project = ran(tmp_path)
    with pytest.raises(ModelAnswerError, match="no run about close"):
        review(project, Asks(prose(responses=(response("M-close", "glora-new-run"),))))
    assert not project.has("review.json")
    asks = Asks(prose())
    review(project, asks)
    assert project.made("review.json").by == "model"
    assert "close is inconclusive" in asks.prompt.text
    assert "M-close (open" in asks.prompt.text


def test_the_same_twice(tmp_path):
    project = ran(tmp_path)
    one = review(project)
    before = {name: project.path(name).read_text() for name in ("settle.yaml", "settle-premise.yaml")}
    assert review(project) == one
    assert {name: project.path(name).read_text() for name in before} == before


@pytest.mark.slow
def test_an_imported_review_is_corrected_and_planned(tmp_path):
    project = imported(tmp_path)
    design = make_design(project)
    make_plan(project)
    assert {arm.name: arm.role for arm in design.arms} == {
        "adalora": "proposed",
        "peft_adalora": "comparative",
        "lora": "control",
        "random": "control",
        "glora": "control",
    }
    assert [claim.id for claim in design.claims if claim.kind != "not-testable"] == [
        "A-lora",
        "A-random",
        "A-glora",
        "A-time",
    ]
    found = review(project)
    text = " ".join(leaf.text for leaf in found.corrections)
    assert "smoothed sensitivity" in text
    assert "0 free parameters" in text
    assert "without a single run" in text
    assert "Corrected by code" in found.core_claim.text
    assert found.core_claim.source == "derived"
    assert "Corrected by code" in found.premise.text
    assert comments(found)["major-1"].status == "open"
    assert comments(found)["major-1"].about == "A-random, A-glora"
    (told,) = found.responses
    assert (told.comment, told.runs, told.revised, told.reply.source) == ("major-1", (), True, "declared")
    assert found.ledger.count("free") > 0
    assert len([entry for entry in found.ledger.entries if entry.arm == "adalora"]) >= 8
    code, out = rankwise("plan", "check", project.path("settle.yaml"), "--no-probe")
    assert code == 0, out


class Reads(HTMLParser):
    """Counts what a page loads, and keeps its words."""

    def __init__(self):
        super().__init__()
        self.loaded, self.text, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data") and value and not value.startswith(("#", "data:")):
                self.loaded.append((tag, value))
            assert not name.startswith("on"), name

    def handle_data(self, data):
        self.text.append(data)


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)></style>{{7*7}}{0}%s&amp;"


@pytest.mark.slow
def test_the_page_holds_everything_and_loads_nothing(tmp_path):
    project = ran(tmp_path)
    review(project)
    reader = Reads()
    reader.feed(write_page(project).read_text(encoding="utf-8"))
    assert reader.loaded == []
    assert "script" not in reader.tags
    assert "svg" in reader.tags
    text = " ".join(reader.text)
    for words in ("supported", "refuted", "inconclusive", "not testable", "Load-bearing premise", "Ledger", "measured"):
        assert words in text, words


def test_whatever_a_text_holds_stays_text(tmp_path):
    project = ran(tmp_path, question=EVIL, notes=(EVIL,))
    body = json.loads(project.path("hypothesis/000.json").read_text())
    body["content"] |= {"title": EVIL, "method": EVIL, "changes": EVIL}
    project.path("hypothesis/000.json").write_text(json.dumps(body))
    review(project)
    page = write_page(project).read_text(encoding="utf-8")
    reader = Reads()
    reader.feed(page)
    assert "script" not in reader.tags
    assert "img" not in reader.tags
    assert EVIL in "".join(reader.text)


@pytest.mark.slow
def test_commands(tmp_path):
    project = ran(tmp_path)
    code, text = rankwise("research", "review", project.folder)
    assert code == 0, text
    assert "2 open" not in text.splitlines()[0]
    assert "M-close (major, open)" in text
    code, text = rankwise("research", "review", project.folder, "--json")
    assert Review.model_validate(json.loads(text)).subject == "Rank by gradient norms (GLoRA)"
    code, text = rankwise("research", "status", project.folder, "--json")
    states = {one["stage"]: one["state"] for one in json.loads(text)["stages"]}
    assert states["review"] == states["page"] == states["verdicts"] == "done"
    assert states["evaluation 0"] == "not needed"  # the design was made without it
    assert json.loads(text)["runs"] == {"profile": "smoke", "completed": 6, "planned": 6}


def test_what_is_no_project(tmp_path):
    assert rankwise("research", "review", tmp_path)[0] == 2
    code, text = rankwise("research", "review", tmp_path / "record.txt")
    assert (code, "--output" in text) == (2, True)
    code, text = rankwise("research", "status", tmp_path)
    assert code == 2
    assert "no research project" in text
