"""Asking a person with a clipboard."""

import json

import pytest
from research.llm.talking import PROMPT, Pick

from rankwise.errors import ConfigError
from rankwise.research.conversation import digest, first_messages, schema_of
from rankwise.research.pasted import Pasted, PromptOnly, PromptWanted


def test_the_prompt_is_what_a_model_would_get():
    with pytest.raises(PromptWanted) as caught:
        PromptOnly().ask(PROMPT, Pick)
    system, user = first_messages(PROMPT, schema_of(Pick))
    assert caught.value.text == f"{system.text}\n\n{user.text}"
    assert caught.value.data == {
        "prompt": "pick",
        "system": system.text,
        "user": user.text,
        "schema": schema_of(Pick),
    }
    assert json.dumps(caught.value.data)


def test_an_answer_is_taken_and_says_how_it_came(tmp_path):
    file = tmp_path / "answer.txt"
    file.write_text("\ufeffSure!\r\n```json\r\n{'number': 7, 'why': 'it is prime'}\r\n```\r\n", encoding="utf-8")
    answer = Pasted(file).ask(PROMPT, Pick)
    assert answer.content == Pick(number=7, why="it is prime")
    assert (answer.made.by, answer.made.model) == ("answer", None)
    assert answer.made.prompt == digest(first_messages(PROMPT, schema_of(Pick)))


def test_a_second_question_is_shown(tmp_path):
    file = tmp_path / "answer.json"
    file.write_text('{"number": 7, "why": "it is prime"}')
    asker = Pasted(file)
    asker.ask(PROMPT, Pick)
    with pytest.raises(PromptWanted):
        asker.ask(PROMPT, Pick)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"number": 0, "more": 1}', ["number: ", "why: Field required", "more: Extra inputs"]),
        ('{"number": 4, "why": "even"}', ["number: is even"]),
        ("", ["no whole JSON object"]),
        ("x" * 2_000_000, ["2,000,000 characters"]),
    ],
)
def test_a_wrong_answer_lists_every_problem(tmp_path, text, said):
    file = tmp_path / "answer.json"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Pasted(file).ask(PROMPT, Pick, lambda pick: [] if pick.number % 2 else ["number: is even; odd ones only"])
    assert len(caught.value.findings) == len(said)
    for part in (*said, "answer.json (answer to the prompt 'pick')"):
        assert part in str(caught.value)


def test_an_answer_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Pasted(tmp_path / "none").ask(PROMPT, Pick)
    with pytest.raises(ConfigError, match="cannot be read"):
        Pasted(tmp_path).ask(PROMPT, Pick)
