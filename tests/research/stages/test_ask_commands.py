"""The commands that ask, as they are typed."""

import json
import subprocess
import sys

import pytest
import typer
from research.llm.server import Server, answers, says
from research.stages.projects import PAPERS, TOPIC, new_project, project_with
from research.stages.scripted import FIRST, ROUNDS, SECOND, opinion
from typer.testing import CliRunner

from rankwise.cli_research_ask import add_to
from rankwise.errors import (
    ConfigError,
    LimitError,
    MissingPackageError,
    ModelAnswerError,
    OutputError,
    RankwiseError,
)
from rankwise.research.ask_options import ModelOptions, asker, somebody
from rankwise.research.calls import CallLog
from rankwise.research.project import Project

app = typer.Typer()
add_to(app)
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    for name in ("RANKWISE_MODEL", "RANKWISE_BASE_URL", "RANKWISE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def call(*words):
    """What a command prints; errors of ours are raised."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def scripted(request):
    """The answer to a request: the script of `scripted`, by the schema's name and the prompt."""
    text = request.body["messages"][1]["content"]
    if request.body["response_format"]["json_schema"]["name"] == "Opinion":
        number = next(n for n in range(3) if f"(hypothesis of round {n})" in text.split("# What code found")[0])
        return opinion(number, PAPERS).model_dump_json()
    return next((ROUNDS[n] for n in (1, 2) if f"Write round {n} of" in text), FIRST).model_dump_json()


def papers_file(folder):
    path = folder / "list.json"
    path.write_text(json.dumps([{"Title": "Low-rank adaptation", "Methodology": "One rank for all of the matrices."}]))
    return path


def test_from_a_topic_to_the_second_refinement_then_again_from_the_cassette(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    tape = tmp_path / "tape.json"

    def whole(folder, *how):
        call("hypothesize", TOPIC, "--output", folder, "--papers", papers, *how)
        for _ in range(2):
            call("evaluate", folder, *how)
            call("refine", folder, *how)
        return json.loads(call("evaluate", folder, "--json", *how))

    new_project(tmp_path / "source")
    papers = tmp_path / "source/papers.json"
    with Server([answers(scripted)]) as server:
        how = ("--model", "gpt-4o-mini", "--base-url", server.url, "--record", tape)
        first = whole(tmp_path / "a", *how)
    assert [item["round"] for item in first["standings"]] == [2, 1, 0]
    assert first["evaluated"] == [2]
    second = whole(tmp_path / "b", "--cassette", tape)
    assert second == first
    for name in ("hypothesis/002.json", "evaluation/001.json"):
        contents = [json.loads((tmp_path / run / name).read_text()) for run in "ab"]
        assert contents[0]["content"] == contents[1]["content"]
        assert [content["made"]["by"] for content in contents] == ["model", "cassette"]
    assert CallLog(Project(tmp_path / "b")).spent().requests == 0
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY in text for text in written)


def test_without_a_key_prompts_are_printed_and_answers_pasted(tmp_path):
    folder, answer = tmp_path / "p", tmp_path / "answer.txt"
    shown = call("hypothesize", TOPIC, "--output", folder, "--prompt-only")
    assert TOPIC in shown
    assert '"claims"' in shown
    assert not (folder / "hypothesis").exists()
    asked = json.loads(call("hypothesize", TOPIC, "--output", folder, "--prompt-only", "--json"))
    assert asked["prompt"] == "hypothesize-minimal"
    assert asked["schema"]["properties"]["claims"]
    answer.write_text(f"Here you are:\n```json\n{FIRST.model_dump_json(indent=1)}\n```")
    assert "proposed round 0" in call("hypothesize", TOPIC, "--output", folder, "--answer", answer)
    answer.write_text(repr(opinion(0, PAPERS).model_copy(update={"closest": ()}).model_dump(mode="json")))
    assert "novelty 4/10: a known signal" in call("evaluate", folder, "--answer", answer)
    assert "Write round 1 of the hypothesis" in call("refine", folder, "--prompt-only")
    answer.write_text(SECOND.model_dump_json())
    assert "  + C3  " in call("refine", folder, "--answer", answer)
    assert json.loads((folder / "hypothesis/001.json").read_text())["made"]["by"] == "answer"


def test_a_pasted_answer_that_is_wrong_lists_everything(tmp_path):
    answer = tmp_path / "answer.json"
    answer.write_text('{"title": "T", "method": "m", "claims": [{"id": "no good", "text": "t", "kind": "wish"}]}')
    with pytest.raises(ConfigError) as caught:
        call("hypothesize", TOPIC, "--output", tmp_path / "p", "--answer", answer)
    said = str(caught.value)
    for path in ("open_problems:", "experimental_setup:", "expected_result:", "claims.0.id:", "claims.0.kind:"):
        assert path in said


def test_one_answer_is_for_one_question(tmp_path):
    project_with(tmp_path, 2, judged=False)
    answer = tmp_path / "answer.json"
    answer.write_text(opinion(0, PAPERS).model_dump_json())
    shown = call("evaluate", tmp_path, "--answer", answer)
    assert "(hypothesis of round 1)" in shown
    assert (tmp_path / "evaluation/000.json").exists()
    assert not (tmp_path / "evaluation/001.json").exists()


def test_evaluate_without_a_model_checks_every_round(tmp_path):
    project_with(tmp_path, 2, judged=False)
    shown = call("evaluate", tmp_path)
    assert "no model was asked for its opinion" in shown
    assert "the name GLoRA is taken" in shown
    assert "every round is evaluated already" in call("evaluate", tmp_path)
    assert json.loads(call("evaluate", tmp_path, "--again", "--json"))["evaluated"] == [1]
    assert json.loads(call("evaluate", tmp_path, "--round", 0, "--again", "--json"))["evaluated"] == [0]
    with pytest.raises(OutputError, match="--again"):
        call("evaluate", tmp_path, "--round", 0)
    with pytest.raises(ConfigError, match="there is no round 7"):
        call("evaluate", tmp_path, "--round", 7)


def test_refining_stops_by_its_rule(tmp_path):
    project_with(tmp_path, 3)
    assert "no further round: all 2 refinement(s) are made" in call("refine", tmp_path)
    assert json.loads(call("refine", tmp_path, "--json"))["round"] is None
    assert "Write round 3" in call("refine", tmp_path, "--anyway", "--prompt-only")


def test_diff_shows_the_last_two_rounds_or_those_that_are_named(tmp_path):
    project_with(tmp_path, 3, judged=False)
    assert call("diff", tmp_path).startswith("round 1 -> round 2\n")
    assert call("diff", tmp_path, 0).startswith("round 0 -> round 2\n")
    data = json.loads(call("diff", tmp_path, 2, 0, "--json"))
    assert (data["before"], data["after"]) == (2, 0)
    assert {claim["kind"] for claim in data["claims"]} == {"removed"}
    for words in ((tmp_path, 0, 9), (new_project(tmp_path / "none").folder,)):
        with pytest.raises(ConfigError, match="cannot compare round"):
            call("diff", *words)


def test_a_project_keeps_its_topic(tmp_path):
    call("hypothesize", TOPIC, "--output", tmp_path, "--prompt-only")
    with pytest.raises(ConfigError, match=r"holds a project on 'Where should LoRA rank go\?', not on 'Something else'"):
        call("hypothesize", "Something else", "--output", tmp_path, "--prompt-only")


def test_papers_are_read_and_merged_when_the_project_begins(tmp_path):
    shown = call("hypothesize", TOPIC, "--output", tmp_path / "p", "--papers", papers_file(tmp_path), "--prompt-only")
    assert "One rank for all of the matrices." in shown
    assert (tmp_path / "p/papers.json").exists()


def test_a_style_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="--style: is 'bold'; allowed: minimal, free"):
        call("hypothesize", TOPIC, "--output", tmp_path, "--style", "bold")


