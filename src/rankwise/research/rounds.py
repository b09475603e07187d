"""The rounds of a project: each hypothesis with its evaluation, and how they are told to a model."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rankwise.errors import ConfigError, Finding
from rankwise.research.artefacts import MAX_TEXT, Artefact, Defect, Evaluation, Hypothesis, Opinion, Papers, Score
from rankwise.research.project import Project, Settings, evaluation_file, findings, hypothesis_file
from rankwise.research.prompts import quote
from rankwise.research.records_files import imported_record

PROJECT_FILE = "project.json"
PAPERS_FILE = "papers.json"
PAPERS_CHARACTERS = 100_000
"""Characters of all papers together in one prompt."""
HISTORY_CHARACTERS = 60_000
"""Characters of all earlier rounds together in one prompt; old rounds are shortened first."""
FIELD_CHARACTERS = 30_000
"""Characters of one field of an artefact in one prompt: whatever a model wrote, the next prompt has room for it."""
ITEM_CHARACTERS = 3_000
"""Characters of one claim or the like, where a field does not fit."""
SHORT = ("title", "method", "expected_result", "changes")
"""What is kept of a round when there is no room for all of it."""
SCORES = ("novelty", "significance", "feasibility", "consistency")


@dataclass(frozen=True)
class Round:
    """A hypothesis and what was found about it."""

    number: int
    hypothesis: Hypothesis
    evaluation: Evaluation | None


def read_settings(project: Project) -> Settings:
    """What the project is asked to do.

    Raises:
        ConfigError: there is no project in the folder, or its file is wrong.
    """
    if not project.has(PROJECT_FILE):
        raise ConfigError(
            str(project.folder),
            [Finding("", f"is no research project (no {PROJECT_FILE}); `rankwise research hypothesize` begins one")],
        )
    return project.read(PROJECT_FILE, Settings)


def new_settings(**given: object) -> Settings:
    """What a new project is asked to do; None stands for the default.

    Raises:
        ConfigError: a value is none that is allowed, such as an empty topic; every finding.
    """
    try:
        return Settings.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("the new project", list(findings(error))) from None


def read_papers(project: Project) -> Papers:
    """The project's papers; none, if it has no file of them.

    Raises:
        ConfigError: the file is wrong.
    """
    return project.read(PAPERS_FILE, Papers) if project.has(PAPERS_FILE) else Papers()


def read_rounds(project: Project) -> tuple[Round, ...]:
    """Every round, the first one first.

    Raises:
        ConfigError: a file is wrong.
    """
    found = []
    for number in range(project.rounds()):
        name = evaluation_file(number)
        evaluation = project.read(name, Evaluation) if project.has(name) else None
        found.append(Round(number, project.read(hypothesis_file(number), Hypothesis), evaluation))
    return tuple(found)


def read_remarks(project: Project, number: int) -> str:
    """What the evaluator of an imported record wrote about a round; empty if the project was not imported.

    Raises:
        ConfigError: the file of the record is wrong.
    """
    record = imported_record(project)
    if record is None or number >= len(record.rounds):
        return ""
    past = record.rounds[number]
    parts = [_remark("Novelty", past.novelty, past.novelty_text)]
    parts += [_remark("Significance", past.significance, past.significance_text)]
    return "\n\n".join(filter(None, parts))[:MAX_TEXT]


def _remark(name: str, score: Score | None, text: str) -> str:
    said = [f"{score.score} of 10. {score.reason}"] if score else []
    said += [text.strip()] if text.strip() else []
    return f"{name}: {' '.join(said)}" if said else ""


def errors(evaluation: Evaluation) -> int:
    """How many errors code found."""
    return sum(defect.level == "error" for defect in evaluation.defects)


def scores(opinion: Opinion) -> dict[str, Score]:
    """The marks by name."""
    return {name: getattr(opinion, name) for name in SCORES}


def total(evaluation: Evaluation) -> int | None:
    """Sum of the scores, 4 to 40; none: no model was asked."""
    opinion = evaluation.opinion
    return sum(score.score for score in scores(opinion).values()) if opinion else None


def told_papers(papers: Papers) -> str:
    """The papers for a prompt, as quoted data."""
    from rankwise.research.papers import quoted

    return quoted(papers, PAPERS_CHARACTERS) if papers.papers else "(none)"


def told(label: str, content: Artefact, only: tuple[str, ...] = ()) -> str:
    """An artefact for a prompt, as quoted data; empty fields are left out, overlong ones cut, and it is said."""
    values = {key: value for key, value in content.model_dump(mode="json").items() if value not in ("", [], None)}
    if only:
        values = {key: value for key, value in values.items() if key in only}
    values = {key: _fitting(value, FIELD_CHARACTERS) for key, value in values.items()}
    return quote(label, json.dumps(values, indent=1, ensure_ascii=False))


def told_defects(defects: tuple[Defect, ...], *, known_by: bool = False) -> str:
    """What code found, for a prompt. Quoted: the messages hold words of the hypothesis.

    `known_by` leaves the findings out: a recorded conversation is known again when the checks say more than they did.
    """
    if known_by:
        return "(findings)"
    if not defects:
        return "(nothing)"
    lines = [f"- {defect.level}, {defect.where or 'as a whole'}: {defect.message}" for defect in defects]
    return quote("findings of code", "\n".join(lines))


def told_evaluation(number: int, evaluation: Evaluation | None, *, known_by: bool = False) -> str:
    """An evaluation for a prompt; `known_by` as in `told_defects`."""
    if evaluation is None:
        return "(not evaluated)"
    opinion = told(f"opinion on round {number}", evaluation.opinion) if evaluation.opinion else "(no model was asked)"
    remarks = quote(f"remarks on round {number}", evaluation.remarks) if evaluation.remarks else ""
    said = f"\n\nRemarks of the record that it was imported from:\n{remarks}" if remarks else ""
    return f"Found by code:\n{told_defects(evaluation.defects, known_by=known_by)}\n\nOpinion:\n{opinion}{said}"


def told_history(rounds: tuple[Round, ...], *, known_by: bool = False) -> str:
    """Earlier rounds for a prompt, the latest whole, older ones shortened as the room runs out; none is left out.

    `known_by` as in `told_defects`.
    """
    parts: list[str] = []
    room = HISTORY_CHARACTERS
    for past in reversed(rounds):
        label = f"hypothesis of round {past.number}"
        judged = told_evaluation(past.number, past.evaluation, known_by=known_by)
        text = f"{told(label, past.hypothesis)}\n\n{judged}"
        if len(text) > room:
            text = told(f"{label}, shortened", _short(past.hypothesis), SHORT)
        room -= len(text)
        parts.append(f"## Round {past.number}\n\n{text}")
    return "\n\n".join(reversed(parts)) or "(this is the first)"


def _short(hypothesis: Hypothesis) -> Hypothesis:
    """Its main fields, each at most 600 characters."""
    return hypothesis.model_copy(update={name: _cut(getattr(hypothesis, name)) for name in SHORT})


def _fitting(value: Any, most: int) -> Any:  # noqa: ANN401 - any JSON
    """A value in about so many characters: texts cut, lists ended early, and it is said."""
    if isinstance(value, str):
        return _cut(value, most)
    if isinstance(value, dict):
        return {key: _fitting(one, max(600, most // len(value))) for key, one in value.items()}
    if not isinstance(value, list) or len(json.dumps(value, ensure_ascii=False)) <= most:
        return value
    kept: list[Any] = []
    for one in value:
        short = _fitting(one, ITEM_CHARACTERS)
        most -= len(json.dumps(short, ensure_ascii=False))
        if most < 0:
            break
        kept.append(short)
    return [*kept, f"[… {len(value) - len(kept)} more]"] if len(kept) < len(value) else kept


def _cut(text: str, most: int = 600) -> str:
    return text if len(text) <= most else f"{text[:most]} [… {len(text) - most} more characters]"
