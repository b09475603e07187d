import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from rankwise.errors import DataError, MissingPackageError
from rankwise.tasks import docstrings
from rankwise.tasks.docstring_cache import cache_path
from rankwise.tasks.docstring_text import MASK, mask, prose
from rankwise.tasks.docstring_text import docstrings as docstrings_of
from rankwise.tasks.families import describe_task
from rankwise.tasks.near_duplicates import THRESHOLD, near_duplicate_groups, shingles, similarity

PROSE = "The quick method sorts all of the rows by their first column and returns a copy of the table in that order."


@pytest.fixture(scope="module")
def corpus(docstrings_cache):
    return docstrings.load_corpus()


def test_size_and_balance(corpus):
    for rows, least in ((corpus.train, 6_000), (corpus.validation, 1_000)):
        per_class = Counter(label for label, _, _ in rows)
        assert len(rows) >= least
        assert len(per_class) == len(docstrings.LIBRARIES)
        assert len(set(per_class.values())) == 1


def test_no_file_and_no_text_is_in_both_splits(corpus):
    train, validation = ({(file, text) for _, text, file in rows} for rows in (corpus.train, corpus.validation))
    assert not {file for file, _ in train} & {file for file, _ in validation}
    assert len({text for _, text in train | validation}) == len(corpus.train) + len(corpus.validation)


def test_near_duplicates_do_not_straddle_the_splits(corpus):
    train = [shingles(text) for _, text, _ in corpus.train]
    holders = {}
    for index, parts in enumerate(train):
        for part in parts:
            holders.setdefault(part, []).append(index)
    for _, text, _ in corpus.validation:
        mine = shingles(text)
        shared = Counter(index for part in mine for index in holders.get(part, []))
        for index, count in shared.items():
            assert count / (len(mine) + len(train[index]) - count) < THRESHOLD


def test_no_library_is_named(corpus):
    names = {"numpy", "np", "scipy", "sklearn", "pandas", "pd", "torch", "pytorch", "transformers"}
    for _, text, _ in corpus.train + corpus.validation:
        words = {word.strip(".,;:()'\"").lower() for word in text.split()}
        assert not words & names, text
        assert "://" not in text


def test_statistics_can_be_printed_and_stored(corpus):
    found = json.loads(json.dumps(docstrings.statistics(corpus)))
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert found["examples"] == {"train": len(corpus.train), "validation": len(corpus.validation)}
    assert found["removed"]["near-duplicates"] > 0
    _, printed = describe_task(docstrings.DocstringsTask(train_examples=60))
    assert f"removed: exact duplicates {found['removed']['exact duplicates']}" in printed
    assert f"numpy: {found['samples']['numpy']}" in printed
    assert "examples: train 60, validation 1200" in printed


@pytest.mark.slow
def test_another_process_builds_the_same(corpus, tmp_path):
    code = (
        "from rankwise.tasks.docstrings import build_corpus as b; import hashlib; c = b(); "
        "print(hashlib.sha256(repr((c.train, c.validation)).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RANKWISE_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == hashlib.sha256(repr((corpus.train, corpus.validation)).encode()).hexdigest()


def test_building_imports_none_of_the_libraries_it_reads():
    code = (
        "import sys; from rankwise.tasks.docstrings import LIBRARIES, _package_folder\n"
        "for n, m in LIBRARIES.items(): assert _package_folder(n, m).is_dir()\n"
        "assert not {'torch', 'pandas', 'transformers', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A corpus of a few rows in place of the real one, and a cache of its own."""
    rows = [(0, "one text", "a.py"), (1, "zweiter — \u2028 Text", "b.py")]
    built = docstrings.DocstringCorpus(rows, rows[:1], {}, {"near-duplicates": 3})
    calls = []
    monkeypatch.setattr(docstrings, "build_corpus", lambda: calls.append(1) or built)
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    versions = {name: importlib.metadata.version(name) for name in docstrings.LIBRARIES}
    return calls, built, cache_path(docstrings.builder_version(), versions)


def test_the_second_load_reads_the_cache(small):
    calls, built, path = small
    first, second = docstrings.load_corpus(), docstrings.load_corpus()
    assert len(calls) == 1
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert (second.train, second.validation, second.removed) == (built.train, built.validation, built.removed)
    assert first.train == second.train


def test_another_builder_or_version_has_a_cache_of_its_own(small):
    calls, _, path = small
    docstrings.load_corpus()
    assert path.exists()
    assert cache_path("other", {"numpy": "1"}) != cache_path("other", {"numpy": "2"}) != path
    assert len(calls) == 1


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"\xff\xfe", b"[1]\nx\n", None])
def test_a_damaged_cache_is_rebuilt(small, damage):
    calls, built, path = small
    docstrings.load_corpus()
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    with pytest.warns(UserWarning, match="unusable and will be rebuilt"):
        assert docstrings.load_corpus().train == built.train
    assert docstrings.load_corpus().train == built.train
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_is_bypassed(small, monkeypatch, tmp_path):
    _, built, _ = small
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="could not be cached"):
        assert docstrings.load_corpus().train == built.train


