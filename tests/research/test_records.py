"""Whole records: small ones of our own in every variant, and the four examples where they are at hand."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
import research_records as small
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import ConfigError
from rankwise.research.records import read_record

EXAMPLES = os.environ.get("RANKWISE_EXAMPLES", "")
needs_examples = pytest.mark.skipif(
    not EXAMPLES, reason="RANKWISE_EXAMPLES does not name the folder of example records"
)
ALL = {"proposal": small.proposal, "refinement": small.refinement, "configs": small.configs, "review": small.review}


def write(tmp_path, text, name="record.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def test_a_proposal(tmp_path):
    record = read_record(write(tmp_path, small.proposal()))
    assert (record.kind, record.source, record.model) == ("hypothesis", "record.txt", "some-model-1")
    assert record.topic == "Sparing rank."
    assert record.answer_form == "json"
    assert [one.title for one in record.papers] == [
        "Ranks for Matrices",
        "Pruning, Slowly: A Study",
        "Ranks for Matrices",
    ]
    assert len({one.id for one in record.papers}) == 3
    first = record.papers[1]
    assert first.contributions[0].text.startswith('It prunes {braces} and "quotes".')
    assert first.limitations[0].text == "Slow."
    assert (first.future, first.code, first.source) == ((), None, "record.txt")
    (only,) = record.rounds
    assert only.hypothesis.title == "Spare Rank (SpareLoRA)"
    assert only.hypothesis.experimental_code == small.HYPOTHESIS["experimental_code"]
    assert "minimal changes" in record.instructions
    assert "Say how" in record.instructions
    assert "Ranks for Matrices" not in record.instructions
    assert "SpareLoRA" not in record.instructions


def test_a_refinement_has_its_rounds_in_order(tmp_path):
    record = read_record(write(tmp_path, small.refinement()))
    assert record.kind == "refinement"
    assert record.topic == "Sparing rank."
    assert [one.hypothesis.title for one in record.rounds] == [
        "Spare Rank 0 (S0)",
        "Spare Rank 1 (S1)",
        "Spare Rank 2 (S2)",
        "Spare Rank 9 (S9)",
    ]
    assert [one.novelty_text for one in record.rounds] == [
        "Nobody spared rank 0.\nIt is new.",
        "Nobody spared rank 1.\nIt is new.",
        "Nothing like it is known.",
        "",
    ]
    assert [one.significance.score if one.significance else None for one in record.rounds] == [5, 6, None, None]
    assert record.rounds[0].novelty is None
    assert record.rounds[3].hypothesis.primary_metric == 'it\'s "accuracy"'
    assert record.answer_form == "python"
    assert len(record.papers) == 3


def test_run_configs_with_their_design(tmp_path):
    record = read_record(write(tmp_path, small.configs()))
    assert record.kind == "configs"
    assert record.run_names == ("proposed-tiny--RTE", "comparative-1-tiny--RTE")
    assert list(record.configs) == list(record.run_names)
    assert record.configs["proposed-tiny--RTE"].startswith("run_id: proposed-tiny--RTE\n")
    assert record.rounds[0].hypothesis.expected_result == small.HYPOTHESIS["expected_result"]
    design = record.design
    assert design is not None
    assert (design.summary, design.proposed_method) == ("We compare.", "it's spare")
    assert (design.metrics, design.comparative_methods) == (("Accuracy", "Time"), ("LoRA",))
    assert (design.models, design.datasets) == (("tiny (1M)",), ("RTE",))
    assert design.search == {"learning_rate": "1e-4-5e-4", "rank": "4,8"}
    assert [(one.kind, one.id, one.rows, one.columns) for one in design.resources] == [
        ("model", "me/tiny", {}, ()),
        ("dataset", "me/rte", {"train": 345}, ("a", "b")),
    ]
    assert [(one.method, one.model, one.dataset) for one in design.runs] == [
        ("proposed", "tiny", "RTE"),
        ("comparative-1", "tiny", "RTE"),
    ]
    assert design.environment == "One GPU"
    assert "me/rte" in record.design_text
    assert "One GPU" in record.design_text


def test_a_review(tmp_path):
    record = read_record(write(tmp_path, small.review()))
    assert (record.kind, record.model) == ("review", "judge-2.1")
    review = record.review
    assert review is not None
    assert (review.title, review.arxiv) == ("SpareLoRA: Ranks That Nobody Needs", "2401.01234")
    assert review.authors == ("Ann Lee", "Bo van der Berg", "Cy O'Neil")
    said = {
        name: review.sections[name]
        for name in (
            "pith",
            "argument",
            "core_claim",
            "load_bearing_premise",
            "what_would_settle_it",
            "summary",
            "significance",
            "abstract",
        )
    }
    assert said == {
        "pith": "Ranks can be spared.",
        "argument": "The paper says that ranks can be spared and shows how.",
        "core_claim": "Half of the ranks are enough.",
        "load_bearing_premise": "Small values do not matter.",
        "what_would_settle_it": "Compare with random ranks.",
        "summary": "Ranks are spared.",
        "significance": "It matters if it holds.",
        "abstract": "We spare ranks. It works.",
    }
    assert "Heads could shrink too." in review.sections["reading_between_lines"]
    assert "0 free parameters" in review.sections["ledger"]
    assert review.major == ("[§3] No control is run.", "[Tables] One seed only.")
    assert review.minor == ("[§1] Notation.",)
    assert review.responses == ("We ran one. revision: yes", "We ran three more. revision: no")
    assert review.cited_by == (
        "Sparing More (cs.LG 2024-03, unverdicted novelty 7.0): It spares more.",
        "Sparing Less (cs.CL 2024-04, accept novelty 4.0): It spares less.",
    )
    assert review.references == ("Rank theory A. Nobody. Rank theory. 1999,", "12 Published elsewhere. Values")
    (paper,) = record.papers
    assert (paper.id, paper.year, paper.arxiv) == ("lee-2024-sparelora", 2024, "2401.01234")
    assert paper.contributions[0].passage == "We spare ranks. It works."


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("Hypothesis History", "Hypothesis Info History").replace(
            "Research Study List", "Related Studies"
        ),
        lambda text: text.replace("# Current Hypothesis", "## Hypothesis Info").replace("# Novelty", "**Novelty:**"),
        lambda text: (
            text.replace("\nOutput:\n", "\n## Answer:\n```python\n" if "{'open" in text else "\n## Answer:\n```json\n")
            + "\n```\n"
        ),
        lambda text: (
            text.replace("Core claim", "### Core Claim")
            .replace("Simulated Author's Rebuttal", "Rebuttal")
            .replace("LLM Name:", "Model:")
        ),
        lambda text: (
            text.replace("Main Contributions", "main_contributions")
            .replace("Open Problems", "open_problems")
            .replace("Title", "title")
        ),
    ],
    ids=["crlf", "bom", "utf-16", "other titles", "other headings", "fenced", "other words", "snake case"],
)
def test_variants_read_alike(tmp_path, name, change):
    plain = read_record(write(tmp_path, ALL[name]()))
    changed = read_record(write(tmp_path, change(ALL[name]())))
    for part in ("kind", "model", "topic", "papers", "rounds", "configs", "run_names", "design"):
        assert getattr(changed, part) == getattr(plain, part), part
    assert (changed.review is None) == (plain.review is None)
    if changed.review:
        assert changed.review.major == plain.review.major
        assert changed.review.responses == plain.review.responses
        assert changed.review.sections["core_claim"] == plain.review.sections["core_claim"]


def test_json_instead_of_a_repr_and_fewer_papers(tmp_path):
    text = small.refinement(papers=small.PAPERS[:1], answer=small.HYPOTHESIS, history=0)
    head, _, _ = text.rpartition("Output:\n")
    record = read_record(write(tmp_path, head + "Output:\n" + json.dumps({"answer": small.HYPOTHESIS})))
    assert (record.kind, record.answer_form, len(record.papers), len(record.rounds)) == ("refinement", "json", 1, 2)


def test_an_answer_alone(tmp_path):
    record = read_record(write(tmp_path, json.dumps(small.HYPOTHESIS)))
    assert (record.kind, len(record.rounds), record.papers, record.instructions) == ("hypothesis", 1, (), "")
    record = read_record(write(tmp_path, small.configs().rpartition("Output:\n")[2]))
    assert (record.kind, len(record.configs), record.rounds) == ("configs", 2, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no record that can be imported; expected is a prompt with its answer"),
        ("just words", "is no record that can be imported"),
        ('{"a": 1}', "is no record that can be imported"),
        ('{"Title": "T", "Methodology": "m"}', "its papers can be added with `rankwise research papers add`"),
        ("Output:\n{'a': 1}", "no hypothesis .*there is a"),
        ("Output:\nsorry, no", "there is no object at all"),
        ("Core claim\n\nReferee Report\n\nx", "no section `Core claim` with text"),
        ('Output:\n{"open_problems": "o", "method": "m"}', "answer.experimental_setup: .*\n.*answer.expected_result: "),
        (
            small.proposal(papers=[{"Main Contributions": "c", "Methodology": "m"}]),
            r"papers\[0\]: has no title; its parts are Main",
        ),
    ],
)
def test_says_what_is_wrong(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_record(write(tmp_path, text))


def test_says_why_a_file_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_record(tmp_path / "absent.txt")
    with pytest.raises(ConfigError, match="is a folder"):
        read_record(tmp_path)
    with pytest.raises(ConfigError, match="byte 4 is not utf-8 text"):
        read_record(write(tmp_path, b"abc \xff"))


@pytest.mark.parametrize(
    ("name", "at", "message"),
    [
        (
            "proposal",
            '"Limitations"',
            r"ends at line 1\d, character [\d,]+, in the middle of an object of the prompt \(Ranks for Matrices\) "
            "that begins at line 10",
        ),
        ("proposal", "# Output content", "ends at line .* before the answer"),
        ("proposal", '"expected_result"', "ends at line .* in the middle of the answer that begins at line"),
        ("refinement", "# Hypothesis History", "before the answer"),
        ("refinement", "'expected_conclusion'", "in the middle of the answer"),
        ("configs", "## Experiment Runs", "before the answer"),
        ("configs", "comparative-1-tiny--RTE\\nmethod", "in the middle of the answer"),
        ("review", "minor comments", "with 0 of 1 minor comments"),
        ("review", "  2. Referee", "with 1 of 2 responses"),
        ("review", "  2. Sparing Less", "with 1 of 2 citing papers"),
        ("review", "  2. [2]", "with 1 of 2 references"),
    ],
)
def test_a_record_that_was_cut_says_where_it_ends(tmp_path, name, at, message):
    text = ALL[name]()
    assert at in text
    with pytest.raises(ConfigError, match=message):
        read_record(write(tmp_path, text[: text.index(at)]))
    if name != "review":
        with pytest.raises(ConfigError, match="right where the answer should begin"):
            read_record(write(tmp_path, text[: text.index("Output:\n") + 8]))


@given(
    st.sampled_from(sorted(ALL)),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.text(alphabet="{}\"'\n#:Ob ", max_size=4),
)
def test_a_damaged_record_is_read_or_refused_but_never_crashes(tmp_path_factory, name, start, length, put):
    text = ALL[name]()
    start %= len(text)
    damaged = text[:start] + put + text[start + length % 400 :]
    path = tmp_path_factory.getbasetemp() / "damaged.txt"
    path.write_text(damaged, encoding="utf-8")
    with suppress(ConfigError):
        record = read_record(path)
        assert record.rounds or record.review or record.configs


@pytest.mark.timeout(60)
@pytest.mark.parametrize("filler", ["a", "1", "\n", "\t", "# ", "Hypothesis:\n", "Resource(id='x' "])
def test_a_record_made_to_be_slow_is_not(tmp_path, filler):
    """What looks at the rest of the text from every character takes minutes."""
    stuff = filler * (150_000 // len(filler))
    answer = json.dumps({"run_configs": [{"run_id": "a", "run_config_yaml": "b"}]})
    for text in (
        f"LLM Name: x\n# Research Topic\nx\n# Hypothesis History\n{stuff}\nOutput:\n{json.dumps(small.HYPOTHESIS)}",
        f"## Experimental Design\n{stuff}\n## Experiment Runs\n{stuff}\nOutput:\n{answer}",
        f"{stuff}\nCore claim\nx\nForward citations\n{stuff}\nReference graph\n{stuff}\nReferee Report\n{stuff}",
    ):
        with suppress(ConfigError):
            read_record(write(tmp_path, text))


def test_an_enormous_number_in_a_card_is_not_taken_for_rows(tmp_path):
    text = small.configs().replace("num_examples: 345", "num_examples: " + "9" * 5_000)
    assert read_record(write(tmp_path, text)).design.resources[1].rows == {}


@needs_examples
@pytest.mark.parametrize(
    ("number", "kind", "papers", "titles", "form"),
    [
        ("000", "hypothesis", 3, ["GLoRA"], "json"),
        ("001", "configs", 0, ["GLoRA"], "json"),
        ("002", "refinement", 23, ["GaLoRA", "CoGaLoRA", "RAD-LoRA"], "python"),
        ("004", "review", 1, [], ""),
    ],
)
def test_the_examples(number, kind, papers, titles, form):
    (path,) = Path(EXAMPLES).glob(f"{number}_*.txt")
    record = read_record(path)
    assert (record.kind, len(record.papers), record.answer_form) == (kind, papers, form)
    assert [one.hypothesis.title.rpartition("(")[2].rstrip(")") for one in record.rounds] == titles
    assert all(one.hypothesis.expected_result and one.hypothesis.experimental_code for one in record.rounds)
    if number == "001":
        assert (
            record.run_names
            == tuple(record.configs)
            == ("proposed-DeBERTa-v3-base-86M--GLUE-MNLI", "comparative-1-DeBERTa-v3-base-86M--GLUE-MNLI")
        )
        (dataset,) = [one for one in record.design.resources if one.kind == "dataset"]
        assert (dataset.rows["train"], dataset.columns[:2]) == (1_119_828, ("x", "y"))
        assert set(record.design.search) == {"learning_rate", "beta (EMA)", "total_rank", "warmup_steps"}
    if number == "002":
        assert [bool(one.novelty_text and one.significance_text) for one in record.rounds] == [True, True, False]
        assert max(len(one.code or "") for one in record.papers) > 26_000
        assert sum(len(one.title) > 0 and bool(one.contributions) for one in record.papers) == 23
    if number == "004":
        review = record.review
        assert (review.arxiv, review.model) == ("2303.10512", "grok-4.3")
        assert [
            len(part) for part in (review.major, review.minor, review.responses, review.cited_by, review.references)
        ] == [3, 2, 3, 29, 29]
        assert "0 free parameters" in review.sections["ledger"]
        assert len(review.authors) == 8
    else:
        assert record.model == "o3-2025-04-16"
        assert record.instructions


@needs_examples
@pytest.mark.parametrize("number", ["000", "001", "002", "004"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.97])
def test_the_examples_cut(tmp_path, number, share):
    (path,) = Path(EXAMPLES).glob(f"{number}_*.txt")
    text = path.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"ends at line|no section|is no record|no hypothesis"):
        read_record(write(tmp_path, text[: int(len(text) * share)]))
