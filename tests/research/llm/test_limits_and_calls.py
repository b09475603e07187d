"""What a project may spend, and the log that counts it."""

import json

import pytest

from rankwise.errors import LimitError, OutputError
from rankwise.research.calls import REPLAYED, Call, CallLog
from rankwise.research.limits import Limits, Spent
from rankwise.research.project import Project


def call(**more):
    return Call(**({"prompt": "p", "digest": "d", "model": "m", "status": "ok"} | more))


@pytest.mark.parametrize(
    ("limits", "spent", "characters", "said"),
    [
        (Limits(requests=3), Spent(requests=3), 0, "--max-requests 3: the project has made 3"),
        (Limits(tokens=100), Spent(tokens=100), 0, "--max-tokens 100: the project has used 100"),
        (Limits(tokens=100), Spent(tokens=50), 480, "the next prompt has at least 60"),
        (Limits(cost=0.5), Spent(cost=0.5), 0, "--max-cost 0.5: the project has spent 0.5000 USD"),
        (Limits(cost=0.5), Spent(requests=2, unpriced=2), 0, "the price of 2 request(s) of the project is not known"),
    ],
)
def test_a_limit_that_is_reached_stops(limits, spent, characters, said):
    with pytest.raises(LimitError) as caught:
        limits.check(spent, characters)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "spent", "characters"),
    [
        (Limits(), Spent(10**6, 10**9, 1e6, 5), 10**9),
        (Limits(requests=3), Spent(requests=2), 0),
        (Limits(tokens=100), Spent(tokens=99), 8),
        (Limits(cost=0.5), Spent(cost=0.49), 0),
    ],
)
def test_below_it_goes_on(limits, spent, characters):
    limits.check(spent, characters)


def test_calls_are_counted_over_all_commands_of_a_project(tmp_path):
    project = Project(tmp_path / "p")
    CallLog(project).add(call(input_tokens=100, output_tokens=20, cost=0.01))
    CallLog(project).add(call(status="http 429"))
    CallLog(project).add(call(input_tokens=10, status="ok"))
    CallLog(project).add(call(status=REPLAYED, input_tokens=999, output_tokens=999))
    assert CallLog(project).spent() == Spent(requests=3, tokens=130, cost=0.01, unpriced=1)
    assert CallLog(project).calls()[0].tokens == 120


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    log = CallLog(Project(tmp_path))
    log.add(call())
    with (tmp_path / "calls.jsonl").open("a") as file:
        file.write('{"prompt": "p", "dig')
    assert len(log.calls()) == 1


def test_a_call_after_a_line_that_was_cut_off_is_counted(tmp_path):
    log = CallLog(Project(tmp_path))
    (tmp_path / "calls.jsonl").write_text('{"prompt": "p", "dig')
    log.add(call())
    assert len(log.calls()) == 1


def test_the_file_is_one_object_per_line(tmp_path):
    log = CallLog(Project(tmp_path))
    log.add(call(model="two\nlines"))
    log.add(call())
    lines = (tmp_path / "calls.jsonl").read_text().splitlines()
    assert [json.loads(line)["model"] for line in lines] == ["two\nlines", "m"]
    assert set(json.loads(lines[0])) >= {"at", "cost", "digest", "latency_ms", "status", "input_tokens"}


def test_without_a_project_it_counts_too():
    log = CallLog()
    log.add(call(input_tokens=5))
    assert log.spent().tokens == 5


def test_a_log_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "calls.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*calls\.jsonl"):
        CallLog(Project(tmp_path)).add(call())
