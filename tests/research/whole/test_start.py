"""From papers to a page in one command: resumable at every boundary, with the same result."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from research.stages.scripted import ScriptedAsker
from research.whole.answers import MORE, write_papers

from rankwise.errors import ConfigError, ModelAnswerError
from rankwise.research.artefacts import Design
from rankwise.research.choice import Choice
from rankwise.research.papers import merge, read_papers
from rankwise.research.project import Project
from rankwise.research.review_types import Review, Verdicts
from rankwise.research.start import Start, _review, kept, start
from rankwise.research.status import status

STAGES = (
    "papers", "hypothesis 0", "evaluation 0", "hypothesis 1", "evaluation 1", "hypothesis 2", "evaluation 2",
    "choice", "design", "plan", "runs", "review", "page",
)  # fmt: skip

FILES = (
    "project.json",
    "papers.json",
    "hypothesis/000.json",
    "evaluation/000.json",
    "hypothesis/001.json",
    "evaluation/001.json",
    "hypothesis/002.json",
    "evaluation/002.json",
    "choice.json",
    "design.json",
    "plan.yaml",
    "run.json",
    "verdicts.json",
    "review.json",
    "settle.yaml",
    "settle-premise.yaml",
    "report.html",
)


def given(folder, model, **changes):
    values = {"topic": "Where should rank go?", "papers": write_papers(folder / "papers.txt"), "profile": "smoke"}
    return Start(**{**values, "base_model": str(model), "rounds": 2, **changes})


def asker(folder):
    """Quotes the papers, whether or not the project has them yet."""
    return ScriptedAsker(merge(read_papers(write_papers(folder / "quoted.txt"))), MORE)


def snapshot(project):
    """Every file as text, without the times at which it was made."""
    texts = {name: project.path(name).read_text(encoding="utf-8") for name in FILES}
    return {name: re.sub(r'"at": "[^"]*"', "", text) for name, text in texts.items()}


class Killed(Exception):
    """Stands for the end of the process."""


def go(project, wanted, *, stop_before=None):
    """All stages; killed before the one called `stop_before`. Returns the stages that were begun."""
    begun = []

    def say(text):
        begun.append(text.removesuffix(" …"))
        if begun[-1] == stop_before:
            raise Killed

    start(project, wanted, asker(project.folder.parent), say)
    return begun


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_folder):
    """A project that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    project = Project(folder / "project")
    stages = go(project, given(folder, model_folder))
    return project, stages


@pytest.mark.slow
def test_one_command_makes_everything(whole):
    project, stages = whole
    assert all(project.has(name) for name in FILES)
    assert stages == list(STAGES)


@pytest.mark.slow
def test_again_does_nothing(whole):
    project, _ = whole
    before = snapshot(project)
    assert go(project, Start(profile="smoke")) == []
    assert snapshot(project) == before


@pytest.mark.slow
def test_what_it_says(whole):
    """Verdicts from runs, a model's words marked, its response with runs kept, no comment answered without any."""
    project, _ = whole
    review = project.read("review.json", Review)
    words = {claim.id: claim.verdict for claim in review.claims}
    assert set(words) == {"C1", "C2", "C3", "C4", "control-lora"} or set(words) >= {"C1", "C2", "C3", "C4"}
    assert words["C4"] == "supported"
    assert {leaf.source for leaf in review.prose} == {"model"}
    cited = [one for one in review.responses if one.reply.source == "model"]
    assert [one.comment for one in cited] == ["M-C4"]
    known = {run for claim in review.claims for run in claim.runs}
    answered = {comment.id for comment in review.comments if comment.status == "answered"}
    assert answered == {one.comment for one in review.responses if one.runs}
    assert all(set(one.runs) <= known for one in review.responses)
    assert project.read("choice.json", Choice).round == 2
    assert [arm.name for arm in project.read("design.json", Design).arms] == ["glora", "adalora", "random", "lora"]


