"""What `rankwise research check` does: every defect that code finds in a record, a project or one of their files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.shown import Summary
from rankwise.research.artefacts import Defect, Design, Hypothesis, Papers
from rankwise.research.checks import (
    check_configs,
    check_design,
    check_hypothesis,
    check_import,
    check_papers,
    check_record,
    check_review,
    in_order,
)
from rankwise.research.project import MAX_BYTES, Project, findings, hypothesis_file

PAPERS, DESIGN, CONFIGS = "papers.json", "design.json", "configs"
ONE_SEED = "configs.seed"
"""Where configs are told to have one seed; those of a plan have the plan's seeds."""
_LEVELS = {"error": "errors", "warning": "warnings", "note": "notes"}


def check(path: Path) -> Summary:
    """Every defect of a record, a project folder, an artefact (JSON), or a run config (YAML). Errors: `failed`.

    Raises:
        ConfigError: it is none of these, or cannot be read.
    """
    found = _project(Project(path)) if path.is_dir() else _file(path)
    return Summary(_text(path, found), _data(path, found), failed=any(one.level == "error" for one in found))


def _file(path: Path) -> tuple[Defect, ...]:
    if path.suffix.lower() in (".yaml", ".yml"):
        return check_configs({path.stem: _read(path)})
    if path.suffix.lower() == ".json" and (artefact := _artefact(path)) is not None:
        return artefact
    from rankwise.research.records import read_record

    return check_record(read_record(path))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(str(path), [Finding("", f"is larger than {MAX_BYTES:,} bytes")])
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(str(path), [Finding("", "no such file or folder")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Finding("", f"byte {error.start} is not UTF-8 text")]) from None
    except OSError as error:
        raise ConfigError(str(path), [Finding("", f"cannot be read: {error.strerror or error}")]) from None


def _artefact(path: Path) -> tuple[Defect, ...] | None:
    """Defects of a file of a project (with its envelope); None if it is none."""
    try:
        body = json.loads(_read(path))
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or "content" not in body or "kind" not in body:
        return None
    kinds: dict[str, Callable[[object], tuple[Defect, ...]]] = {
        "hypothesis": lambda content: check_hypothesis(Hypothesis.model_validate(content)),
        "papers": lambda content: check_papers(Papers.model_validate(content).papers),
        "design": lambda content: check_design(Design.model_validate(content)),
    }
    if (judge := kinds.get(str(body["kind"]))) is None:
        message = f"holds a `{body['kind']}`, which has no checks; allowed: {', '.join(kinds)}, a record, a run config"
        raise ConfigError(str(path), [Finding("kind", message)])
    try:
        return judge(body["content"])
    except ValidationError as error:
        raise ConfigError(str(path), list(findings(error, "content"))) from None


def _project(project: Project) -> tuple[Defect, ...]:
    """Defects of every artefact that a project has, under the names of its files."""
    papers = project.read(PAPERS, Papers).papers if project.has(PAPERS) else ()
    rounds = [project.read(hypothesis_file(number), Hypothesis) for number in range(project.rounds())]
    found = _under(PAPERS, check_papers(papers))
    for number, hypothesis in enumerate(rounds):
        defects = check_hypothesis(hypothesis, history=rounds[:number], papers=papers)
        found += _under(hypothesis_file(number), defects)
    design = project.read(DESIGN, Design) if project.has(DESIGN) else None
    if design is not None:
        found += _under(DESIGN, check_design(design, rounds[-1] if rounds else None, papers=papers))
    from rankwise.research.records_files import RECORD, imported_record

    if (record := imported_record(project)) is not None:
        found += _under(RECORD, check_import(record))
    configs = {file.stem: _read(file) for file in sorted(project.path(CONFIGS).glob("*.y*ml"))}
    of_configs = check_configs(configs, record) if configs else ()
    found += [one for one in of_configs if not (one.where == ONE_SEED and design is not None and design.seeds > 1)]
    from rankwise.research.design_subject import imported_review

    if (review := imported_review(project)) is not None:
        found += check_review(review, papers)
    if not papers and not rounds and not configs and review is None and design is None:
        message = "is no research project: it has no papers.json, hypothesis, design.json, configs or imported review"
        raise ConfigError(str(project.folder), [Finding("", message)])
    return in_order(found)


def _under(name: str, defects: Sequence[Defect]) -> list[Defect]:
    return [one.model_copy(update={"where": f"{name}: {one.where}".rstrip(": ")}) for one in defects]


def _text(path: Path, found: Sequence[Defect]) -> str:
    if not found:
        return f"{path}: no defects found"
    lines = [f"{path}: {_counts(found)}"]
    for level, title in _LEVELS.items():
        own = [one for one in found if one.level == level]
        if own:
            lines += ["", f"{title}:"]
        for one in own:
            numbers = f" [{', '.join(map(str, one.items))}]" if one.items else ""
            lines.append(f"  {one.rule}{numbers}  {one.where}")
            lines.append(f"      {one.message}")
    if any(one.items for one in found):
        lines += ["", "numbers: docs/defects.md"]
    return "\n".join(lines)


def _counts(found: Sequence[Defect]) -> str:
    counts = {title: sum(one.level == level for one in found) for level, title in _LEVELS.items()}
    return ", ".join(f"{count} {title if count != 1 else title[:-1]}" for title, count in counts.items() if count)


def _data(path: Path, found: Sequence[Defect]) -> dict[str, object]:
    counts = {title: sum(one.level == level for one in found) for level, title in _LEVELS.items()}
    numbers = sorted({item for one in found for item in one.items})
    return {"path": str(path), **counts, "items": numbers, "defects": [one.model_dump(mode="json") for one in found]}
