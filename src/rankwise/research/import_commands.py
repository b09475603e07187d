"""What `rankwise research import` does: a record of another pipeline becomes a project that goes on from there."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from rankwise import __version__
from rankwise.errors import OutputError
from rankwise.experiments.import_record import safe_name
from rankwise.experiments.shown import Summary
from rankwise.research.artefacts import Artefact
from rankwise.research.imported import Imported
from rankwise.research.papers import FILE as PAPERS
from rankwise.research.papers import merge
from rankwise.research.project import Made, Project, Settings, hypothesis_file
from rankwise.research.records import read_record
from rankwise.research.records_files import IMPORTED_REVIEW, RECORD, RecordFile

PROJECT = "project.json"
BEGUN = (PROJECT, PAPERS, RECORD, IMPORTED_REVIEW, hypothesis_file(0), "design.json", "plan.yaml")
NEXT = {
    "hypothesis": "rankwise research design",
    "configs": "rankwise research check",
    "refinement": "rankwise research refine",
    "review": "rankwise research design",
}


def import_record(record: Path, folder: Path) -> Summary:
    """Write everything that a record holds into a new project; the same record again writes only what is missing.

    Raises:
        ConfigError: as `records.read_record`.
        OutputError: the folder holds another project, two run configs have one file name, or it cannot be written.
    """
    imported = read_record(record)
    digest = hashlib.sha256(record.read_bytes()).hexdigest()
    project = Project(folder)
    files = list(_files(imported, digest))  # all of it or nothing
    written = []
    made = Made(by="import", model=imported.model[:200] or None, version=__version__)
    with project.locked():
        again = _same(project, digest, record)
        for name, content in files:
            if not project.has(name):
                if isinstance(content, str):
                    project.write_text(name, content)
                else:
                    project.write(name, content, made)
                written.append(name)
    return _summary(imported, project, written, again)


def _same(project: Project, digest: str, record: Path) -> bool:
    """Is this record in the project already?"""
    if project.has(RECORD):
        if project.read(RECORD, RecordFile).sha256 == digest:
            return True
        raise OutputError(f"{project.folder} was imported from another record than {record}; choose another folder")
    there = [name for name in BEGUN if project.has(name)]
    if there:
        raise OutputError(f"{project.folder} holds a project already ({', '.join(there)}); choose another folder")
    return False


def _files(imported: Imported, digest: str) -> Iterator[tuple[str, Artefact | str]]:
    """Files by name. The record comes first, so that a killed import is known as the same one; project.json comes last,
    so that nobody goes on with half of it."""
    yield RECORD, RecordFile(sha256=digest, record=imported)
    if imported.papers:
        yield PAPERS, merge(imported.papers)
    for number, one in enumerate(imported.rounds):
        yield hypothesis_file(number), one.hypothesis
    taken: dict[str, str] = {}
    for run_id, text in imported.configs.items():
        name = f"configs/{safe_name(run_id)}.yaml"
        if taken.setdefault(name, run_id) != run_id:
            raise OutputError(f"the runs {taken[name]!r} and {run_id!r} would both be written to {name}")
        yield name, text
    if imported.review is not None:
        yield IMPORTED_REVIEW, imported.review
    yield PROJECT, settings_of(imported)


def settings_of(imported: Imported) -> Settings:
    """What the project is asked to do: the record's topic (or what its hypothesis is about), its style, and room for at
    least one more round."""
    topic = imported.topic
    if not topic and imported.rounds:
        last = imported.rounds[-1].hypothesis
        topic = last.title or last.open_problems
    style = "minimal" if "minimal" in imported.instructions.casefold() else "free"
    return Settings(
        topic=topic[:20_000] or imported.source,
        style="minimal" if style == "minimal" else "free",
        rounds=max(2, len(imported.rounds)),
    )


def _summary(imported: Imported, project: Project, written: list[str], again: bool) -> Summary:
    papers = len(merge(imported.papers).papers)
    same = len(imported.papers) - papers
    counts = {
        "papers": f"{papers}" + (f" ({same} duplicates merged)" if same else ""),
        "rounds": ", ".join(one.hypothesis.title or f"round {n}" for n, one in enumerate(imported.rounds)),
        "run configs": ", ".join(imported.configs),
        "review of": imported.review.title if imported.review else "",
        "answer": f"by {imported.model or 'an unnamed model'}"
        + (f", as {imported.answer_form}" if imported.answer_form else ""),
    }
    lines = [
        f"{'imported already' if again else 'imported'}: a record of the kind `{imported.kind}` ({imported.source})"
    ]
    lines += [f"  {name:<12} {said}" for name, said in counts.items() if said and said != "0"]
    lines += [f"  wrote {name}" for name in written] or ["  everything was there already"]
    lines += ["", f"next: {NEXT[imported.kind]} {project.folder}; `rankwise research status` shows every stage"]
    data = {
        "kind": imported.kind,
        "source": imported.source,
        "model": imported.model,
        "papers": papers,
        "duplicates": same,
        "rounds": len(imported.rounds),
        "configs": list(imported.configs),
        "written": written,
    }
    return Summary("\n".join(lines), data)
