"""Objects in other people's text: every form, garbage, and texts made to be slow."""

import json
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rankwise.experiments import text_objects
from rankwise.experiments.text_objects import MAX_OBJECTS, scan
from rankwise.research.parse import HYPOTHESIS, PAPER, fields, key, objects, renamed, text_of, unclosed

SIMPLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SOON = pytest.mark.timeout(120)
"""What takes seconds, and would take minutes or hours if it read the rest of a text again and again."""
OBJECTS = st.dictionaries(st.text(), SIMPLE, min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("text", "values", "forms"),
    [
        ('{"a": 1}{"b": 2}\n{"c": {"d": 3}}', [{"a": 1}, {"b": 2}, {"c": {"d": 3}}], "jjj"),
        ('[{"a": 1},\n {"a": 2}]', [{"a": 1}, {"a": 2}], "jj"),
        (
            "Sure: {'a': \"it's\", 'b': None, 'c': (1, -2.5), 'd': True}.",
            [{"a": "it's", "b": None, "c": [1, -2.5], "d": True}],
            "p",
        ),
        ("```json\n{\"a\": 1}\n```\nor ~~~python\n{'a': 2}\n~~~", [{"a": 1}, {"a": 2}], "ff"),
        ('{"a": [1, 2,], "b": true,}', [{"a": [1, 2], "b": True}], "p"),
        ('{"a": "two\nlines"}', [{"a": "two\nlines"}], "j"),
        (r'{"a": "\alpha and \(x\)", "b": "\n"}', [{"a": r"\alpha and \(x\)", "b": "\n"}], "j"),
        (
            "{'at': datetime.datetime(2024, 1, 2), 'by': Model(name='x')}",
            [{"at": "datetime.datetime(2024, 1, 2)", "by": "Model(name='x')"}],
            "p",
        ),
        ("a {set} of {\"k\": \"}{\"} and {'k': '}{'}", [{"k": "}{"}, {"k": "}{"}], "jp"),
        ('it\'s {a} "quote {"k": 1}', [{"k": 1}], "j"),
        ('{"open": [{"a": 1}, {"b": 2}', [{"a": 1}, {"b": 2}], "jj"),
        ('{"a" {"b": 1}}', [{"b": 1}], "j"),
        ('{"\\ud800": "\\ud83d\\ude00"}', [{"\ufffd": "😀"}], "j"),
        ("{1: 2}", [], ""),
        ("{'a': __import__('os').system('false')}", [{"a": "__import__('os').system('false')"}], "p"),
        ("{'a': [x for x in y]}", [], ""),
        ("{**{'a': 1}}", [{"a": 1}], "p"),
        ("no object", [], ""),
    ],
)
def test_finds_every_object_in_every_form(text, values, forms):
    found = objects(text)
    assert [one.value for one in found] == values
    assert "".join(one.form[0] for one in found) == forms
    assert all(text[one.start] == "{" and text[one.end - 1] == "}" for one in found)


@given(
    st.lists(OBJECTS, min_size=1, max_size=4),
    st.lists(st.sampled_from(["", "\n", " and ", "\n\n```json\n"]), min_size=4, max_size=4),
)
def test_json_and_reprs_one_after_the_other_come_back(values, between):
    dumped = "".join(gap + json.dumps(one, ensure_ascii=False) for gap, one in zip(between, values, strict=False))
    assert [one.value for one in objects(dumped)] == json.loads(json.dumps(values))
    printed = "".join(gap + repr(one) for gap, one in zip(between, values, strict=False))
    assert [one.value for one in objects(printed)] == values


@given(st.text(alphabet="{}[]()\"'\\,: \nab1.`#=") | st.text())
@example("{'a': '\\x'}")
@example('{"a": 1e999}')
@example("{'\ud800': 1}")
@example("{" + "'a': {" * 150)
def test_never_raises_and_never_finds_what_is_not_there(text):
    for one in objects(text):
        assert text[one.start : one.end].startswith("{")
        json.dumps(one.value, ensure_ascii=False).encode("utf-8")
    unclosed(text)
    fields(text)


@given(OBJECTS, st.integers(min_value=1))
def test_what_is_cut_is_known_to_be_cut(value, cut):
    text = json.dumps(value)
    assert unclosed(text) is None
    assert unclosed("before " + text[: 2 + cut % (len(text) - 2)]) == 7 or len(text) < 4


