"""The first proposal, and what is thought of a proposal."""

import pytest
from research.llm.talking import Lines
from research.stages.projects import PAPERS, TOPIC, new_project, project_with
from research.stages.scripted import FIRST, ScriptedAsker, opinion

from rankwise.allocation.signals import SIGNALS
from rankwise.errors import ConfigError, ModelAnswerError, OutputError
from rankwise.research.artefacts import Claim, Closest, Evaluation, Hypothesis, Papers
from rankwise.research.choice import choose
from rankwise.research.conversation import Conversing
from rankwise.research.evaluate import evaluate, opinion_problems
from rankwise.research.hypothesize import hypothesize, prompt
from rankwise.research.pasted import Pasted
from rankwise.research.project import Project, Settings
from rankwise.research.rounds import read_rounds
from rankwise.research.wellformed import hypothesis_problems, refinement_problems

IMPOSSIBLE = FIRST.model_copy(
    update={"expected_result": "After merging, GLoRA saves 60 % of the inference FLOPs against merged LoRA."}
)


def test_a_hypothesis_is_proposed_and_written_with_where_it_comes_from(tmp_path):
    project = new_project(tmp_path)
    made = hypothesize(project, ScriptedAsker(PAPERS))
    assert made == FIRST == project.read("hypothesis/000.json", Hypothesis)
    origin = project.made("hypothesis/000.json")
    assert (origin.by, origin.model) == ("model", "scripted")
    assert origin.inputs == {name: project.digest(name) for name in ("project.json", "papers.json")}


def test_topic_and_papers_are_in_the_prompt_as_quoted_data():
    text = prompt(Settings(topic=TOPIC), PAPERS).text
    assert f"(topic)\n{TOPIC}\nend data " in text
    assert "(paper adalora)\n" in text
    assert "smoothed sensitivity times uncertainty" in text
    assert "smallest change of one existing method" in text
    assert "smallest change" not in prompt(Settings(topic=TOPIC), PAPERS, "free").text
    assert prompt(Settings(topic=TOPIC, style="free"), Papers()).text.rstrip().endswith("(none)")


def test_what_can_be_run_is_told_and_no_cassette_depends_on_it():
    asked = prompt(Settings(topic=TOPIC, budget_minutes=45), PAPERS)
    assert "\n- `glora`: Gradient-norm aware rank allocation" in asked.text
    assert "\n  - `signal` (estimate): what decides" in asked.text
    assert "docstrings, glue/sst2" in asked.text
    assert "may take 45 minutes" in asked.text
    assert all(name in asked.text for name in SIGNALS)  # in the description of `signal`
    other = prompt(Settings(topic=TOPIC, base_model="org/other"), PAPERS).text
    assert "`minilm` and `org/other`" in other
    assert " …\n" in other.partition("# What can be run")[2].partition("# Topic")[0]  # long descriptions are cut
    assert "(what can be run)" in asked.known_by
    assert "`glora`:" not in asked.known_by
    assert asked.known_by == prompt(Settings(topic=TOPIC), PAPERS).known_by


@pytest.mark.parametrize("topic", ["", "T" * 20_001])
def test_a_topic_that_is_none_is_refused(tmp_path, topic):
    from rankwise.research.ask_commands import Start
    from rankwise.research.ask_commands import hypothesize as command
    from rankwise.research.ask_options import ModelOptions
    from rankwise.research.start import Start as Whole
    from rankwise.research.start import start

    with pytest.raises(ConfigError, match="topic: String should have at"):
        command(Start(topic), tmp_path / "p", ModelOptions(prompt_only=True))
    with pytest.raises(ConfigError, match="topic: String should have at"):
        start(Project(tmp_path / "p"), Whole(topic), None, print)
    assert not (tmp_path / "p").exists()


def test_a_project_keeps_its_style(tmp_path):
    """`hypothesize` without --style in a project that is `free` asked for a minimal change."""
    from rankwise.research.ask_commands import Start
    from rankwise.research.ask_commands import hypothesize as command
    from rankwise.research.ask_options import ModelOptions

    project = new_project(tmp_path, style="free")
    shown = command(Start(TOPIC), project.folder, ModelOptions(prompt_only=True))
    assert shown.data["prompt"] == "hypothesize-free"


def test_the_style_is_the_projects_own_unless_another_is_asked(tmp_path):
    asker = ScriptedAsker()
    hypothesize(new_project(tmp_path / "a", style="free"), asker)
    hypothesize(new_project(tmp_path / "b", style="free"), asker, style="minimal")
    assert asker.asked == ["hypothesize-free", "hypothesize-minimal"]


