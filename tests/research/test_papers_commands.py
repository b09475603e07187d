"""`rankwise research papers` and `rankwise research import`, as a user calls them."""

import json
import os
from pathlib import Path

import pytest
import research_records as small
from typer.testing import CliRunner

from rankwise.cli import app
from rankwise.errors import ConfigError, LimitError, OutputError, RankwiseError, UnknownNameError
from rankwise.research import import_commands, papers_commands, papers_files
from rankwise.research.artefacts import Hypothesis, Papers
from rankwise.research.ask_options import ModelOptions
from rankwise.research.asking import Answer
from rankwise.research.imported import ImportedReview
from rankwise.research.papers import read_papers
from rankwise.research.project import Made, Project, Settings, hypothesis_file
from rankwise.research.records import read_record
from rankwise.research.records_files import imported_record

EXAMPLES = os.environ.get("RANKWISE_EXAMPLES", "")
NOBODY = ModelOptions()
TEXT = (
    "# Dropping Ranks of Adapters\n\n## Method\n\nRanks are dropped one after the other until the loss begins to rise."
)


@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    monkeypatch.delenv("RANKWISE_MODEL", raising=False)


def call(*words):
    return CliRunner().invoke(app, ["research", *map(str, words)])


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "record.txt").write_text(small.proposal(), encoding="utf-8")
    (tmp_path / "own.md").write_text(TEXT, encoding="utf-8")
    (tmp_path / "more.jsonl").write_text(json.dumps(small.paper("A Third Study")) + "\n", encoding="utf-8")
    return tmp_path


def test_add_merges_and_keeps_ids(sources):
    project = sources / "project"
    first = papers_commands.add(project, [str(sources / "record.txt"), str(sources / "own.md")], NOBODY)
    assert first.data["added"] == ["ranks-matrices", "pruning-slowly-study", "dropping-ranks-adapters"]
    assert first.data["merged"] == {"ranks-matrices": ["Ranks for Matrices"]}
    assert list(files(project)) == ["papers.json"]
    before = files(project)
    again = papers_commands.add(project, [str(sources / "own.md")], NOBODY)
    assert (again.data["added"], again.data["papers"]) == ([], 3)
    more = papers_commands.add(project, [str(sources / "more.jsonl")], NOBODY)
    assert more.data["added"] == ["third-study"]
    fuller = small.paper("A Third Study", "It says much more than the entry that is there already.", Year=2024)
    (sources / "fuller.json").write_text(json.dumps(fuller))
    assert papers_commands.add(project, [str(sources / "fuller.json")], NOBODY).data["merged"] == {
        "third-study": ["A Third Study"]
    }
    papers = Project(project).read("papers.json", Papers)
    assert (papers.papers[-1].id, papers.papers[-1].year) == ("third-study", 2024)
    assert "much more" in papers.papers[-1].contributions[0].text
    assert [one.id for one in papers.papers][:3] == first.data["added"]
    assert papers.papers[2].methodology[0].passage.startswith("Ranks are dropped")
    assert files(project) != before
    assert Project(project).made("papers.json").by == "import"


def test_the_same_papers_again_change_nothing(sources):
    project = sources / "project"
    papers_commands.add(project, [str(sources / "more.jsonl")], NOBODY)
    file = project / "papers.json"
    once, written = file.read_bytes(), file.stat().st_ino
    papers_commands.add(project, [str(file)], NOBODY)
    assert (file.read_bytes(), file.stat().st_ino) == (once, written)
    papers_commands.add(project, [str(sources / "more.jsonl"), str(sources / "record.txt")], NOBODY)
    once, written = file.read_bytes(), file.stat().st_ino
    again = papers_commands.add(project, [str(sources / "record.txt"), str(sources / "more.jsonl")], NOBODY)
    assert (file.read_bytes(), file.stat().st_ino) == (once, written)
    assert (again.data["added"], again.data["merged"]) == ([], {})


def test_a_folder_of_papers(sources):
    made = papers_commands.add(sources / "project", [str(sources)], NOBODY)
    assert made.data["papers"] == 4
    empty = sources / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="no file in this folder ends in"):
        papers_commands.add(sources / "project", [str(empty)], NOBODY)


