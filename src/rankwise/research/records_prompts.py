"""Records of a prompt with its answer: a proposal (000), run configs (001), a refinement (002)."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.import_record import run_configs_of
from rankwise.research.artefacts import Hypothesis, Paper, Score
from rankwise.research.imported import Imported, RecordedDesign, RecordedRun, Resource, Round
from rankwise.research.papers_entries import is_paper, paper_from, with_own_ids
from rankwise.research.parse import HYPOTHESIS, Parsed, fields, renamed, text_of
from rankwise.research.project import findings
from rankwise.research.records_text import Document

_PARTS = ("title", "open_problems", "method", "experimental_setup", "primary_metric", "experimental_code")
_ENDS = ("expected_result", "expected_conclusion", "changes")
_SCORE = re.compile(r"\bscore\W{0,8}(?:is |of )?(10|[1-9])\b(?:\s*/\s*10)?|\b(10|[1-9])\s*/\s*10\b", re.I)
_TOPIC = re.compile(r"^[^\n]{0,200}\b(?:topic|theme)\b[^\n]{0,200}:[ \t]*+\n+[ \t]*+(\S[^\n]*)", re.M | re.I)
_SAID = re.compile(
    r"^[ \t#*]*(novelty|significance)(?:[ \t]+\w+){0,2}[ \t*]*:(.*?)"
    r"(?=^[ \t#*]*(?:novelty|significance|hypothesis)\b[^\n]{0,30}:|\Z)",
    re.M | re.S | re.I,
)
_RUN = re.compile(r"^[ \t]*[-*]?[ \t]*Run[ _]?ID[ \t]*:[ \t]*(\S+)[ \t]*$((?:\n[ \t]+\w[^\n]*)*)", re.M | re.I)
_ROWS = re.compile(r"name:\s*(\w+)\s+(?:num_bytes:\s*\d{1,20}\s+)?num_examples:\s*(\d{1,15})\b")
_COLUMN = re.compile(r"-\s*name:\s*(\S+)\s+(?:dtype|sequence|list|struct|class_label)\b")


def is_configs(document: Document) -> bool:
    """Does the answer hold run configs?"""
    return any("run_config" in document.text[one.start : one.end] for one in document.answers)


def is_hypothesis(value: Mapping[str, Any]) -> bool:
    """Does an object look like a hypothesis?"""
    parts = renamed(value, HYPOTHESIS).keys()
    return {"open_problems", "method"} <= parts or {"method", "expected_result"} <= parts


def read_proposal(document: Document) -> Imported:
    """A record whose answer is a hypothesis: the first one, or the refinement of others.

    Raises:
        ConfigError: a paper or a hypothesis in it is incomplete.
    """
    found = ((one, _inner(one.value)) for one in reversed(document.answers))
    answer, value = next(((one, inner) for one, inner in found if inner), (None, None))
    if answer is None or value is None:
        raise ConfigError(document.source, [Finding("answer", _no_hypothesis(document.answers))])
    earlier = _earlier(document)
    rounds = (*earlier, Round(_hypothesis(value, document.source, "answer")))
    return Imported(
        kind="refinement" if earlier else "hypothesis",
        source=document.source,
        model=document.model,
        topic=_topic(document),
        instructions=document.instructions,
        papers=_papers(document),
        rounds=rounds,
        answer_form=answer.form,
    )


def read_configs(document: Document) -> Imported:
    """A record whose answer is run configs; its prompt holds hypothesis and design.

    Raises:
        ConfigError: as `import_record.run_configs_of`; a hypothesis in it is incomplete.
    """
    configs = run_configs_of((one.value for one in document.answers), document.source)
    said = document.section("hypothesis")
    inside = [
        one.parsed.value for one in document.asked if one.section == "hypothesis" and is_hypothesis(one.parsed.value)
    ]
    value = inside[0] if inside else fields(said[max(0, said.find("open_problems=")) :])
    rounds = (Round(_hypothesis(value, document.source, "hypothesis")),) if value else ()
    design = _design(document)
    answer = next(one for one in document.answers if "run_config" in document.text[one.start : one.end])
    return Imported(
        kind="configs",
        source=document.source,
        model=document.model,
        topic=_topic(document),
        instructions=document.instructions,
        papers=_papers(document),
        rounds=rounds,
        design_text="\n\n".join(filter(None, (document.section("design"), document.section("environment")))),
        run_names=tuple(run.id for run in design.runs) or tuple(configs),
        configs=configs,
        answer_form=answer.form,
        design=design,
    )


def _inner(value: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The hypothesis that an object is, or that it holds under a name such as `answer`."""
    if is_hypothesis(value):
        return value
    held = [inner for inner in value.values() if isinstance(inner, dict)]
    return _inner(held[0]) if len(held) == 1 else None


def _no_hypothesis(answers: tuple[Parsed, ...]) -> str:
    seen = "; ".join(", ".join(map(str, one.value))[:120] for one in answers[:3]) or "no object at all"
    return f"no hypothesis (an object with open_problems, method, experimental_setup, expected_result); there is {seen}"


