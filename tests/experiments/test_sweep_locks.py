"""Locks on files: one holder at a time, and nothing left behind by those that are to leave nothing."""

import threading
import time

import pytest

from rankwise.errors import OutputError
from rankwise.experiments.sweep_locks import alive, is_dead, locked


def crowd(folder, held, together):
    for _ in range(3):
        with locked(folder, "x", tidy=True):
            held.append(1)
            together.append(len(held))
            time.sleep(0.001)
            held.pop()


@pytest.mark.parametrize("there", [False, True])
def test_many_take_turns_and_leave_nothing(tmp_path, there):
    """Whoever waits while the folder is taken away makes it anew, and is the one to take it away then."""
    folder, held, together = tmp_path / "folder", [], []
    if there:
        folder.mkdir()
    for _ in range(12):
        threads = [threading.Thread(target=crowd, args=(folder, held, together)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(tmp_path.rglob("*")) == ([folder] if there else [])
    assert len(together) == 12 * 9
    assert max(together) == 1


def test_a_folder_with_something_in_it_stays(tmp_path):
    with locked(tmp_path / "folder", "x", tidy=True):
        (tmp_path / "folder" / "paper.md").write_text("x")
    assert list(tmp_path.rglob("*.*")) == [tmp_path / "folder" / "paper.md"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    for wrong in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(OutputError, match=r"cannot write .*file"), locked(wrong, "x"):
            raise AssertionError
        with pytest.raises(OutputError, match=r"cannot write .*file"), alive(wrong):
            raise AssertionError


def test_a_worker_is_alive_while_it_lives_and_dead_only_if_it_left_its_lock(tmp_path):
    with alive(tmp_path / "locks") as me:
        assert me.is_file()
        assert not is_dead(me)
    assert not me.parent.exists()
    me.parent.mkdir()
    me.write_text("")  # as one that was killed leaves it
    assert is_dead(me)
