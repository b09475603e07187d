"""Conversations that are recorded and played again."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from research.llm.talking import KEY, PROMPT, Lines, Pick

from rankwise.errors import ConfigError, ModelAnswerError, OutputError
from rankwise.research import cassettes
from rankwise.research.asking import Prompt
from rankwise.research.calls import CallLog
from rankwise.research.cassettes import Player, Recorder, load
from rankwise.research.conversation import Conversing
from rankwise.research.project import Project

GOOD = '{"number": 7, "why": "it is prime"}'


def record(path, *lines):
    return Conversing(Recorder(Lines(*lines), path)).ask(PROMPT, Pick)


def test_a_conversation_with_its_mistakes_is_played_again(tmp_path):
    path = tmp_path / "tape.json"
    recorded = record(path, '{"number": 11, "why": "x"}', "no", GOOD)
    log = CallLog(Project(tmp_path))
    played = Conversing(Player(path, log)).ask(PROMPT, Pick)
    assert played.content == recorded.content
    assert (played.made.by, played.made.model, played.made.prompt) == ("cassette", "lines", recorded.made.prompt)
    assert [call.status for call in log.calls()] == ["replayed"] * 3
    assert log.spent().requests == 0


def test_it_can_be_played_more_than_once(tmp_path):
    record(tmp_path / "tape.json", GOOD)
    asker = Conversing(Player(tmp_path / "tape.json", CallLog()))
    assert asker.ask(PROMPT, Pick).content == asker.ask(PROMPT, Pick).content


def test_recording_goes_on_where_it_stopped_and_replaces_what_is_asked_again(tmp_path):
    path = tmp_path / "tape.json"
    record(path, GOOD)
    Conversing(Recorder(Lines(GOOD), path)).ask(Prompt("other", "s", "t"), Pick)
    record(path, '{"number": 3, "why": "another day"}')
    assert [item.prompt for item in load(path).recorded] == ["pick", "other"]
    assert Conversing(Player(path, CallLog())).ask(PROMPT, Pick).content.number == 3


def test_a_request_that_is_not_on_it_says_which_and_how_near(tmp_path):
    path = tmp_path / "tape.json"
    record(path, GOOD)
    Conversing(Recorder(Lines(GOOD), path)).ask(Prompt("other", "s", "something else"), Pick)
    changed = Prompt("pick", PROMPT.system, PROMPT.text.replace("1 and 10", "1 and 9"))
    with pytest.raises(ModelAnswerError) as caught:
        Conversing(Player(path, CallLog())).ask(changed, Pick)
    said = str(caught.value)
    assert "the request for 'pick' (turn 1, " in said
    assert "is not on this cassette of 2 request(s)" in said
    assert "The nearest is number 1 ('pick')" in said
    assert "recorded 'umber between 1 and 10, and say why.', now 'umber between 1 and 9, and say why.'" in said


def test_an_empty_cassette_says_so(tmp_path):
    (tmp_path / "tape.json").write_text('{"form": 1, "recorded": []}')
    with pytest.raises(ModelAnswerError, match="the cassette is empty"):
        Conversing(Player(tmp_path / "tape.json", CallLog())).ask(PROMPT, Pick)


def test_a_conversation_that_goes_on_is_near_the_one_that_ended(tmp_path):
    record(tmp_path / "tape.json", GOOD)
    player = Player(tmp_path / "tape.json", CallLog())
    with pytest.raises(ModelAnswerError, match="One goes on where the other ends"):
        Conversing(player).ask(PROMPT, Pick, lambda pick: ["never right"])


def test_there_is_no_key_on_it(tmp_path):
    from research.llm.server import Server, says
    from research.llm.talking import endpoint

    with Server([says(json.dumps({"number": 7, "why": KEY}))]) as server:
        Conversing(Recorder(endpoint(server), tmp_path / "tape.json")).ask(PROMPT, Pick)
        text = (tmp_path / "tape.json").read_text()
        assert KEY not in text
        assert server.url not in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", None),
        ("[]", "valid dictionary"),
        ('{"form": 2}', "this version reads form 1"),
        ('{"recorded": [{"key": 1}]}', "recorded.0.key"),
        ('{"recorded": [], "run": "rm"}', "run: Extra inputs"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_what_is_no_cassette_is_refused(tmp_path, content, said):
    path = tmp_path / "tape.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if said is None:
        assert load(path).recorded == ()
        return
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert said in str(caught.value)


def test_a_cassette_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Player(tmp_path / "none.json", CallLog())


def test_recording_never_begins_over_what_is_no_cassette(tmp_path):
    path = tmp_path / "thesis.json"
    path.write_text('{"chapter": 1}')
    with pytest.raises(ConfigError):
        Recorder(Lines(GOOD), path)
    assert path.read_text() == '{"chapter": 1}'


@given(st.binary(max_size=200))
def test_no_file_does_more_than_be_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("tape") / "tape.json"
    path.write_bytes(content)
    try:
        assert load(path).form == 1
    except ConfigError as error:
        assert error.findings  # noqa: PT017 - either is right


def test_measurements_do_not_keep_a_conversation_from_being_known_again(tmp_path):
    path = tmp_path / "tape.json"
    here = Prompt("pick", "s", "It took 12.3 seconds. Why?", known_by="It took a while. Why?")
    there = Prompt("pick", "s", "It took 45.6 seconds. Why?", known_by="It took a while. Why?")
    other = Prompt("pick", "s", "It took 12.3 seconds. Why?", known_by="It went fast. Why?")
    recorded = Conversing(Recorder(Lines("no", GOOD), path)).ask(here, Pick)
    player = Player(path, CallLog())
    played = Conversing(player).ask(there, Pick)
    assert played.content == recorded.content
    assert played.made.prompt != recorded.made.prompt
    assert "12.3" not in path.read_text()
    with pytest.raises(ModelAnswerError, match="is not on this cassette"):
        Conversing(player).ask(other, Pick)


def test_the_model_gets_the_measurements(tmp_path):
    lines = Lines(GOOD)
    Conversing(Recorder(lines, tmp_path / "tape.json")).ask(Prompt("pick", "s", "12.3", known_by="x"), Pick)
    assert lines.heard[0][1].text.startswith("12.3")


def test_two_commands_that_record_at_the_same_time_lose_nothing(tmp_path, monkeypatch):
    """Each wrote what it had heard itself over what the other one had recorded."""
    path, read = tmp_path / "tape.json", cassettes.load

    def slowly(path):
        found = read(path)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(cassettes, "load", slowly)
    prompts = [Prompt(name, "s", name) for name in ("one", "two", "three")]
    askers = [Conversing(Recorder(Lines(GOOD), path)) for _ in prompts]
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(asker.ask, prompt, Pick) for asker, prompt in zip(askers, prompts, strict=True)]:
            done.result()
    assert {item.prompt for item in load(path).recorded} == {"one", "two", "three"}
    assert [file.name for file in tmp_path.iterdir()] == ["tape.json"]


def test_a_place_that_cannot_be_written_is_said_before_anything_is_asked(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        Recorder(Lines(GOOD), tmp_path / "file" / "tape.json")


def test_other_words_for_what_is_wrong_do_not_keep_a_conversation_from_being_known_again(tmp_path):
    path = tmp_path / "tape.json"

    def odd(words):
        return lambda pick: [words] if pick.number == 3 else []

    lines = Lines('{"number": 3, "why": "x"}', GOOD)
    recorded = Conversing(Recorder(lines, path)).ask(PROMPT, Pick, odd("3 is odd"))
    assert Conversing(Player(path, CallLog())).ask(PROMPT, Pick, odd("three is odd")).content == recorded.content
