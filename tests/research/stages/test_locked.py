"""Two commands at once on one project: one writes, the other waits, and nothing is lost."""

import json
import stat
import threading
import time

import pytest
import research_records as small
from research.stages.projects import new_project

from rankwise.errors import ConfigError, OutputError
from rankwise.research import papers_commands
from rankwise.research.ask_options import ModelOptions
from rankwise.research.papers import project_papers
from rankwise.research.project import Project
from rankwise.research.whole_commands import Naming, design


def test_papers_that_are_added_at_the_same_time_are_all_kept(tmp_path, monkeypatch):
    project, merge = Project(tmp_path / "p"), papers_commands.merge

    def slowly(papers):
        time.sleep(0.05)
        return merge(papers)

    monkeypatch.setattr(papers_commands, "merge", slowly)
    titles = [f"{word} of Adapters" for word in ("Ranks", "Costs", "Signals")]
    for number, title in enumerate(titles):
        (tmp_path / f"{number}.json").write_text(json.dumps(small.paper(title)), encoding="utf-8")
    threads = [
        threading.Thread(
            target=papers_commands.add, args=(project.folder, [str(tmp_path / f"{n}.json")], ModelOptions())
        )
        for n in range(len(titles))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {paper.title for paper in project_papers(project).papers} == set(titles)
    assert [path.name for path in project.folder.iterdir()] == ["papers.json"]


def test_who_waits_says_so_and_goes_on(tmp_path, capsys):
    project = new_project(tmp_path)
    done = threading.Event()

    def other():
        with project.locked():
            done.set()

    with project.locked():
        thread = threading.Thread(target=other)
        thread.start()
        assert not done.wait(0.5)
    thread.join()
    assert done.is_set()
    assert capsys.readouterr().err == f"rankwise: another command works on {tmp_path}; this one waits for it\n"


def test_who_waits_goes_on_where_the_folder_is_gone_again(tmp_path):
    """A command that fails takes its new folder away, while another one waits for it."""
    project, done = Project(tmp_path / "p"), threading.Event()

    def other():
        with project.locked():
            done.set()

    with project.locked():
        thread = threading.Thread(target=other)
        thread.start()
        assert not done.wait(0.5)
    thread.join()
    assert done.is_set()
    assert not project.folder.exists()


def test_processes_of_one_command_do_not_wait_for_each_other(tmp_path, monkeypatch):
    project, done = new_project(tmp_path), threading.Event()

    def beside():
        with project.locked():  # what torchrun started beside the first one
            done.set()

    with project.locked():
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        threading.Thread(target=beside, daemon=True).start()
        assert done.wait(60)


def test_a_command_that_fails_leaves_no_folder_behind(tmp_path):
    project = Project(tmp_path / "p")
    with pytest.raises(ConfigError), project.locked():
        raise ConfigError("x", [])
    with pytest.raises(ConfigError, match="no research project"):
        design(project.folder, ModelOptions(), Naming((), (tmp_path / "plugin.py",)), again=False)
    assert not project.folder.exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "p").write_text("a file")
    with pytest.raises(OutputError, match="cannot write"), Project(tmp_path / "p").locked():
        pass


def test_files_can_be_read_by_whom_the_user_lets(tmp_path):
    project = new_project(tmp_path / "p")
    (tmp_path / "usual").write_text("")
    usual = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    assert stat.S_IMODE(project.path("papers.json").stat().st_mode) == usual