def test_a_missing_library_is_named(monkeypatch):
    real = importlib.metadata.version

    def without_pandas(name):
        if name == "pandas":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", without_pandas)
    with pytest.raises(MissingPackageError, match=r"'pandas' is not installed: pip install 'rankwise\[demo\]'"):
        docstrings.load_corpus()


def test_too_few_paragraphs_are_refused():
    with pytest.raises(DataError, match="'numpy' has only 1 usable"):
        docstrings._split("numpy", [(0, PROSE, "a.py")])


def test_docstrings_of_a_source_file():
    source = '"""Module."""\n'
    source += 'if True:\n    class A:\n        """A class."""\n        async def f(self):\n            """F."""\n'
    source += 'x = """no docstring\nat all"""\nadd_newdoc("m", "n", """Attached\n    later.""")\nother("""\nx""")\n'
    assert sorted(docstrings_of(source)) == ["A class.", "Attached\nlater.", "F.", "Module."]


@pytest.mark.parametrize(
    "doc",
    [
        "Too short.",
        f">>> {PROSE}",
        f"See Also\n--------\n{PROSE}",
        f"- {PROSE}",
        f".. note:: {PROSE}",
        PROSE.replace("quick method", "copyright holder"),
        PROSE[:-1],
        PROSE.lower(),
        "A = f(x1) + g(y2) * h(z3) / (k4 - 1) the of a + 22 - 33 * 44 / 55 ** 66 + 77 // 88 + 99.",
    ],
)
def test_what_is_not_prose_is_left_out(doc):
    assert list(prose(doc)) == []


def test_prose_is_found_between_other_things():
    doc = f"Name.\n\n{PROSE}\n\nParameters\n----------\nx : int\n    {PROSE}\n    More of it."
    doc += f"\n\nReferences\n----------\n{PROSE}"
    assert list(prose(doc)) == [PROSE, f"{PROSE} More of it."]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Uses NumPy and :func:`~torch.nn.Linear`.", f"Uses {MASK}."),
        ("See https://numpy.org/doc for np.sum() of it.", f"See {MASK} for {MASK} of it."),
        ("A `DataFrame` or a Series, i.e. 0.5 of them.", f"A {MASK} or a {MASK}, i.e. 0.5 of them."),
        ("Pass **n_jobs** to [`PreTrainedModel`] of Hugging Face.", f"Pass {MASK} to {MASK} of {MASK}."),
        ("The scikit-learn estimator of a tensor [1]_.", f"The {MASK} estimator of a tensor."),
        ("A tensor, an array and an estimator in BERT.", "A tensor, an array and an estimator in BERT."),
    ],
)
def test_masking(text, masked):
    assert mask(text) == masked


def test_near_duplicates_are_grouped():
    changed = PROSE.replace("quick", "fast")
    other = "An entirely different sentence about the weather of tomorrow and the day after it in the mountains."
    groups = near_duplicate_groups([PROSE, other, changed, PROSE.upper()])
    assert groups[0] == groups[2] == groups[3] != groups[1]
    assert similarity(PROSE, changed) >= THRESHOLD > similarity(PROSE, other)


def test_groups_are_the_components_of_the_similarity():
    words = PROSE.split()
    texts = [" ".join(words[i : i + 14]) for i in range(0, len(words) - 13, 2)] + ["short", "a", ""]
    groups = near_duplicate_groups(texts)
    for i, left in enumerate(texts):
        for j, right in enumerate(texts):
            if similarity(left, right) >= THRESHOLD:
                assert groups[i] == groups[j]


def test_a_group_that_spans_two_libraries_goes_altogether():
    rows = [
        (0, PROSE, "a"),
        (1, PROSE.replace("quick", "fast"), "b"),
        (1, PROSE[::-1], "c"),
        (1, PROSE[::-1] + " x", "d"),
    ]
    removed = Counter()
    assert docstrings._without_near_duplicates(rows, removed) == [rows[2]]
    assert removed["near-duplicates"] == 3