def test_everything_that_is_wrong_at_once_and_nothing_is_written(sources):
    (sources / "broken.json").write_text('{"Title": "T", "Methodology": "m"', encoding="utf-8")
    (sources / "hollow.json").write_text("{}", encoding="utf-8")
    words = ["absent.pdf", "broken.json", "hollow.json", "word", "own.md"]
    with pytest.raises(ConfigError) as caught:
        papers_commands.add(sources / "project", [w if w == "word" else str(sources / w) for w in words], NOBODY)
    message = str(caught.value)
    assert message.startswith("papers add: 4 problems")
    for said in (
        "absent.pdf: no such file",
        "broken.json: the object that begins at line 1 is never closed",
        "hollow.json: holds no papers",
        "word: no such file, and no name",
    ):
        assert said in message
    assert not (sources / "project").exists()


def test_names_are_looked_up(sources, monkeypatch):
    asked = {}

    def fetch(wanted, services):
        asked.update(wanted)
        return {said: papers_commands.paper_of(papers_commands.Source(said, TEXT)) for said in wanted}

    monkeypatch.setattr(papers_commands, "fetch", fetch)
    made = papers_commands.add(sources / "p", ["2303.10512", str(sources / "more.jsonl"), "A Title of Words"], NOBODY)
    assert {said: one.kind for said, one in asked.items()} == {"2303.10512": "arxiv", "A Title of Words": "title"}
    assert made.data["papers"] == 2


def test_a_long_or_odd_source_is_no_file(tmp_path):
    for said in ("x" * 5_000, "a\0b", "http://example.org/paper"):
        with pytest.raises(ConfigError, match="no such file, and no name of a paper"):
            papers_commands.add(tmp_path, [said], NOBODY)


def test_list_and_show(sources):
    project = sources / "project"
    with pytest.raises(ConfigError, match=r"has no papers; `rankwise research papers add .*` adds some"):
        papers_commands.list_papers(project)
    papers_commands.add(project, [str(sources / "record.txt"), str(sources / "own.md")], NOBODY)
    listed = papers_commands.list_papers(project)
    assert "3 papers; 1 duplicates are merged into them" in listed.text
    assert listed.data[0]["merged"] == ["Ranks for Matrices"]
    shown = papers_commands.show(project, "ranks-matrices")
    assert "contributions: " in shown.text
    assert "merged into it: Ranks for Matrices" in shown.text
    with pytest.raises(UnknownNameError, match="no paper 'rank-matrices', did you mean 'ranks-matrices'"):
        papers_commands.show(project, "rank-matrices")


def test_a_model_summarises_text_and_what_was_made_is_kept(sources, monkeypatch):
    (sources / "other.md").write_text(
        TEXT.replace("Dropping Ranks of Adapters", "Keeping All the Heads"), encoding="utf-8"
    )
    said = {"text": "Ranks go.", "passage": "Ranks are dropped one after the other"}

    class Once:
        asked = 0

        def ask(self, prompt, kind, check=None):
            self.asked += 1
            if self.asked > 1:
                raise LimitError("no more requests")
            content = kind.model_validate({"title": "Dropping Ranks of Adapters", "contributions": [said]})
            assert not check(content)
            return Answer(content, Made(by="model", model="m"))

    monkeypatch.setattr(papers_commands, "asker", lambda *_: Once())
    with pytest.raises(LimitError):
        papers_commands.add(sources / "p", [str(sources / "own.md"), str(sources / "other.md")], NOBODY)
    project = Project(sources / "p")
    (paper,) = project.read("papers.json", Papers).papers
    assert paper.contributions[0].passage == said["passage"]
    assert project.made("papers.json").by == "model"


def test_two_papers_by_hand_one_answer_each(sources):
    """The second answer was taken for the first paper, of which it was wrong, again and again."""
    (sources / "other.md").write_text(TEXT.replace("Dropping", "Growing").replace("dropped", "grown"), encoding="utf-8")
    words = ["papers", "add", sources / "p", sources / "own.md", sources / "other.md"]
    for title, passage, next_title in (
        ("Dropping Ranks of Adapters", "Ranks are dropped one after the other", "Growing Ranks"),
        ("Growing Ranks of Adapters", "Ranks are grown one after the other", None),
    ):
        said = {"title": title, "contributions": [{"text": "One by one.", "passage": passage}]}
        (sources / "answer.txt").write_text(json.dumps(said))
        done = call(*words, "--answer", sources / "answer.txt")
        assert done.exit_code == 0, done.exception
        assert (next_title or "added") in done.stdout
    assert f"summarised already: {sources / 'own.md'}" in done.stdout
    assert len(Project(sources / "p").read("papers.json", Papers).papers) == 2
    again = call(*words, "--prompt-only", "--json")
    assert json.loads(again.stdout)["added"] == []


