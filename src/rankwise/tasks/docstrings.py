"""The embedded task: which library does a paragraph of documentation describe?

Six classes: NumPy, pandas, SciPy, scikit-learn, PyTorch and Transformers. The text is what their authors wrote in
the docstrings of the installed packages, read from the source files without importing them;
`docstring_text` says what is kept and what is hidden, and why the task is neither trivial nor a guess.

No leak between the splits: of every group of near-duplicates one paragraph stays (none, if the group spans
two libraries), and a source file belongs to one split as a whole. Both splits are balanced. The result is a function
of the package versions alone, and is kept in one cache file (`$RANKWISE_CACHE`, or the user's cache folder).
"""

import hashlib
import importlib.metadata
import importlib.util
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from rankwise.errors import DataError, MissingPackageError
from rankwise.tasks.base import TASKS, TaskConfig, TaskData
from rankwise.tasks.data import Examples, assemble
from rankwise.tasks.docstring_cache import read_cache, write_cache
from rankwise.tasks.docstring_text import docstrings, mask, prose
from rankwise.tasks.near_duplicates import near_duplicate_groups

LIBRARIES: Mapping[str, str] = {
    "numpy": "numpy",
    "pandas": "pandas",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "torch": "torch",
    "transformers": "transformers",
}
"""Class name (the distribution) -> import name, in the order of the class indices."""

TRAIN_PER_LIBRARY = 1_100
VALIDATION_PER_LIBRARY = 200
_BUILDER_FILES = ("docstrings.py", "docstring_text.py", "near_duplicates.py")
_ENOUGH = 2_000
"""Paragraphs after which no further file of a library is read: the large ones have ten times as many."""
_MAX_FROM_VALIDATION_FILE = 20
"""No file makes up more than a tenth of a library's validation paragraphs."""
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "_testing", "conftest", "vendor", "_vendor", "externals", "_external", "__pycache__"}
)
_GENERATED = "automatically generated"
_MIN_SHARE_OF_WORDS = 0.8
"""A paragraph of which more than a fifth is masked says too little."""


@dataclass(frozen=True)
class DocstringCorpus:
    """The built task before any cap. Rows are (label, text, file); `removed` counts paragraphs left out, by reason."""

    train: list[tuple[int, str, str]]
    validation: list[tuple[int, str, str]]
    versions: dict[str, str]
    removed: dict[str, int] = field(default_factory=dict)


class DocstringsTask(TaskConfig):
    """Which library a paragraph documents (`docstrings`)."""

    name: str = Field(default="docstrings", pattern="^docstrings$", description="task name: docstrings")

    def load(self) -> TaskData:
        """Build the task, or read it from the cache.

        Raises:
            MissingPackageError: one of the six libraries is not installed.
            DataError: a library's installed files hold too few paragraphs.
        """
        corpus = load_corpus()
        train, validation = (
            Examples([text for _, text, _ in rows], [label for label, _, _ in rows])
            for rows in (corpus.train, corpus.validation)
        )
        return assemble(
            self, self.name, "classification", train, {"validation": validation}, tuple(LIBRARIES), ("accuracy",)
        )


TASKS.register("docstrings")(DocstringsTask)


def load_corpus() -> DocstringCorpus:
    """The corpus for the installed versions, from the cache file if there is a sound one.

    Raises:
        MissingPackageError, DataError: as `build_corpus`.
    """
    versions, builder = {name: _version(name) for name in LIBRARIES}, builder_version()
    cached = read_cache(builder, versions)
    if cached is not None:
        return DocstringCorpus(versions=versions, **cached)
    corpus = build_corpus()
    write_cache(builder, versions, {"train": corpus.train, "validation": corpus.validation, "removed": corpus.removed})
    return corpus


def builder_version() -> str:
    """Hash of the code that makes the examples: a changed builder never reads an older one's cache."""
    here = Path(__file__).parent
    code = b"".join((here / name).read_bytes() for name in _BUILDER_FILES)
    return hashlib.sha256(code.replace(b"\r\n", b"\n")).hexdigest()[:16]


def build_corpus() -> DocstringCorpus:
    """Read the sources of the six libraries and split their paragraphs; several seconds, no cache.

    Raises:
        MissingPackageError: a library is not installed.
        DataError: a library has too few paragraphs for both splits.
    """
    versions = {name: _version(name) for name in LIBRARIES}
    removed: Counter[str] = Counter()
    rows = [
        (label, text, file)
        for label, (name, module) in enumerate(LIBRARIES.items())
        for text, file in _paragraphs(_package_folder(name, module), removed)
    ]
    rows = _without_near_duplicates(rows, removed)
    splits = [_split(name, [row for row in rows if row[0] == label]) for label, name in enumerate(LIBRARIES)]
    size = min(len(train) for train, _ in splits)
    train = sorted((row for part, _ in splits for row in part[:size]), key=lambda row: _order(row[1]))
    validation = sorted((row for _, part in splits for row in part), key=lambda row: _order(row[1]))
    return DocstringCorpus(train, validation, versions, dict(removed))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise _missing(name) from None