@pytest.mark.parametrize("command", [("refine",), ("evaluate",), ("diff",)])
def test_a_folder_without_a_project(tmp_path, command):
    with pytest.raises(ConfigError, match="is no research project"):
        call(*command, tmp_path)


def test_nobody_to_ask_says_which_ways_there_are(tmp_path):
    project_with(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"--model or RANKWISE_MODEL.*--cassette.*--prompt-only.*--answer"):
        call("refine", tmp_path)


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        (ModelOptions(model="m"), {}, "no key: set RANKWISE_API_KEY or OPENAI_API_KEY"),
        (ModelOptions(model="m", base_url="ftp://x"), {}, "must begin with http:// or https://"),
        (ModelOptions(model="m"), {"OPENAI_API_KEY": "sk-\u00e9\u00e8"}, "a character that no key has"),
        (ModelOptions(prompt_only=True, cassette="t"), {}, "--cassette --prompt-only: exclude each other"),
        (ModelOptions(record="t"), {}, "--record: records what a model answers"),
    ],
)
def test_options_that_do_not_work(tmp_path, options, environment, said):
    with pytest.raises(ConfigError) as caught:
        asker(options, Project(tmp_path), environment)
    assert said in str(caught.value)
    assert "sk-" not in str(caught.value)


def test_options_and_environment_name_the_model(tmp_path):
    project = Project(tmp_path)
    assert asker(ModelOptions(), project, {}) is None
    own = {"RANKWISE_MODEL": "m", "RANKWISE_BASE_URL": "http://127.0.0.1:9/v1", "RANKWISE_API_KEY": " k1 \n"}
    speaker = somebody(ModelOptions(), project, own | {"OPENAI_API_KEY": "k2"}).speaker
    assert (speaker.name, speaker.base_url, speaker._key) == ("m", "http://127.0.0.1:9/v1", "k1")
    speaker = somebody(ModelOptions(model="n", max_cost=1.0), project, {"OPENAI_API_KEY": "k2"}).speaker
    assert (speaker.name, speaker.base_url, speaker._key) == ("n", "https://api.openai.com/v1", "k2")
    assert speaker.limits.cost == 1.0