@pytest.mark.slow
def test_killed_at_every_boundary_comes_to_the_same(whole, tmp_path, model_folder):
    project, _ = whole
    other = Project(tmp_path / "project")
    wanted = given(tmp_path, model_folder)
    for stage in STAGES:
        with pytest.raises(Killed):
            go(other, wanted, stop_before=stage)
    go(other, wanted)
    assert snapshot(other) == snapshot(project)


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from research.stages.scripted import ScriptedAsker
from research.whole.answers import MORE
from research.whole.test_start import asker, given
from rankwise.research.project import Project
from rankwise.research.start import start

folder = Path({folder!r})
project = Project(folder / "project")
start(project, given(folder, {model!r}), asker(folder), lambda text: print(text, flush=True))
"""


def kill_when(program, there, seconds=300):
    """Start the program and SIGKILL it as soon as `there()`; returns whether it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        end = time.monotonic() + seconds
        while child.poll() is None and time.monotonic() < end:
            if there():
                child.send_signal(signal.SIGKILL)
                child.wait()
                return True
            time.sleep(0.01)
        child.kill()
    return False


@pytest.mark.slow
def test_killed_for_real(whole, tmp_path, model_folder):
    """SIGKILL while the rounds go on, right after the design, in the middle of the runs, and before the page."""
    project, _ = whole
    write_papers(tmp_path / "papers.txt")
    other = Project(tmp_path / "project")
    tests = str(Path(__file__).parents[2])
    program = PROGRAM.format(tests=tests, folder=str(tmp_path), model=str(model_folder))
    checkpoints = tmp_path / "project/runs/smoke/checkpoints"
    moments = (
        lambda: other.has("hypothesis/001.json"),
        lambda: other.has("design.json"),
        lambda: checkpoints.is_dir() and len(list(checkpoints.iterdir())) >= 2,
        lambda: other.has("review.json"),
    )
    killed = [kill_when(program, moment) for moment in moments]
    assert killed[:3] == [True, True, True]
    assert not [path for path in (tmp_path / "project").glob("*.json") if path.stat().st_size == 0]
    go(other, given(tmp_path, model_folder))
    assert snapshot(other) == snapshot(project)


@pytest.mark.slow
def test_a_changed_paper_is_noticed_and_nothing_of_the_model_is_lost(whole, tmp_path):
    project, _ = whole
    copy = Project(tmp_path / "copy")
    shutil.copytree(project.folder, copy.folder)
    body = json.loads(copy.path("papers.json").read_text())
    body["content"]["papers"][0]["title"] = "Another title"
    copy.path("papers.json").write_text(json.dumps(body))
    shown = status(copy)
    states = {one["stage"]: one["state"] for one in shown.data["stages"]}
    assert states["hypothesis 0"] == states["evaluation 2"] == "stale"
    assert states["plan"] == "done"
    assert any("hypothesis/000.json was made by model" in text for text in kept(copy))
    before = copy.path("hypothesis/000.json").read_bytes()
    go(copy, Start(profile="smoke"))
    assert copy.path("hypothesis/000.json").read_bytes() == before


@pytest.mark.slow
def test_a_design_changed_by_hand_is_run(whole, tmp_path):
    """The plan follows the design, runs that are there are not paid for twice, and the new claim is post hoc."""
    project, _ = whole
    copy = Project(tmp_path / "copy")
    shutil.copytree(project.folder, copy.folder)
    body = json.loads(copy.path("design.json").read_text())
    extra = {"id": "X", "text": "AdaLoRA beats chance.", "kind": "superiority", "arm": "adalora", "reference": "random"}
    body["content"]["claims"].append(extra)
    copy.path("design.json").write_text(json.dumps(body))
    runs = sorted(path.name for path in copy.path("runs/smoke/checkpoints").iterdir())
    assert go(copy, Start(profile="smoke")) == ["plan", "runs", "review", "page"]
    verdicts = {claim.id: claim for claim in copy.read("verdicts.json", Verdicts).claims}
    assert verdicts["X"].post_hoc
    assert not verdicts["C4"].post_hoc
    assert sorted(path.name for path in copy.path("runs/smoke/checkpoints").iterdir()) == runs


