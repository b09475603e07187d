"""Prior papers: read from files, merged where they are the same, quoted in prompts.

A paper's summary may come from a record, a file, a service or a language model; in every case it is data that others
wrote, and what it says is not believed, only cited.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rankwise.errors import ConfigError, Finding
from rankwise.research.artefacts import Paper, Papers
from rankwise.research.papers_entries import is_paper, paper_from, with_own_ids
from rankwise.research.papers_files import SUFFIXES, paper_of, read_source
from rankwise.research.papers_merge import merge
from rankwise.research.papers_quoted import entry, quoted
from rankwise.research.parse import objects, unclosed
from rankwise.research.project import MAX_BYTES, Project, findings
from rankwise.research.records_text import read_text

__all__ = ["FILE", "READ", "entry", "files_in", "in_own_words", "merge", "project_papers", "quoted", "read_papers"]

_LOG = logging.getLogger(__name__)

FILE = "papers.json"
"""Name of the file in a project."""
MOST = 5_000
"""Papers in one file."""
READ = (".json", ".jsonl", ".ndjson", *SUFFIXES)
"""Ends of names of files that papers are read from."""


def read_papers(path: str | Path) -> Papers:
    """The papers of a file, as they stand, duplicates too.

    The file is a project's papers.json, JSON objects one after the other, a list, one object per line, one object, a
    record with its papers, or one paper's own words (PDF, text, Markdown); or a folder of such files.

    Raises:
        ConfigError: the file cannot be read, holds no papers, ends within one, or some are wrong (every finding).
        MissingPackageError: a PDF, and no reader of PDF is installed.
    """
    path = Path(path)
    if path.is_dir():
        return Papers(papers=with_own_ids(one for file in files_in(path) for one in read_papers(file).papers))
    if in_own_words(path):
        source = read_source(path)
        if source.unread:
            _LOG.warning("%s: the last %s are not read", path, source.unread)
        return Papers(papers=(paper_of(source),))
    text = read_text(path)
    own = _own(path, text)
    if own is not None:
        return own
    position = unclosed(text)
    if position is not None:
        line = text.count("\n", 0, position) + 1
        raise _problem(
            path, f"the object that begins at line {line:,} is never closed; the rest of the file is missing"
        )
    papers: list[Paper] = []
    wrong: list[Finding] = []
    for number, value in enumerate(_entries(text)):
        paper, problems = paper_from(value, path.name, f"papers[{number}]")
        wrong += problems
        papers += [paper] if paper else []
    if wrong:
        raise ConfigError(str(path), wrong)
    if not papers:
        raise _problem(
            path, "holds no papers: expected are objects with Title, Main Contributions, Methodology, … (JSON), or text"
        )
    if len(papers) > MOST:
        raise _problem(path, f"holds {len(papers):,} papers; at most {MOST:,} are read")
    return Papers(papers=with_own_ids(papers))


def files_in(folder: Path) -> list[Path]:
    """The files of a folder that papers are read from, in order of their names.

    Raises:
        ConfigError: there are none.
    """
    files = sorted(one for one in folder.iterdir() if one.is_file() and one.suffix.lower() in READ)
    if not files:
        raise _problem(folder, f"no file in this folder ends in {', '.join(READ)}")
    return files


def in_own_words(path: Path) -> bool:
    """Is a file one paper's own words (PDF, text, Markdown), and not a list of papers?"""
    suffix = path.suffix.lower()
    if suffix == ".pdf" or suffix not in SUFFIXES:
        return suffix == ".pdf"
    text = read_text(path)
    return not text.lstrip().startswith(("{", "[")) and next(_entries(text), None) is None


def project_papers(project: Project) -> Papers:
    """The papers of a project; none if it has no such file.

    Raises:
        ConfigError: the file is there and wrong.
    """
    return project.read(FILE, Papers) if project.has(FILE) else Papers()


def _entries(text: str) -> Iterator[Mapping[str, Any]]:
    for parsed in objects(text, limit_bytes=MAX_BYTES):
        listed = parsed.value.get("papers")
        inside = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        yield from inside or ([parsed.value] if is_paper(parsed.value) else [])


def _own(path: Path, text: str) -> Papers | None:
    """Our own papers.json, by its envelope."""
    if '"kind"' not in text[:200]:
        return None
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or body.get("kind") != "papers" or "content" not in body:
        return None
    try:
        return Papers.model_validate(body["content"])
    except ValidationError as error:
        raise ConfigError(str(path), list(findings(error))) from None


def _problem(path: Path, message: str) -> ConfigError:
    return ConfigError(str(path), [Finding("", message)])
