"""Names of data files that mean something else to whoever looks for patterns in them."""

import pytest

from rankwise.tasks.readers import read_table


@pytest.mark.parametrize("name", ["my[data] é.csv", "a*b.tsv", "b[c]/what?.csv"])
def test_brackets_and_stars_in_a_files_name_are_part_of_it(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("text\nhello\n")
    assert read_table(path) == {"text": ["hello"]}
