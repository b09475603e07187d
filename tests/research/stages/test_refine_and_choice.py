"""Further rounds, when to stop, and which round is taken."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from research.llm.talking import Lines
from research.stages.projects import PAPERS, TOPIC, new_project, project_with
from research.stages.scripted import FIRST, ROUNDS, SECOND, ScriptedAsker, opinion

from rankwise.errors import ConfigError, ModelAnswerError, OutputError
from rankwise.research.artefacts import Defect, Evaluation, Hypothesis, Score
from rankwise.research.choice import Choice, choose, outdated, standings
from rankwise.research.conversation import Conversing
from rankwise.research.design_subject import subject_of
from rankwise.research.evaluate import evaluate
from rankwise.research.evaluate import prompt as evaluation_prompt
from rankwise.research.import_commands import import_record
from rankwise.research.imported import Imported
from rankwise.research.imported import Round as ImportedRound
from rankwise.research.project import Made, Project, Settings
from rankwise.research.records_files import RecordFile
from rankwise.research.refine import prompt, refine, stop, stops
from rankwise.research.rounds import (
    FIELD_CHARACTERS,
    HISTORY_CHARACTERS,
    Round,
    read_papers,
    read_rounds,
    told,
    told_history,
)

SETTINGS = Settings(topic=TOPIC)


def judged(errors=0, total=None):
    """An evaluation with so many errors and scores of that sum."""
    defects = tuple(Defect(rule="r", message=f"wrong {n}") for n in range(errors))
    if total is None:
        return Evaluation(defects=defects)
    marks = [total // 4 + (place < total % 4) for place in range(4)]
    names = ("novelty", "significance", "feasibility", "consistency")
    scores = {name: Score(score=mark, reason="r") for name, mark in zip(names, marks, strict=True)}
    return Evaluation(defects=defects, opinion=opinion(0, PAPERS).model_copy(update=scores))


def rounds_of(*evaluations):
    return tuple(Round(number, FIRST, evaluation) for number, evaluation in enumerate(evaluations))


def test_three_rounds_are_written_with_what_changed(tmp_path):
    project = project_with(tmp_path, 3)
    assert tuple(item.hypothesis for item in read_rounds(project)) == ROUNDS
    inputs = project.made("hypothesis/002.json").inputs
    assert {"hypothesis/000.json", "hypothesis/001.json", "evaluation/000.json", "evaluation/001.json"} <= set(inputs)


def test_a_refinement_sees_every_round_and_what_was_thought_of_it(tmp_path):
    project = project_with(tmp_path, 2)
    text = prompt(SETTINGS, read_rounds(project), PAPERS).text
    assert "Write round 2 of the hypothesis" in text
    current, _, earlier = text.partition("# Earlier rounds")
    assert "(hypothesis of round 1)" in current
    assert "(opinion on round 1)" in current
    assert "(hypothesis of round 0)" in earlier
    assert "(opinion on round 0)" in earlier
    assert "the name GLoRA is taken" in earlier


def test_a_round_that_nobody_evaluated_is_checked_on_the_way(tmp_path):
    project = project_with(tmp_path, 1, judged=False)
    lines = Lines(SECOND.model_dump_json())
    assert refine(project, Conversing(lines)) == SECOND
    assert "the name GLoRA is taken" in lines.heard[0][-1].text
    assert not project.has("evaluation/000.json")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (FIRST, "changes: is empty"),
        (FIRST.model_copy(update={"changes": "all of it"}), "the current one, word for word"),
    ],
)
def test_a_refinement_that_refines_nothing_is_not_taken(tmp_path, answer, said):
    project = project_with(tmp_path, 1)
    with pytest.raises(ModelAnswerError, match=said):
        refine(project, Conversing(Lines(answer.model_dump_json())))
    assert project.rounds() == 1


def test_there_must_be_something_to_refine(tmp_path):
    for step in (lambda project: refine(project, ScriptedAsker()), stop):
        with pytest.raises(ConfigError, match="there is no hypothesis to refine"):
            step(new_project(tmp_path / step.__name__.strip("<>")))


def test_long_histories_are_shortened_from_the_oldest_on_and_none_is_left_out():
    long = FIRST.model_copy(update={"experimental_code": "x = 1\n" * 3000})
    rounds = tuple(Round(number, long, judged(1, 20)) for number in range(10))
    text = told_history(rounds)
    assert len(text) < HISTORY_CHARACTERS + 10 * 3_000
    assert [f"## Round {number}\n" in text for number in range(10)] == [True] * 10
    assert "(hypothesis of round 0, shortened)" in text
    assert "(hypothesis of round 9)" in text


@pytest.mark.parametrize(
    ("rounds", "evaluations", "said"),
    [
        (2, [judged(1), judged(0)], None),
        (2, [judged(1), judged(0), judged(0)], "all 2 refinement(s) are made"),
        (0, [judged(3)], "all 0 refinement(s) are made"),
        (9, [judged(0, 30), judged(0, 30), judged(0, 29)], "round 0 has no errors, and the 2 rounds after it"),
        (9, [judged(0, 30), judged(0, 31), judged(0, 31)], None),
        (9, [judged(1, 40), judged(1, 20), judged(1, 20), judged(2, 20)], None),
        (9, [judged(0, 30), judged(1, 40), judged(1, 40)], "round 0 has no errors"),
        (9, [judged(0, 30), judged(0, 20), None], None),
    ],
)
def test_when_to_stop(rounds, evaluations, said):
    found = stops(Settings(topic="t", rounds=rounds), rounds_of(*evaluations), len(evaluations) - 1)
    assert (found is None) if said is None else (said in found)


def test_a_choice_of_code_is_outdated_by_other_rounds_and_a_persons_is_not(tmp_path):
    project = project_with(tmp_path / "p", 2)
    assert choose(project).round == 1
    assert not outdated(project)
    refine(project, ScriptedAsker(PAPERS))
    assert outdated(project)  # not evaluated yet, so no standing has changed
    evaluate(project, 2, ScriptedAsker(PAPERS))
    assert subject_of(project, SETTINGS).hypothesis == read_rounds(project)[2].hypothesis
    assert not outdated(project)
    worse = read_rounds(project)[2].evaluation.model_copy(update={"defects": judged(9).defects})
    project.write("evaluation/002.json", worse, Made(by="code"), again=True)
    assert outdated(project)
    project.write("choice.json", project.read("choice.json", Choice), Made(by="hand"), again=True)
    assert not outdated(project)


@pytest.mark.slow
def test_a_choice_among_fewer_rounds_is_made_again(tmp_path):
    """A round that was added by hand was never taken, however good."""
    from rankwise.research.ask_options import ModelOptions
    from rankwise.research.stages import stale
    from rankwise.research.start import due
    from rankwise.research.whole_commands import Naming, design

    project = project_with(tmp_path / "p", 2)
    assert choose(project).round == 1
    options, naming = ModelOptions(), Naming()
    assert design(project.folder, options, naming, again=False).data["old"] == ""
    refine(project, ScriptedAsker(PAPERS))
    with pytest.raises(ConfigError, match="round 2 is not evaluated"):
        design(project.folder, options, naming, again=True)
    evaluate(project, 2, ScriptedAsker(PAPERS))
    assert due(project, "choice.json")
    assert stale(project, "choice.json") == "rounds or their evaluations changed"
    shown = design(project.folder, options, naming, again=False)
    assert "design.json is the one that was there, and it is old" in shown.text
    assert project.read("choice.json", Choice).round == 1
    assert design(project.folder, options, naming, again=True).data["old"] == ""
    assert project.read("choice.json", Choice).round == 2
    assert not due(project, "choice.json")
    by_hand = project.read("choice.json", Choice).model_copy(update={"round": 0, "standings": ()})
    project.write("choice.json", by_hand, Made(by="hand"), again=True)
    assert not due(project, "choice.json")


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(4, 40)), min_size=1, max_size=12))
def test_refining_always_ends(found):
    """Whatever is thought of them, no more rounds than asked for."""
    rounds = rounds_of(*(judged(errors, total) for errors, total in found))
    settings = Settings(topic="t", rounds=len(rounds) - 1)
    assert stops(settings, rounds, len(rounds) - 1)


@pytest.mark.parametrize(
    ("evaluations", "best", "why"),
    [
        ([judged(0, 20), judged(1, 40)], 0, "code found 0 error(s) in it, 1 in round 1"),
        ([judged(0, 20), judged(0, 22), judged(0, 21)], 1, "scores: 22 of 40 to 21 of 40"),
        ([judged(2), judged(1), judged(1)], 1, "it is earlier"),
        ([judged(0), judged(0, 4)], 1, "scores: 4 of 40 to none (no model was asked)"),
        ([judged(5)], 0, "is the only one"),
    ],
)
def test_the_best_round_is_taken_not_the_last(tmp_path, evaluations, best, why):
    project = project_with(tmp_path, len(evaluations), judged=False)
    for number, evaluation in enumerate(evaluations):
        project.write(f"evaluation/{number:03d}.json", evaluation, project.made("hypothesis/000.json"))
    choice = choose(project)
    assert choice.round == best == choice.standings[0].round
    assert why in choice.why
    assert project.read("choice.json", Choice) == choice
    assert len(project.made("choice.json").inputs) == 2 * len(evaluations)


def test_a_choice_needs_every_round_evaluated_and_stays(tmp_path):
    with pytest.raises(ConfigError, match="there is no hypothesis"):
        choose(new_project(tmp_path / "none"))
    project = project_with(tmp_path / "some", 2, judged=False)
    with pytest.raises(ConfigError, match="round 0 is not evaluated; `rankwise research evaluate"):
        choose(project)
    project = project_with(tmp_path / "all", 1)
    choose(project)
    with pytest.raises(OutputError, match="exists"):
        choose(project)
    assert choose(project, again=True).round == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(4, 40)), min_size=1, max_size=8))
def test_nothing_beats_what_is_taken(found):
    rounds = rounds_of(*(judged(errors, total) for errors, total in found))
    best, *others = standings(rounds)
    for other in others:
        assert (best.errors, -(best.total or 0), best.round) < (other.errors, -(other.total or 0), other.round)


def test_a_hypothesis_by_hand_counts(tmp_path):
    """Files may be written or edited by people."""
    project = project_with(tmp_path, 1)
    project.write("hypothesis/001.json", SECOND, project.made("project.json"))
    assert refine(project, ScriptedAsker(PAPERS)) == project.read("hypothesis/002.json", Hypothesis) == ROUNDS[2]


def test_what_an_imported_records_evaluator_wrote_goes_along(tmp_path):
    """Its words and marks are in the evaluations and in the prompt of the next refinement."""
    project = project_with(tmp_path, 2, judged=False)
    marked = ImportedRound(
        FIRST, novelty=Score(score=6, reason="A known part."), novelty_text="New, but only a little."
    )
    record = Imported("refinement", "a record", rounds=(marked, ImportedRound(SECOND, significance_text="Of use.")))
    project.write("record.json", RecordFile(sha256="0", record=record), project.made("project.json"))
    made = evaluate(project, 0, None)
    assert made.remarks == "Novelty: 6 of 10. A known part. New, but only a little."
    assert "record.json" in project.made("evaluation/000.json").inputs
    lines = Lines(ROUNDS[2].model_dump_json())
    refine(project, Conversing(lines))
    assert "(remarks on round 0)\nNovelty: 6 of 10. A known part. New" in lines.heard[0][1].text
    assert "(remarks on round 1)\nSignificance: Of use.\nend data" in lines.heard[0][1].text


@pytest.mark.skipif("RANKWISE_EXAMPLES" not in os.environ, reason="RANKWISE_EXAMPLES names no folder of records")
def test_the_next_refinement_of_an_imported_record(tmp_path):
    """The record of two refinements goes on: all it holds is in the prompt, within bounds, with its errors."""
    (record,) = Path(os.environ["RANKWISE_EXAMPLES"]).glob("002_*")
    import_record(record, tmp_path / "p")
    project = Project(tmp_path / "p")
    lines = Lines(ROUNDS[2].model_dump_json())
    refine(project, Conversing(lines))
    text = lines.heard[0][1].text
    assert 30_000 < len(text) < 250_000
    assert all(f"(remarks on round {number})" in text for number in (0, 1))
    assert "which it refines" in text  # its answer promises less than the round before
    assert all(f"(paper {paper.id})" in text for paper in read_papers(project).papers)
    assert project.rounds() == 4
    assert stop(project) is None  # one refinement of two; those of the record do not count


def test_prompts_are_known_again_when_the_checks_say_more(tmp_path):
    """A recorded conversation stays of use when a check is added or says it in other words; other rounds do not."""
    before = project_with(tmp_path, 2)
    rounds = read_rounds(before)
    louder = tuple(
        Round(item.number, item.hypothesis, item.evaluation.model_copy(update={"defects": judged(2).defects}))
        for item in rounds
    )
    assert prompt(SETTINGS, rounds, PAPERS).text != prompt(SETTINGS, louder, PAPERS).text
    assert prompt(SETTINGS, rounds, PAPERS).known_by == prompt(SETTINGS, louder, PAPERS).known_by
    assert prompt(SETTINGS, rounds[:1], PAPERS).known_by != prompt(SETTINGS, louder, PAPERS).known_by
    cases = ((judged(), rounds), (judged(3), louder))
    asked = [evaluation_prompt(SETTINGS, FIRST, found, past, PAPERS) for found, past in cases]
    assert asked[0].text != asked[1].text
    assert asked[0].known_by == asked[1].known_by


def test_an_enormous_field_leaves_room_in_the_next_prompt(tmp_path):
    project = project_with(tmp_path, 1)
    first = read_rounds(project)[0].hypothesis
    text = told("hypothesis", first.model_copy(update={"experimental_code": "x = 1\n" * 50_000}))
    assert len(text) < FIELD_CHARACTERS * 2 + 20_000
    assert "[… 270000 more characters]" in text
    assert first.title in text


def test_claims_and_opinions_without_end_leave_room_too(tmp_path):
    first = read_rounds(project_with(tmp_path, 1))[0]
    claim = first.hypothesis.claims[0]
    claims = tuple(claim.model_copy(update={"id": f"C{n}", "text": f"better {n} " * 200}) for n in range(500))
    text = told("hypothesis", first.hypothesis.model_copy(update={"claims": claims}))
    assert len(text) < FIELD_CHARACTERS + 20_000
    assert '"id": "C1"' in text
    assert re.search(r"\[… \d{3} more\]", text)
    score = first.evaluation.opinion.novelty.model_copy(update={"reason": "so " * 30_000})
    opinion = first.evaluation.opinion.model_copy(update={"novelty": score})
    assert len(told("opinion", opinion)) < FIELD_CHARACTERS + 20_000
    assert told("opinion", first.evaluation.opinion).count("more") == 0
