"""The endpoint: what is sent, what comes back, and everything that can go wrong in between."""

import asyncio
import json

import pytest
from research.llm.server import USAGE, Server, drips, floods, hangs_up, refuses, says, sends
from research.llm.talking import KEY, PROMPT, Pick, endpoint

from rankwise.errors import LimitError, ModelAnswerError
from rankwise.research.calls import CallLog
from rankwise.research.conversation import Conversing, Message, first_messages, wanted
from rankwise.research.limits import Limits
from rankwise.research.llm import LONGEST_PAUSE, TRIES, Endpoint
from rankwise.research.project import Project

GOOD = '{"number": 7, "why": "it is prime"}'
WANTED = wanted(PROMPT, Pick)
MESSAGES = first_messages(PROMPT, WANTED.schema)


def ask(speaker, problems=None):
    return Conversing(speaker).ask(PROMPT, Pick, problems)


def statuses(made):
    return [call.status for call in made.log.calls()]


def test_what_is_sent_and_what_comes_back():
    with Server([says(GOOD)]) as server:
        made = endpoint(server)
        answer = ask(made)
    (request,) = server.requests
    assert answer.content == Pick(number=7, why="it is prime")
    assert (answer.made.by, answer.made.model) == ("model", "gpt-4o-mini")
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert [message["role"] for message in request.body["messages"]] == ["system", "user"]
    assert [message["content"] for message in request.body["messages"]] == [m.text for m in MESSAGES]
    assert request.body["response_format"]["type"] == "json_schema"
    assert request.body["response_format"]["json_schema"]["name"] == "Pick"
    assert "tools" not in request.body
    assert not request.body.get("stream")


def test_every_call_is_logged_with_tokens_cost_and_time(tmp_path):
    log = CallLog(Project(tmp_path))
    with Server([says(GOOD)]) as server:
        ask(endpoint(server, log=log))
    (call,) = log.calls()
    assert (call.prompt, call.model, call.status) == ("pick", "gpt-4o-mini", "ok")
    assert (call.input_tokens, call.output_tokens, call.estimated) == (1000, 200, False)
    assert call.cost == pytest.approx(1000 * 0.15e-6 + 200 * 0.6e-6)  # what OpenAI asks for this model
    assert call.latency_ms > 0
    assert KEY not in (tmp_path / "calls.jsonl").read_text()


def test_a_wrong_answer_goes_back_with_what_is_wrong():
    with Server([says('{"number": 11, "why": "more"}'), says("I'd rather not"), says(GOOD)]) as server:
        made = endpoint(server)
        assert ask(made).content.number == 7
    said = [message["content"] for message in server.requests[2].body["messages"]]
    assert said[2] == '{"number": 11, "why": "more"}'
    assert "number: Input should be less than or equal to 10, got '11'" in said[3]
    assert said[4] == "I'd rather not"
    assert "no whole JSON object" in said[5]
    assert statuses(made) == ["ok"] * 3


@pytest.mark.parametrize("text", ["", None, "```", '{"number": 7', "\x00", "[]" * 999, '{"number": 7, "why": ' * 99])
def test_answers_that_are_no_answer_end_with_an_error(text):
    with Server([says(text)]) as server, pytest.raises(ModelAnswerError, match=r"no valid answer .*in 4 tries|empty"):
        ask(endpoint(server))
    assert len(server.requests) <= TRIES


def test_a_truncated_answer_is_asked_again_shorter():
    with Server([says('{"number": 7, "why": "it is', finish="length"), says(GOOD)]) as server:
        assert ask(endpoint(server)).content.number == 7
    assert "cut off because it is too long" in server.requests[1].body["messages"][-1]["content"]


def test_a_busy_endpoint_is_asked_again_with_growing_pauses():
    with Server([refuses(429), refuses(500), refuses(503), says(GOOD)]) as server:
        made = endpoint(server)
        assert ask(made).content.number == 7
    assert made.pauses == [1.0, 2.0, 4.0]
    assert statuses(made) == ["http 429", "http 500", "http 503", "ok"]


def test_it_waits_as_long_as_it_is_told_but_not_for_ever():
    with Server([refuses(429, Retry_After="7"), refuses(429, Retry_After="86400"), says(GOOD)]) as server:
        made = endpoint(server)
        ask(made)
    assert made.pauses == [7.0, LONGEST_PAUSE]