def _package_folder(name: str, module: str) -> Path:
    """Where a package's files are; finding a top-level package does not import it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise _missing(name)
    return Path(spec.origin).parent


def _missing(name: str) -> MissingPackageError:
    return MissingPackageError(
        f"the task 'docstrings' reads the documentation of {', '.join(LIBRARIES)}; '{name}' is not installed: "
        "pip install 'rankwise[demo]'"
    )


def _order(text: str) -> bytes:
    """A sorting key that shuffles, the same way everywhere."""
    return hashlib.sha256(text.encode()).digest()


def _paragraphs(folder: Path, removed: Counter[str]) -> Iterator[tuple[str, str]]:
    """(masked paragraph, file) from a package's files in shuffled order, until there are enough."""
    files = {p.relative_to(folder.parent).as_posix(): p for p in folder.rglob("*.py")}
    seen: set[str] = set()
    for name in sorted(files, key=_order):
        if len(seen) >= _ENOUGH:
            return
        if not _SKIPPED_FOLDERS.isdisjoint(name.split("/")):
            continue
        source = files[name].read_text(encoding="utf-8", errors="replace")
        if _GENERATED in source[:2000] or ('"""' not in source and "'''" not in source):
            continue
        for text in (mask(paragraph) for doc in docstrings(source) for paragraph in prose(doc)):
            words = text.split()
            if sum("[NAME]" in word for word in words) > (1 - _MIN_SHARE_OF_WORDS) * len(words):
                removed["mostly masked"] += 1
            elif text in seen:
                removed["exact duplicates"] += 1
            else:
                seen.add(text)
                yield text, name


def _without_near_duplicates(rows: list[tuple[int, str, str]], removed: Counter[str]) -> list[tuple[int, str, str]]:
    """One row of every group of near-duplicates; none of a group that spans two libraries."""
    groups = near_duplicate_groups([text for _, text, _ in rows])
    members: defaultdict[int, list[tuple[int, str, str]]] = defaultdict(list)
    for group, row in zip(groups, rows, strict=True):
        members[int(group)].append(row)
    kept = [group[0] for group in members.values() if len({label for label, _, _ in group}) == 1]
    removed["near-duplicates"] += len(rows) - len(kept)
    return kept


def _split(
    library: str, rows: list[tuple[int, str, str]]
) -> tuple[list[tuple[int, str, str]], list[tuple[int, str, str]]]:
    """(train, validation) of one library; a file's paragraphs never land in both."""
    by_file: defaultdict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for row in rows:
        by_file[row[2]].append(row)
    validation: list[tuple[int, str, str]] = []
    train: list[tuple[int, str, str]] = []
    for name in sorted(by_file, key=lambda file: _order("split " + file)):
        part = by_file[name]
        wanted = len(validation) < VALIDATION_PER_LIBRARY and len(part) <= _MAX_FROM_VALIDATION_FILE
        (validation if wanted else train).extend(part)
    if len(validation) < VALIDATION_PER_LIBRARY or len(train) < VALIDATION_PER_LIBRARY:
        raise DataError(
            f"task 'docstrings': the installed '{library}' has only {len(rows)} usable paragraphs of documentation"
        )
    train = sorted(train, key=lambda row: _order(row[1]))[:TRAIN_PER_LIBRARY]
    return train, validation[:VALIDATION_PER_LIBRARY]


def statistics(corpus: DocstringCorpus) -> dict[str, object]:
    """What the corpus holds, ready to be printed or stored as JSON."""
    names = tuple(LIBRARIES)
    splits = {"train": corpus.train, "validation": corpus.validation}
    lengths = sorted(len(text.split()) for rows in splits.values() for _, text, _ in rows)
    first = {names[label]: text for label, text, _ in reversed(corpus.train)}
    return {
        "packages": dict(corpus.versions),
        "examples": {split: len(rows) for split, rows in splits.items()},
        "examples_per_class": {
            split: {name: sum(label == k for label, _, _ in rows) for k, name in enumerate(names)}
            for split, rows in splits.items()
        },
        "files": {split: len({file for _, _, file in rows}) for split, rows in splits.items()},
        "words_per_paragraph": {
            "mean": round(sum(lengths) / len(lengths), 1),
            **{f"p{q}": lengths[(len(lengths) - 1) * q // 100] for q in (5, 50, 95)},
        },
        "removed": dict(corpus.removed),
        "samples": {name: first[name] for name in names},
    }