def test_there_is_one_first_proposal_and_nobody_is_asked_for_another(tmp_path):
    project = project_with(tmp_path, 1, judged=False)
    asker = ScriptedAsker()
    with pytest.raises(OutputError, match=r"000\.json exists"):
        hypothesize(project, asker)
    assert asker.asked == []


def test_without_a_project_it_says_how_to_begin_one(tmp_path):
    with pytest.raises(ConfigError, match=r"is no research project \(no project\.json\)"):
        hypothesize(Project(tmp_path), ScriptedAsker())


def test_what_code_finds_goes_back_once(tmp_path):
    """A model that mends it is taken; one that does not, too, and the evaluation says what is wrong."""
    lines = Lines(IMPOSSIBLE.model_dump_json(), FIRST.model_dump_json())
    assert hypothesize(new_project(tmp_path / "a"), Conversing(lines)) == FIRST
    assert len(lines.heard) == 2
    assert "60" in lines.heard[1][-1].text
    stubborn = Lines(IMPOSSIBLE.model_dump_json())
    project = new_project(tmp_path / "b")
    assert hypothesize(project, Conversing(stubborn)) == IMPOSSIBLE
    assert len(stubborn.heard) == 2
    assert any(defect.level == "error" for defect in evaluate(project, 0, None).defects)


def test_a_proposal_without_claims_is_never_taken(tmp_path):
    lines = Lines(FIRST.model_copy(update={"claims": ()}).model_dump_json())
    with pytest.raises(ModelAnswerError, match="claims: is empty"):
        hypothesize(new_project(tmp_path), Conversing(lines))
    assert not (tmp_path / "hypothesis").exists()


def claim(**more):
    return Claim(**({"id": "C1", "text": "t", "kind": "superiority", "arm": "a", "reference": "b"} | more))


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ((claim(), claim()), "claims: 2 have the id C1"),
        ((claim(arm=None),), "claims.C1.arm: is missing"),
        ((claim(reference=None),), "claims.C1.reference: is missing"),
        ((claim(reference="a"),), "claims.C1.reference: is the arm itself"),
        ((claim(kind="equivalence"),), "claims.C1.margin: is 0"),
        ((claim(kind="bound"),), "claims.C1.at_most: a bound needs"),
        ((claim(kind="bound", at_most=0.1, at_least=0.2),), "claims.C1.at_least: is 0.2, above at_most (0.1)"),
        ((claim(kind="not-testable"),), "claims.C1.reason: is empty"),
        ((claim(expected=0.6),), "claims.C1.expected: is 0.6, 60 points of accuracy"),
    ],
)
def test_claims_that_no_run_could_decide(claims, said):
    (problem,) = hypothesis_problems(FIRST.model_copy(update={"claims": claims}))
    assert said in problem


def test_form_of_a_refinement():
    assert refinement_problems(FIRST.model_copy(update={"changes": "c", "method": "m"}), [FIRST]) == []
    (problem,) = refinement_problems(FIRST.model_copy(update={"changes": "c"}), [FIRST])
    assert "word for word" in problem
    problems = hypothesis_problems(FIRST.model_copy(update={"title": " ", "primary_metric": ""}))
    assert [problem.split(":")[0] for problem in problems] == ["title", "primary_metric"]


def test_an_evaluation_has_checks_and_opinion(tmp_path):
    project = project_with(tmp_path, 1, judged=False)
    made = evaluate(project, 0, ScriptedAsker(PAPERS))
    assert made == project.read("evaluation/000.json", Evaluation)
    assert made.opinion == opinion(0, PAPERS)
    assert made.opinion.closest[0].paper_id == "lora"
    assert {defect.rule for defect in made.defects} >= {"name_taken"}
    assert set(project.made("evaluation/000.json").inputs) == {"project.json", "papers.json", "hypothesis/000.json"}


def test_without_a_model_the_checks_are_all(tmp_path):
    project = project_with(tmp_path, 1, judged=False)
    made = evaluate(project, 0, None)
    assert made.opinion is None
    assert made.defects
    assert project.made("evaluation/000.json").by == "code"


def test_an_evaluation_stays_unless_asked_again(tmp_path):
    project = project_with(tmp_path, 1, judged=False)
    evaluate(project, 0, None)
    with pytest.raises(OutputError, match="--again"):
        evaluate(project, 0, ScriptedAsker())
    assert evaluate(project, 0, ScriptedAsker(), again=True).opinion