def test_an_endpoint_that_stays_broken_is_given_up():
    with Server([refuses(503, "overloaded")]) as server:
        made = endpoint(server)
        with pytest.raises(ModelAnswerError, match=rf"gpt-4o-mini at .*HTTP 503.*overloaded.*\({TRIES} tries\)"):
            ask(made)
    assert len(server.requests) == TRIES == len(made.log.calls())


@pytest.mark.parametrize(("code", "said"), [(401, "refuses the key"), (403, "refuses the key"), (404, "no such model")])
def test_what_will_not_get_better_is_not_tried_again(code, said):
    with Server([refuses(code, f"bad key {KEY}")]) as server, pytest.raises(ModelAnswerError, match=said) as caught:
        ask(endpoint(server))
    assert len(server.requests) == 1
    assert KEY not in str(caught.value)


def test_the_key_is_nowhere_even_if_the_endpoint_says_it(tmp_path):
    log = CallLog(Project(tmp_path))
    with Server([refuses(500, KEY), says(f'{{"number": 7, "why": "{KEY}"}}')]) as server:
        answer = ask(endpoint(server, log=log))
    assert answer.content.why == "***"
    with Server([refuses(400, f"your key {KEY} is odd")]) as server, pytest.raises(ModelAnswerError) as caught:
        ask(endpoint(server, log=log))
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)
    assert KEY not in (tmp_path / "calls.jsonl").read_text()


def test_an_endpoint_without_structured_output_is_asked_without_it():
    with Server([refuses(400, "response_format is not supported"), says(GOOD)]) as server:
        made = endpoint(server)
        ask(made)
        ask(made)
    bodies = [request.body for request in server.requests]
    assert ["response_format" in body for body in bodies] == [True, False, False]
    assert made.pauses == []


def test_a_request_that_is_refused_twice_is_not_sent_again():
    said = r"HTTP 400: .*context length exceeded"
    with Server([refuses(400, "context length exceeded")]) as server, pytest.raises(ModelAnswerError, match=said):
        ask(endpoint(server))
    assert len(server.requests) == 2


def test_an_enormous_answer_is_not_read_to_its_end():
    with Server([floods(50_000_000)]) as server:
        made = endpoint(server)
        with pytest.raises(ModelAnswerError, match="more than 16,000,000 bytes"):
            ask(made)
    assert len(server.requests) == 1
    assert statuses(made) == ["too large"]


def test_a_large_answer_that_is_no_answer_is_wrong_quickly():
    with Server([says("{" * 10_000_000), says(GOOD)]) as server:
        assert ask(endpoint(server)).content.number == 7
    assert len(json.dumps(server.requests[1].body)) < 60_000


def test_an_answer_that_drips_for_ever_is_given_up():
    with Server([drips(0.02)]) as server:
        made = endpoint(server, timeout=0.2)
        with pytest.raises(ModelAnswerError, match=r"no whole answer within 0\.2 seconds"):
            ask(made)
    assert statuses(made) == ["timeout"] * TRIES


def test_a_connection_that_is_cut_is_tried_again():
    with Server([hangs_up, says(GOOD)]) as server:
        made = endpoint(server)
        assert ask(made).content.number == 7
    assert statuses(made) == ["no connection", "ok"]


def test_nobody_there():
    with Server([says(GOOD)]) as server:
        url = server.url
    made = Endpoint("m", base_url=url, key=KEY, log=CallLog(), pause=lambda seconds: None)
    with pytest.raises(ModelAnswerError, match=r"m at http://127\.0\.0\.1:\d+/v1: cannot be reached: .*5 tries"):
        ask(made)
    assert statuses(made) == ["no connection"] * TRIES


@pytest.mark.parametrize(
    "behaviour",
    [
        sends(b"<html>hello</html>", kind="text/html"),
        sends(b"{}"),
        sends(b"[]"),
        sends(b"null"),
        sends(b'{"choices": []}'),
        sends(b'{"choices": [{"message": {"role": "assistant", "content": 5}}]}'),
        sends(b'{"choices": "all of them", "usage": "much"}'),
        sends(b"\xff\xfe\x00", kind="application/json"),
        sends(b"[" * 200_000),
        sends(b"", 204),
        sends(b"", 302, location="http://127.0.0.1:9/elsewhere"),
    ],
)
def test_what_is_no_chat_completion_is_an_error_of_ours(behaviour):
    with Server([behaviour]) as server, pytest.raises(ModelAnswerError):
        ask(endpoint(server))
    assert all(request.path == "/v1/chat/completions" for request in server.requests)