def test_limits_hold_for_all_commands_of_a_project(tmp_path):
    project_with(tmp_path, 1, judged=False)
    with Server([answers(scripted)]) as server:
        how = ("--model", "m", "--base-url", server.url, "--max-requests", 1)
        call("evaluate", tmp_path, *how)
        with pytest.raises(LimitError, match="--max-requests 1: the project has made 1"):
            call("refine", tmp_path, *how)
    assert len(server.requests) == 1


OUTPUTS = [
    "",
    "{",
    '{"title": "../../etc/passwd", "method": "x"}',
    FIRST.model_dump_json()[:-200],
    FIRST.model_dump_json().replace('"C1"', '"../../../C1"'),
    FIRST.model_dump_json().replace('"title":"', '"title":"\\ud800\\u0000'),
    '{"a":' * 50_000,
    "{" * 900_000,
    '"' * 900_000,
    json.dumps({"title": "x" * 2_000_000}),
    "[" + FIRST.model_dump_json() * 40 + "]",
    "__import__('os').system('touch owned')",
    f"{{'title': open('owned', 'w'), **{FIRST.model_dump()!r}}}",
    "!!python/object/apply:os.system ['touch owned']",
    '{"$ref": "file:///etc/passwd"}',
    '{"__class__": "Hypothesis", "__init__": {"__globals__": {}}}',
    '{"title": NaN, "claims": 1e999}',
    '{"claims": ' + "9" * 10_000 + "}",
]


@pytest.mark.parametrize("output", OUTPUTS, ids=range(len(OUTPUTS)))
def test_whatever_a_model_says_it_stays_in_its_place(tmp_path, monkeypatch, output):
    """No crash, nothing executed, nothing written but in the project, an end after a few requests."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with Server([says(output)]) as server:
        try:
            call("hypothesize", TOPIC, "--output", "p", "--model", "m", "--base-url", server.url)
        except RankwiseError as error:
            assert len(str(error)) < 20_000  # noqa: PT017 - some are right
    assert len(server.requests) <= 5
    assert {path.name for path in tmp_path.iterdir()} == {"here"}
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"p"}
    assert {path.name for path in (tmp_path / "here/p").iterdir()} <= {"project.json", "calls.jsonl", "hypothesis"}


def test_without_pydantic_ai_it_says_what_to_install_and_the_other_ways_work(tmp_path, monkeypatch):
    project_with(tmp_path, 1, judged=False)
    for name in ("pydantic_ai", "pydantic_ai.models", "pydantic_ai.models.openai"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'rankwise\[research\]'.*--prompt-only"):
        call("refine", tmp_path, "--model", "m", "--base-url", "http://127.0.0.1:9/v1")
    assert "Write round 1" in call("refine", tmp_path, "--prompt-only")
    (tmp_path / "tape.json").write_text('{"recorded": []}')
    with pytest.raises(ModelAnswerError, match="the cassette is empty"):
        call("refine", tmp_path, "--cassette", tmp_path / "tape.json")


def test_the_options_cost_no_time_at_every_start():
    heavy = ("pydantic", "pydantic_ai", "torch")
    code = f"import sys, rankwise.cli_research_ask; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_same_command_again_knows_its_papers_and_does_not_drop_others(tmp_path):
    folder, papers = tmp_path / "p", papers_file(tmp_path)
    for _ in range(2):
        call("hypothesize", TOPIC, "--output", folder, "--papers", papers, "--prompt-only")
    papers.write_text(json.dumps([{"Title": "Another one", "Methodology": "Something else is done here."}]))
    with pytest.raises(ConfigError, match=r"has 1 paper\(s\) that the project does not have; .*papers add"):
        call("hypothesize", TOPIC, "--output", folder, "--papers", papers, "--prompt-only")
