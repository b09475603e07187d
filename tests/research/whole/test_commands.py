"""The research commands as they are typed: options, refusals, plug-ins, profiles."""

import json

import pytest
from research.design.hypotheses import ALLOCATION, LOCAL
from research.review.reviewed import designed, ran
from typer.testing import CliRunner

from rankwise.adapters.contract import METHODS
from rankwise.cli import app
from rankwise.errors import ConfigError, OutputError, RankwiseError
from rankwise.research import run as running
from rankwise.research import whole_commands
from rankwise.research.ask_options import ModelOptions
from rankwise.research.design import make_design, make_plan
from rankwise.research.design_plugins import add_plugins
from rankwise.research.project import Made, Project, Settings, hypothesis_file
from rankwise.research.run import choose_profile
from rankwise.research.stages import standings
from rankwise.research.whole_commands import Naming, design, minutes_of

PLUGIN = '''
"""Uniform LoRA under another name."""
from typing import Literal

from rankwise.adapters.contract import METHODS
from rankwise.adapters.methods.lora import LoraConfig


@METHODS.register("{name}")
class MyConfig(LoraConfig):
    """LoRA, called otherwise."""

    name: Literal["{name}"] = "{name}"
'''


def rankwise(*words):
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["research", *(str(word) for word in words)])
    if isinstance(found.exception, RankwiseError):
        return 2, str(found.exception)
    return found.exit_code, found.stdout if found.exit_code == 0 else found.output


@pytest.fixture
def project(tmp_path):
    found = Project(tmp_path / "project")
    found.write("project.json", Settings(topic="Ranks"), Made(by="hand"))
    found.write(hypothesis_file(0), LOCAL, Made(by="hand"))
    return found


@pytest.fixture
def plugin(tmp_path):
    """A file that registers a method of its own; gone from the registry afterwards."""
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="mylora"))
    yield path
    METHODS._entries.pop("mylora", None)


@pytest.mark.parametrize(("text", "minutes"), [("30min", 30), ("2h", 120), ("90s", 1.5), ("45", 45), ("0.5 h", 30)])
def test_times(text, minutes):
    assert minutes_of(text) == pytest.approx(minutes)


@pytest.mark.parametrize("text", ["", "soon", "-3min", "0", "3 days", "1e400h", "٣min"])
def test_times_that_are_none(text):
    with pytest.raises(ConfigError, match="is no time"):
        minutes_of(text)


def test_an_evaluation_that_the_design_did_not_wait_for_is_not_next(project):
    assert next(one.stage.name for one in standings(project) if one.state == "next") == "evaluation 0"
    make_design(project)
    states = {one.stage.name: one.state for one in standings(project)}
    assert states["evaluation 0"] == "not needed"
    assert states["design"] == "done"


@pytest.mark.slow
def test_design_and_status(project):
    code, text = rankwise("design", project.folder)
    assert code == 0, text
    assert "next: rankwise research run" in text
    assert "configs/proposed-minilm--docstrings.yaml" in text
    assert json.loads(rankwise("status", project.folder, "--json")[1])["next"].startswith("rankwise research run")
    code, text = rankwise("design", project.folder, "--json")
    assert {arm["name"] for arm in json.loads(text)["design"]["arms"]} == {"glora", "lora", "random", "peft_adalora"}
    code, text = rankwise("design", project.folder, "--again", "--strict")
    assert code == 2
    assert "no arm is random" in text


def test_options_of_a_design_that_is_there_already_are_said_to_be_for_a_new_one(project, monkeypatch):
    """They were passed over in silence, wrong ones too."""
    monkeypatch.setattr(whole_commands, "make_plan", lambda project: [])
    make_design(project)
    with pytest.raises(ConfigError, match="write SAID=METHOD"):
        design(project.folder, ModelOptions(), Naming(("nonsense",)), again=False)
    said = design(project.folder, ModelOptions(), Naming(("X=glora",), strict=True), again=False).text
    assert "is the one that was there, and --map is for a new one, --strict is for a new one; --again makes" in said
    assert "that was there" not in design(project.folder, ModelOptions(), Naming(), again=False).text