def test_tools_that_a_model_calls_do_not_exist():
    call = {"id": "1", "type": "function", "function": {"name": "shell", "arguments": '{"command": "ls"}'}}
    with Server([says(None, tool_calls=[call], finish="tool_calls"), says(GOOD)]) as server:
        assert ask(endpoint(server)).content.number == 7
    assert "tools" not in server.requests[1].body


def test_limits_are_checked_before_every_request():
    with Server([says('{"number": 99, "why": "x"}')]) as server:
        with pytest.raises(LimitError, match="--max-requests 2"):
            ask(endpoint(server, limits=Limits(requests=2)))
        assert len(server.requests) == 2
        with pytest.raises(LimitError, match="--max-tokens 2000: the project has used 2400"):
            ask(endpoint(server, limits=Limits(tokens=2000)))
        with pytest.raises(LimitError, match="--max-cost 0"):
            ask(endpoint(server, limits=Limits(cost=0.0002)))


def test_tries_count_as_requests():
    said = r"--max-requests 3: .* \(the last request: HTTP 503: .*no.*\)"
    with Server([refuses(503)]) as server, pytest.raises(LimitError, match=said):
        ask(endpoint(server, limits=Limits(requests=3)))
    assert len(server.requests) == 3


def test_an_endpoint_that_counts_no_tokens_is_estimated():
    with Server([says(GOOD, usage=None)]) as server:
        made = endpoint(server)
        ask(made)
    (call,) = made.log.calls()
    assert call.estimated
    assert call.input_tokens == sum(len(message.text) for message in MESSAGES) // 4
    assert call.output_tokens == len(GOOD) // 4


def test_a_model_without_a_price_cannot_be_held_to_a_cost():
    with Server([says('{"number": 99, "why": "x"}', model="my-own-model")]) as server:
        made = Endpoint("my-own-model", base_url=server.url, log=CallLog(), limits=Limits(cost=1.0))
        with pytest.raises(LimitError, match="price of 1 request"):
            ask(made)
    assert made.log.calls()[0].cost is None
    assert server.requests[0].headers["authorization"] != f"Bearer {KEY}"


def test_the_environments_own_key_is_not_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with Server([says(GOOD)]) as server:
        ask(Endpoint("m", base_url=server.url, log=CallLog()))
    assert "sk-other" not in str(server.requests[0].headers)


def test_a_function_in_place_of_a_model():
    from pydantic_ai.messages import ModelResponse, TextPart
    from pydantic_ai.models.function import FunctionModel

    heard = []

    def answer(messages, info):
        heard.append((messages, info))
        return ModelResponse(parts=[TextPart(GOOD)])

    made = Endpoint(FunctionModel(answer, model_name="function"), log=CallLog())
    assert ask(made).content.number == 7
    (messages, info) = heard[0]
    assert info.function_tools == []
    assert [part.content for message in messages for part in message.parts] == [m.text for m in MESSAGES]


def test_it_works_where_a_loop_is_running_already():
    async def inside(server):
        return ask(endpoint(server))

    with Server([says(GOOD)]) as server:
        assert asyncio.run(inside(server)).content.number == 7


def test_passwords_of_an_address_are_not_shown():
    made = Endpoint("m", base_url="http://me:hunter2@127.0.0.1:9/v1?k=abc", log=CallLog(), pause=lambda seconds: None)
    with pytest.raises(ModelAnswerError) as caught:
        ask(made)
    assert "hunter2" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_conversations_keep_their_order():
    messages = (*MESSAGES, Message("assistant", "a"), Message("user", "b"))
    with Server([says(GOOD)]) as server:
        endpoint(server).say(messages, WANTED)
    sent = [(m["role"], m["content"]) for m in server.requests[0].body["messages"]]
    assert sent == [(m.role, m.text) for m in messages]
    assert USAGE["total_tokens"] == 1200


def test_a_redirect_is_not_followed_so_the_key_goes_nowhere_else():
    away = pytest.raises(ModelAnswerError, match="cannot be reached")
    with Server([says(GOOD)]) as other, Server([sends(b"", 307, location=other.url)]) as server, away:
        ask(endpoint(server))
    assert other.requests == []
    assert len(server.requests) == TRIES