@pytest.mark.parametrize(
    "piece",
    [
        "{",
        '{"',
        '{"a":',
        '{"a":[',
        "{'",
        '{"\\"',
        "{'\\'",
        "}{",
        '{"a" {"b"}}',
        '{"a":1}',
        "{      ",
        'it\'s "a" {"b" ',
        '{"a": (}',
        "{'a': b c}\n",
        "{'a': 1}\n",
        '{"a":[{},',
        "\\",
        '{\\"',
        "{'a':" + "(" * 90 + "1" + ")" * 90,
        "`" * 5 + "{",
    ],
)
@SOON
def test_a_text_made_to_be_slow_is_not(piece):
    """What is read once takes a moment; what reads the rest of the text for every brace takes hours."""
    text = piece * (50_000 // len(piece))
    found = objects(text)
    unclosed(text)
    assert len(found) <= MAX_OBJECTS


@pytest.mark.parametrize(("start", "piece"), [('{"', '\\"'), ("{'", "\\'"), ('{"a": ', "'\\' "), ("{", "it's ")])
@SOON
def test_strings_without_an_end_are_looked_at_once(start, piece):
    text = start + piece * 100_000
    assert objects(text) == []


def test_what_is_read_again_is_limited(monkeypatch):
    read = 0

    def counting(text, start):
        nonlocal read
        span = scan(text, start)
        read += (span.end or span.reached) - start
        return span

    monkeypatch.setattr(text_objects, "scan", counting)
    text = ('{"a" ' * 99 + "}" * 99) * 250
    assert objects(text + '{"k": 1}')[-1].value == {"k": 1}
    assert read < 3 * len(text) + 1_500_000


def test_of_an_object_without_an_end_the_closed_ones_in_it_are_found():
    text = '{"x": ' * 50 + '{"a": [' + '{"b": {"c": 1}}, ' * 5_000
    found = objects(text)
    assert len(found) == 5_000
    assert found[-1].value == {"b": {"c": 1}}


def test_a_warning_about_a_backslash_is_no_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [one.value for one in objects("{'a': '\\d'}")] == [{"a": "\\d"}]


@pytest.mark.slow
@SOON
def test_ten_megabytes_of_braces_end_soon():
    assert objects("{" * 10_000_000) == []


def test_trees_that_would_take_much_memory_are_not_built():
    assert objects("{'a': [" + "1," * 1_000_000 + "]}") == []
    assert objects("{'a': 1" + "+1" * 100_000 + "}") == []
    assert objects('{"a": ' + "9" * 10_000 + "}") == []
    assert objects("{'a': " + "[" * 99 + "]" * 99 + "}")
    assert objects("{'a': " + "[" * 101 + "]" * 101 + "}") == []


def test_what_stands_behind_rubbish_is_found():
    rubbish = '{"a" {"b"}} {\'x\': y z} {"never closed" ' * 1_000
    assert objects(rubbish + '{"k": 1}')[-1].value == {"k": 1}


def test_the_rest_of_an_enormous_text_is_not_looked_at():
    text = '{"a": 1}' + " " * 100 + '{"b": 2}'
    assert [one.value for one in objects(text, limit_bytes=50)] == [{"a": 1}]


@pytest.mark.parametrize(
    "name",
    ["Main Contributions", "main_contributions", "mainContributions", "MAIN-contributions", " main contributions: "],
)
def test_names_have_one_form(name):
    assert key(name) == "main_contributions"


def test_parts_get_our_names_and_the_first_that_says_something_counts():
    value = {"Methods": "", "Methodology": "m", "Method": "later", "Open Problems": "o", "noise": 1}
    assert renamed(value, HYPOTHESIS) == {"method": "m", "open_problems": "o"}
    assert renamed(value, PAPER) == {"methodology": "m"}


def test_any_value_becomes_text_and_a_long_one_says_that_it_is_cut():
    assert text_of(None) == ""
    assert text_of(["a", {"b": 1}]) == "- a\n- b: 1"
    cut = text_of("x" * 1_000, 100)
    assert len(cut) == 100
    assert cut.endswith("[cut: 1,000 characters in all]")


def test_fields_of_a_printed_object():
    text = "a='it' b=\"it's\\n\" c=['x', 1] d={'k': 'v'} e=None f=Thing(id='x', inner=Other(n=1)) g=3.5 rest of it"
    assert fields(text) == {
        "a": "it",
        "b": "it's\n",
        "c": ["x", 1],
        "d": {"k": "v"},
        "e": None,
        "f": "Thing(id='x', inner=Other(n=1))",
        "g": 3.5,
    }
    assert fields("no fields") == {}