@pytest.mark.parametrize(("rounds", "said"), [(0, "it has no hypothesis yet"), (2, "it has 2: 0 to 1")])
def test_a_round_that_is_not_there(tmp_path, rounds, said):
    with pytest.raises(ConfigError, match=f"there is no round 5; {said}"):
        evaluate(project_with(tmp_path, rounds, judged=False), 5, None)


def test_checks_and_earlier_rounds_are_in_the_prompt(tmp_path):
    project = project_with(tmp_path, 2, judged=False)
    evaluate(project, 0, ScriptedAsker(PAPERS))
    heard = []

    class Listening(ScriptedAsker):
        def answer(self, prompt, kind):
            heard.append(prompt.text)
            return super().answer(prompt, kind)

    evaluate(project, 1, Listening(PAPERS))
    assert "(hypothesis of round 1)" in heard[0]
    assert "(opinion on round 0)" in heard[0]
    assert "the name GLoRA is taken" in heard[0]


@pytest.mark.parametrize(
    ("paper", "quote", "said"),
    [
        ("lora", "Every adapted matrix gets an update of the same rank", None),
        ("lora", "every  adapted matrix gets an update", "does not stand in the data of lora"),
        ("lora", "Triplets are scored by smoothed sensitivity", "does not stand in the data of lora"),
        ("lora", "of the same rank", "is too short"),
        ("dora", "Every adapted matrix gets an update of the same rank", "no paper has the id 'dora'; the ids are"),
    ],
)
def test_quotes_must_stand_in_the_paper_they_name(paper, quote, said):
    closest = (Closest(paper_id=paper, quote=quote, overlap="o"),)
    problems = opinion_problems(opinion(0, PAPERS).model_copy(update={"closest": closest}), PAPERS.papers)
    assert (problems == []) if said is None else (said in problems[0])


def test_an_invented_quote_goes_back_to_the_model(tmp_path):
    right = opinion(0, PAPERS)
    wrong = right.model_copy(
        update={"closest": (Closest(paper_id="lora", quote="we prove that it is best", overlap="o"),)}
    )
    lines = Lines(wrong.model_dump_json(), right.model_dump_json())
    made = evaluate(project_with(tmp_path, 1, judged=False), 0, Conversing(lines))
    assert made.opinion == right
    assert "closest.0.quote: 'we prove that it is best' does not stand in the data of lora" in lines.heard[1][-1].text


def test_no_papers_no_closest():
    made = opinion(0, PAPERS)
    assert opinion_problems(made, ()) == [
        "closest.0.paper_id: no paper has the id 'lora'; there are no papers: leave `closest` empty"
    ]
    twice = made.model_copy(update={"closest": made.closest * 2})
    assert opinion_problems(twice, PAPERS.papers) == ["closest: names a paper twice"]


def test_the_script_answers_as_code_wants_it(tmp_path):
    """What other tests rely on: no errors in its hypotheses, and the last round is the best."""
    project = project_with(tmp_path, 3)
    assert not any(defect.level == "error" for item in read_rounds(project) for defect in item.evaluation.defects)
    assert choose(project).round == 2


@pytest.mark.slow
def test_the_scripts_design_is_taken_as_it_is(tmp_path):
    from rankwise.research.design import make_design

    project = project_with(tmp_path, 3)
    choose(project)
    asker = ScriptedAsker(PAPERS)
    design = make_design(project, asker)
    assert asker.asked == ["design"]
    assert [claim.id for claim in design.claims] == ["C1", "C2", "C3", "C4"]


def test_what_goes_back_once_does_not_keep_a_pasted_answer_out(tmp_path):
    file = tmp_path / "answer.json"
    file.write_text(IMPOSSIBLE.model_dump_json())
    assert hypothesize(new_project(tmp_path / "p"), Pasted(file)) == IMPOSSIBLE


def test_a_refinement_speaks_of_claims_that_some_round_has():
    ids = [claim.id for claim in FIRST.claims]
    later = FIRST.model_copy(update={"method": "m", "claims": FIRST.claims[:1]})
    dropped = later.model_copy(update={"changes": f"Claim {ids[-1]} is dropped. The C4 corpus is not used."})
    assert refinement_problems(dropped, [FIRST]) == []
    assert refinement_problems(dropped, [FIRST, later.model_copy(update={"method": "other"})]) == []
    strange = later.model_copy(update={"changes": "As claim C77 says, C1 holds."})
    assert refinement_problems(strange, [FIRST]) == [
        "changes: speaks of claim C77, and no round has a claim of that id"
    ]