def test_no_paper_speaks_to_the_terminal(sources):
    """Escape sequences in a title could rewrite what stands on the screen."""
    bad = small.paper("Ranks\x1b[2J of \x9b31m\u202eAdapters\x7f", "It \x1b]0;owned\x07 says.")
    (sources / "bad.json").write_text(json.dumps(bad), encoding="utf-8")
    shown = [call("papers", "add", sources / "p", sources / "bad.json")]
    shown += [call("papers", "list", sources / "p"), call("papers", "show", sources / "p", "ranks-2j-31madapters")]
    assert [one.exit_code for one in shown] == [0, 0, 0]
    assert all("of 31mAdapters" in one.output for one in shown[:2])
    assert not any(sign in one.output for one in shown for sign in "\x1b\x9b\x07\u202e")
    raw = call("papers", "list", sources / "p", "--json").output
    assert not any(sign in raw for sign in "\x1b\x9b\x07\u202e\x7f")
    assert json.loads(raw)[0]["title"] == bad["Title"]  # the same data all the same


def test_by_hand_prompt_and_answer(sources):
    done = call("papers", "add", sources / "p", sources / "own.md", "--prompt-only")
    assert done.exit_code == 0, done.output
    assert "Ranks are dropped one after the other until the loss begins to rise." in done.output
    assert '"passage"' in done.output
    assert not (sources / "p" / "papers.json").exists()
    answer = sources / "answer.txt"
    wrong = {
        "title": "Dropping Ranks of Adapters",
        "contributions": [{"text": "x", "passage": "Ranks are never dropped at all here"}],
    }
    answer.write_text(json.dumps(wrong))
    done = call("papers", "add", sources / "p", sources / "own.md", "--answer", answer)
    assert isinstance(done.exception, RankwiseError)
    assert "is not in the paper word for word" in str(done.exception)
    wrong["contributions"][0]["passage"] = "Ranks are dropped one after the other until"
    answer.write_text(f"Sure:\n```json\n{json.dumps(wrong)}\n```")
    done = call("papers", "add", sources / "p", sources / "own.md", "--answer", answer, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["added"] == ["dropping-ranks-adapters"]


def test_the_command_line(sources):
    project = sources / "p"
    done = call("papers", "add", project, sources / "record.txt")
    assert done.exit_code == 0, done.output
    assert json.loads(call("papers", "list", project, "--json").output)[0]["id"] == "ranks-matrices"
    assert "Ranks for Matrices" in call("papers", "list", project).output
    assert (
        json.loads(call("papers", "show", project, "ranks-matrices", "--json").output)["title"] == "Ranks for Matrices"
    )


@pytest.mark.parametrize("name", ["proposal", "refinement", "configs", "review"])
def test_import_writes_everything_with_its_origin(tmp_path, name):
    record = tmp_path / "record.txt"
    record.write_text(getattr(small, name)(), encoding="utf-8")
    folder = tmp_path / "project"
    made = import_commands.import_record(record, folder)
    project = Project(folder)
    read = read_record(record)
    assert imported_record(project) == read
    assert project.rounds() == len(read.rounds) == made.data["rounds"]
    for number, one in enumerate(read.rounds):
        assert project.read(hypothesis_file(number), Hypothesis) == one.hypothesis
        assert project.made(hypothesis_file(number)).by == "import"
    if read.papers:
        assert len(project.read("papers.json", Papers).papers) == made.data["papers"] == (1 if name == "review" else 2)
    assert {f: project.path(f"configs/{f}.yaml").read_text() for f in read.configs} == read.configs
    if name == "review":
        review = project.read("imported_review.json", ImportedReview)
        assert review.major == read.review.major
    settings = project.read("project.json", Settings)
    assert settings.topic == {"configs": "Spare Rank (SpareLoRA)", "review": "SpareLoRA: Ranks That Nobody Needs"}.get(
        name, "Sparing rank."
    )
    assert settings.rounds >= len(read.rounds)
    assert settings.style == ("minimal" if name == "proposal" else "free")
    assert str(tmp_path) not in "".join(text.decode() for text in files(folder).values())


def test_import_again_goes_on_where_it_was_killed_and_overwrites_nothing(tmp_path):
    record = tmp_path / "record.txt"
    record.write_text(small.refinement(), encoding="utf-8")
    folder = tmp_path / "project"
    import_commands.import_record(record, folder)
    whole = files(folder)
    names = [*whole]
    for kept in range(1, len(names)):  # record.json is written first
        order = ["record.json", "papers.json", *(n for n in names if n.startswith("hypothesis/")), "project.json"]
        for name in order[kept:]:
            (folder / name).unlink()
        again = import_commands.import_record(record, folder)
        assert sorted(again.data["written"]) == sorted(order[kept:])
        assert "imported already" in again.text
        assert {n: json.loads(t)["content"] for n, t in files(folder).items()} == {
            n: json.loads(t)["content"] for n, t in whole.items()
        }
    (folder / "hypothesis" / "000.json").write_text("mine")
    import_commands.import_record(record, folder)
    assert (folder / "hypothesis" / "000.json").read_text() == "mine"


def test_import_refuses_a_folder_of_something_else(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text(small.proposal(), encoding="utf-8")
    other.write_text(small.review(), encoding="utf-8")
    import_commands.import_record(one, tmp_path / "p")
    before = files(tmp_path / "p")
    with pytest.raises(OutputError, match=r"was imported from another record than .*other\.txt"):
        import_commands.import_record(other, tmp_path / "p")
    assert files(tmp_path / "p") == before
    Project(tmp_path / "q").write("project.json", Settings(topic="t"), Made(by="hand"))
    with pytest.raises(OutputError, match=r"holds a project already \(project.json\)"):
        import_commands.import_record(one, tmp_path / "q")
    assert list(files(tmp_path / "q")) == ["project.json"]


def test_run_names_lead_nowhere_else(tmp_path):
    answer = {"run_configs": [{"run_id": "../../evil", "run_config_yaml": "a: 1\n"}]}
    record = tmp_path / "r.txt"
    record.write_text(f"Output:\n{json.dumps(answer)}")
    made = import_commands.import_record(record, tmp_path / "p")
    assert "configs/evil.yaml" in made.data["written"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "r.txt"]
    answer["run_configs"].append({"run_id": "evil", "run_config_yaml": "b: 1\n"})
    record.write_text(f"Output:\n{json.dumps(answer)}")
    with pytest.raises(OutputError, match="would both be written to"):
        import_commands.import_record(record, tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_import_on_the_command_line(tmp_path):
    record = tmp_path / "record.txt"
    record.write_text(small.configs(), encoding="utf-8")
    done = call("import", record, "--output", tmp_path / "p")
    assert done.exit_code == 0, done.output
    assert "next: rankwise research check" in done.output
    again = call("import", record, "--output", tmp_path / "p", "--json")
    assert json.loads(again.output)["written"] == []
    wrong = call("import", tmp_path / "absent", "--output", tmp_path / "q")
    assert isinstance(wrong.exception, RankwiseError)


@pytest.mark.skipif(not EXAMPLES, reason="RANKWISE_EXAMPLES does not name the folder of example records")
@pytest.mark.parametrize(
    ("number", "papers", "duplicates", "rounds"),
    [("000", 3, 0, 1), ("001", 0, 0, 1), ("002", 20, 3, 3), ("004", 1, 0, 0)],
)
def test_the_examples_import(tmp_path, number, papers, duplicates, rounds):
    (record,) = Path(EXAMPLES).glob(f"{number}_*.txt")
    made = import_commands.import_record(record, tmp_path / "p")
    assert (made.data["papers"], made.data["duplicates"], made.data["rounds"]) == (papers, duplicates, rounds)
    assert imported_record(Project(tmp_path / "p")) == read_record(record)
    assert len(made.data["configs"]) == (2 if number == "001" else 0)


def test_what_is_too_long_to_be_read_is_said(sources, monkeypatch, caplog):
    """The end of a paper of 5 MB was left out in silence."""
    monkeypatch.setattr(papers_files, "MAX_CHARACTERS", len(TEXT))
    (sources / "long.md").write_text(f"{TEXT}\n{'More. ' * 500}", encoding="utf-8")
    made = papers_commands.add(sources / "p", [str(sources / "own.md"), str(sources / "long.md")], NOBODY)
    (said,) = made.data["unread"]
    assert said.startswith(f"{sources / 'long.md'}: the last 3,001 of ")
    assert said in made.text
    assert caplog.messages == []
    read_papers(sources / "long.md")  # as `--papers` of other commands does it
    assert caplog.messages == [said]