def test_an_unknown_method_and_what_to_do(project):
    body = LOCAL.model_copy(update={"title": "(ZZLoRA)", "claims": ()})
    project.write(hypothesis_file(0), body, Made(by="hand"), again=True)
    code, text = rankwise("design", project.folder)
    assert code == 2
    assert "--map 'ZZLoRA=NAME'" in text
    code, text = rankwise("design", project.folder, "--map", "ZZLoRA=glora")
    assert code == 0, text
    code, text = rankwise("design", project.folder, "--again", "--map", "ZZLoRA")
    assert code == 2
    assert "SAID=METHOD" in text


def test_a_plugin_is_loaded_by_later_commands_too(project, plugin):
    body = LOCAL.model_copy(update={"title": "My LoRA (mylora)", "claims": ()})
    project.write(hypothesis_file(0), body, Made(by="hand"), again=True)
    code, text = rankwise("design", project.folder, "--plugin", plugin)
    assert code == 0, text
    assert json.loads(project.path("design.json").read_text())["content"]["arms"][0]["method"] == {"name": "mylora"}
    assert project.path("plugins/mine.py").read_text() == plugin.read_text()
    assert rankwise("design", project.folder, "--again")[0] == 0
    code, text = rankwise("run", project.folder, "--engine", "local")
    assert code == 2
    assert "without --engine" in text
    project.path("plugins/mine.py").write_text("raise SystemExit")
    code, text = rankwise("design", project.folder, "--again")
    assert code == 2
    assert "was changed since it was added" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1\n", "registers no method"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit"),
        (None, "no such file"),
    ],
)
def test_plugins_that_are_none(project, tmp_path, content, words):
    path = tmp_path / "bad.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        add_plugins(project, [path])
    assert not project.has("plugins.json")


def test_a_plugin_that_failed_can_be_mended(project, plugin):
    """The copy that the failure left, or a kill in the middle of copying, is in nobody's way."""
    right = plugin.read_text()
    plugin.write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        add_plugins(project, [plugin])
    plugin.write_text(right)
    add_plugins(project, [plugin])
    assert project.path("plugins/mine.py").read_text() == right
    plugin.write_text(f"{right}\n# another one\n")
    with pytest.raises(OutputError, match="another plug-in of that name"):
        add_plugins(project, [plugin])


def test_no_text_names_a_plugin(project, tmp_path):
    """What a hypothesis says is never a file that is executed."""
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    body = LOCAL.model_copy(update={"title": f"({trap})", "method": f"--plugin {trap}", "claims": ()})
    project.write(hypothesis_file(0), body, Made(by="hand"), again=True)
    rankwise("design", project.folder)
    assert not (tmp_path / "ran").exists()


def timed(monkeypatch, **minutes):
    """Profiles that take so long: the clock is not what is tested here."""
    monkeypatch.setattr(
        running,
        "_estimate",
        lambda file, profile: running.Estimate(profile=profile, runs=1, minutes=minutes.get(profile), note="not here"),
    )


@pytest.mark.parametrize(
    ("minutes", "budget", "profile"),
    [
        ({"full": 500, "pilot": 40, "smoke": 3}, 30, "smoke"),
        ({"full": 500, "pilot": 40, "smoke": 3}, 60, "pilot"),
        ({"full": 20, "pilot": 40, "smoke": 3}, 30, "full"),
        ({"pilot": 10, "smoke": 3}, 30, "pilot"),
    ],
)
def test_the_largest_profile_that_fits(tmp_path, monkeypatch, minutes, budget, profile):
    project = designed(tmp_path)
    timed(monkeypatch, **minutes)
    assert choose_profile(project, budget_minutes=budget).profile == profile


def test_nothing_fits(tmp_path, monkeypatch):
    project = designed(tmp_path)
    timed(monkeypatch, pilot=40, smoke=3)
    with pytest.raises(ConfigError, match="1 minutes are too few") as caught:
        choose_profile(project, budget_minutes=1)
    assert "not here" in str(caught.value)
    assert choose_profile(project, "smoke", 1).profile == "smoke"