class Silent(ScriptedAsker):
    """Says nothing about a review."""

    def answer(self, prompt, kind):
        if kind.__name__ == "ReviewProse":
            raise ModelAnswerError("not on the cassette\nnearest: another")
        return super().answer(prompt, kind)


def test_prose_that_nobody_has_holds_nothing_up(tmp_path):
    from research.review.reviewed import ran

    project = ran(tmp_path)
    _review(project, Silent(None, MORE))
    found = project.read("review.json", Review)
    assert not found.prose
    assert found.notes[-1] == "without a model's prose: not on the cassette"
    assert project.made("review.json").by == "code"


def test_without_anybody_to_ask(tmp_path):
    project = Project(tmp_path / "project")
    with pytest.raises(ConfigError, match="--prompt-only"):
        start(project, Start(topic="Ranks", papers=write_papers(tmp_path / "papers.txt")), None, lambda text: None)
    assert project.has("papers.json")
    assert not project.has("hypothesis/000.json")


def test_no_topic_and_no_project(tmp_path):
    with pytest.raises(ConfigError, match="give a topic"):
        start(Project(tmp_path / "project"), Start(), None, lambda text: None)


def test_another_topic_is_refused(tmp_path):
    project = Project(tmp_path / "project")
    with pytest.raises(ConfigError, match="language model"):
        start(project, Start(topic="Ranks"), None, lambda text: None)
    with pytest.raises(ConfigError, match="'Ranks' in the project") as caught:
        start(project, Start(topic="Gates", rounds=7), None, lambda text: None)
    assert len(caught.value.findings) == 2


def test_papers_and_a_base_model_that_the_project_does_not_have_are_refused(tmp_path):
    """They were passed over in silence: the project went on with others."""
    project, papers = Project(tmp_path / "project"), write_papers(tmp_path / "papers.txt")
    asked = Start(topic="Ranks", papers=papers)
    with pytest.raises(ConfigError, match="language model"):
        start(project, asked, None, lambda text: None)
    with pytest.raises(ConfigError, match="language model"):  # the same command goes on
        start(project, asked, None, lambda text: None)
    (tmp_path / "more.json").write_text(json.dumps({"Title": "Ranks for nobody yet", "Methodology": "Other ranks."}))
    with pytest.raises(ConfigError, match=r"1 paper\(s\) that the project does not have"):
        start(project, Start(papers=tmp_path / "more.json"), None, lambda text: None)
    with pytest.raises(ConfigError, match="base_model: is 'other' here and 'minilm' in the project"):
        start(project, Start(base_model="other"), None, lambda text: None)


def test_rounds_alone(tmp_path):
    """Killed before every stage up to the choice: the same hypotheses, and the model was asked once for each."""
    project = Project(tmp_path / "project")
    wanted = Start(topic="Ranks", papers=write_papers(tmp_path / "papers.txt"))
    for stage in STAGES[:9]:
        with pytest.raises(Killed):
            go(project, wanted, stop_before=stage)
    assert project.rounds() == 3
    assert project.has("choice.json")
    shown = status(project)
    assert shown.data["next"].startswith("rankwise research design")
    assert "✓ evaluation 2" in shown.text
    assert "→ design" in shown.text


def until_runs(project):
    """The stages that are begun without anybody to ask, up to the runs."""
    begun = []

    def say(text):
        begun.append(text.removesuffix(" …"))
        if begun[-1] == "runs":
            raise Killed

    with pytest.raises(Killed):
        start(project, Start(profile="smoke"), None, say)
    return begun


def test_what_was_imported_goes_on_without_a_model(tmp_path):
    from research.review.reviewed import HAND, HYPOTHESIS, imported

    from rankwise.research.project import Settings

    (tmp_path / "one").mkdir()
    assert until_runs(imported(tmp_path / "one")) == ["design", "plan", "runs"]
    project = Project(tmp_path / "two")
    project.write("project.json", Settings(topic="Ranks"), HAND)
    project.write("hypothesis/000.json", HYPOTHESIS, HAND)
    assert until_runs(project) == ["evaluation 0", "choice", "design", "plan", "runs"]