def _papers(document: Document) -> tuple[Paper, ...]:
    papers: list[Paper] = []
    wrong: list[Finding] = []
    listed = [one for one in document.asked if one.section in ("papers", "") and is_paper(one.parsed.value)]
    listed += [one for one in document.asked if one not in listed and is_paper(one.parsed.value)]
    for number, one in enumerate(sorted(listed, key=lambda one: one.parsed.start)):
        paper, problems = paper_from(one.parsed.value, document.source, f"papers[{number}]")
        wrong += problems
        papers += [paper] if paper else []
    if wrong:
        raise ConfigError(document.source, wrong)
    return with_own_ids(papers)


def _earlier(document: Document) -> tuple[Round, ...]:
    """The rounds before the answer, oldest first: the history, then the current hypothesis with its evaluation."""
    there = [one for one in document.asked if is_hypothesis(one.parsed.value)]
    history = [one.parsed for one in there if one.section == "history"]
    rounds = []
    for number, parsed in enumerate(history):
        inside = document.at(parsed.start)
        after = history[number + 1].start if number + 1 < len(history) else (inside or document.sections[-1]).end
        said = {
            match[1].lower(): match[2].strip() for match in _SAID.finditer(document.bare[parsed.end : after] + "\n")
        }
        value = _hypothesis(parsed.value, document.source, f"history[{number}]")
        rounds.append(_round(value, said.get("novelty", ""), said.get("significance", "")))
    for one in there:
        if one.section != "history":
            value = _hypothesis(one.parsed.value, document.source, "current hypothesis")
            rounds.append(_round(value, document.section("novelty"), document.section("significance")))
    return tuple(rounds)


def _round(hypothesis: Hypothesis, novelty: str, significance: str) -> Round:
    return Round(hypothesis, _score(novelty), _score(significance), novelty, significance)


def _score(text: str) -> Score | None:
    found = _SCORE.search(text)
    return Score(score=int(found[1] or found[2]), reason=text_of(text)) if found else None


def _hypothesis(value: Mapping[str, Any], source: str, where: str) -> Hypothesis:
    parts = renamed(value, HYPOTHESIS)
    said: dict[str, Any] = {name: text_of(parts.get(name)) for name in (*_PARTS, *_ENDS)}
    said["title"] = said["title"] or _title(said["method"])
    try:
        return Hypothesis.model_validate(said)
    except ValidationError as error:
        raise ConfigError(source, list(findings(error, where))) from None


def _title(method: str) -> str:
    """Records head the method with its name; a sentence or the first of some steps is no name."""
    line = method.partition("\n")[0].strip().rstrip(":")
    plain = 0 < len(line) <= 120 and not re.match(r"(?:\d+[.)]|[-*•])\s", line) and not line.endswith((".", ";"))
    return line if plain else ""


def _topic(document: Document) -> str:
    if said := document.section("topic"):
        return said
    found = _TOPIC.search(document.bare[: document.prompt_end])
    return found[1].strip() if found else ""


def _design(document: Document) -> RecordedDesign:
    said = document.section("design")
    start = re.search(r"(?<!\w)\w{1,60}=", said)
    parts = fields(said[start.start() :]) if start else {}
    search = parts.get("hyperparameters_to_search")
    return RecordedDesign(
        summary=text_of(parts.get("experiment_summary")),
        proposed_method=text_of(parts.get("proposed_method")) or document.section("method"),
        comparative_methods=_texts(parts.get("comparative_methods")),
        metrics=_texts(parts.get("evaluation_metrics")),
        models=_texts(parts.get("models_to_use")),
        datasets=_texts(parts.get("datasets_to_use")),
        search={str(name): text_of(span) for name, span in search.items()} if isinstance(search, dict) else {},
        resources=_resources(said),
        runs=_runs(document.section("runs")),
        environment=document.section("environment"),
    )


def _texts(value: object) -> tuple[str, ...]:
    return tuple(text_of(item) for item in value) if isinstance(value, list) else ((text_of(value),) if value else ())


def _runs(text: str) -> tuple[RecordedRun, ...]:
    runs = []
    for match in _RUN.finditer(text):
        lines = (line.partition(":") for line in match[2].splitlines())
        said = {name.strip().lower(): value.strip() for name, _, value in lines}
        runs.append(RecordedRun(match[1], said.get("method", ""), said.get("model", ""), said.get("dataset", "")))
    return tuple(runs)


def _resources(text: str) -> tuple[Resource, ...]:
    """The hub's models and datasets among the resources of a design: each begins with its `id=`."""
    starts = list(
        re.finditer(
            r"(?P<list>\b(?:models|datasets)=\[)?(?<!\w)\w{0,60}Resource\(id=(?P<quote>['\"])(?P<id>[^'\"]{1,200})(?P=quote)",
            text,
        )
    )
    made, kind = [], "model"
    for number, match in enumerate(starts):
        kind = (match["list"] or kind).partition("=")[0].rstrip("s")
        end = starts[number + 1].start() if number + 1 < len(starts) else len(text)
        card = text_of(fields(text[match.start("id") - 4 : end]).get("readme"))
        rows = {split: int(count) for split, count in _ROWS.findall(card)}
        made.append(Resource(kind, match["id"], rows, tuple(dict.fromkeys(_COLUMN.findall(card))), card))
    return tuple(made)