def test_the_choice_is_kept(tmp_path, monkeypatch):
    """A second look at the clock changes nothing, another plan does."""
    project = designed(tmp_path)
    timed(monkeypatch, smoke=3)
    assert running._chosen(project, None, None).profile == "smoke"
    timed(monkeypatch, full=1)
    assert running._chosen(project, None, None).profile == "smoke"
    assert running._chosen(project, None, 99).profile == "full"
    timed(monkeypatch, smoke=3)
    project.path("plan.yaml").write_text(project.path("plan.yaml").read_text() + "\n# changed\n")
    assert running._chosen(project, None, None).profile == "smoke"


def test_runs_of_another_plan_stay(tmp_path):
    """A plan of another name gets a folder of its own."""
    project = ran(tmp_path)
    assert running.folder_of(project, "smoke") == "runs/smoke"
    body = json.loads(project.path("design.json").read_text())
    body["content"]["name"] = "another"
    project.path("design.json").write_text(json.dumps(body))
    make_plan(project)
    assert running.folder_of(project, "smoke") == "runs/smoke-another"
    assert running.status_of(project) == {"profile": "smoke", "completed": 0, "planned": 6}


def test_run_without_a_plan(project):
    code, text = rankwise("run", project.folder)
    assert code == 2
    assert "rankwise research design" in text


def test_a_profile_that_is_none(tmp_path):
    project = designed(tmp_path)
    code, text = rankwise("run", project.folder, "--profile", "smok")
    assert code == 2
    assert "did you mean 'smoke'" in text


def test_prompt_only_and_answer(tmp_path):
    """The design without a key: the prompt out, the answer in, and what is wrong with it by path."""
    project = Project(tmp_path / "project")
    project.write("project.json", Settings(topic="Ranks"), Made(by="hand"))
    project.write(hypothesis_file(0), ALLOCATION, Made(by="hand"))
    code, text = rankwise("design", project.folder, "--prompt-only")
    assert code == 0, text
    assert "Design the experiment" in text
    assert "Rank by gradient norms" in text
    assert not project.has("design.json")
    answer = tmp_path / "answer.txt"
    content = {
        "name": "p",
        "question": "?",
        "model": "minilm",
        "arms": [{"name": "g", "role": "proposed", "method": {"name": "glorra"}}],
        "datasets": [{"task": "docstrings"}],
    }
    answer.write_text(f"Here it is:\n```json\n{json.dumps(content)}\n```\n")
    code, text = rankwise("design", project.folder, "--answer", answer)
    assert code == 2
    assert "glora" in text
    content["arms"][0]["method"]["name"] = "glora"
    answer.write_text(json.dumps(content))
    code, text = rankwise("design", project.folder, "--answer", answer)
    assert code == 0, text
    assert project.made("design.json").by == "answer"


def test_pairs():
    assert Naming(["a=b", "c d=e=f"]).options().names == {"a": "b", "c d": "e=f"}


@pytest.mark.parametrize("command", [["run", "{}"], ["start", "--output", "{}"]])
def test_workers_without_an_engine_are_refused(project, command):
    code, text = rankwise(*(word.format(project.folder) for word in command), "--workers", "3")
    assert code == 2
    assert "--workers: is for an engine; name one with --engine" in text


def test_an_estimate_counts_trials_once(tmp_path, monkeypatch):
    from rankwise.experiments import plan_model
    from rankwise.experiments.tuning import every_run

    monkeypatch.setattr(plan_model, "seconds_of", lambda plan: {"docstrings": 60.0 * len(every_run(plan))})
    content = {
        "name": "p",
        "arms": {"lora": "lora", "glora": "glora"},
        "tasks": "docstrings",
        "protocol": {"tuning": {"learning_rates": [1e-3, 1e-2]}},
        "profiles": {"smoke": {"seeds": 2}},
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(content))
    found = running._estimate(tmp_path / "plan.yaml", "smoke")
    assert found.runs == 4 + 4
    assert found.minutes == pytest.approx(8 * (60 * running.BEYOND + running.PER_RUN) / 60, abs=0.01)
