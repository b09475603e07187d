"""`results.json`: what a comparison found, in a documented form that other programs can rely on.

The models below are the definition; docs/results.md is checked against them. Standard JSON has no NaN, so a number
that is not one is null. Any change to the form raises `SCHEMA_VERSION`.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rankwise.errors import DataError, OutputError
from rankwise.experiments.records import RunRecord
from rankwise.experiments.statistics import Comparison

SCHEMA_VERSION = 1


def _null(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_null)]
"""A number, or null where there is none."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MetricResult(_Part):
    """A metric of one run."""

    value: Number = Field(description="the metric on the evaluation split")
    se: Number = Field(description="its standard error over the evaluation examples")
    n: int = Field(ge=0, description="evaluation examples")


class RunResult(_Part):
    """One completed run."""

    run_id: str = Field(description="hash of the canonical config and the seed; the key of the store's tables")
    method: str = Field(description="method name")
    task: str = Field(description="task name")
    model: str = Field(description="base model: embedded name, Hugging Face id or local folder")
    seed: int = Field(description="seed of the run; the same seed pairs runs of different methods")
    budget: str | None = Field(description="the budget as given; null for full fine-tuning")
    parameters: int = Field(ge=0, description="adapter parameters in the checkpoint; all weights for full fine-tuning")
    peak_parameters: int = Field(ge=0, description="the most of them that were trained at once")
    metrics: dict[str, MetricResult] = Field(description="metric name to value, the primary metric first")
    train_seconds: Number = Field(description="wall-clock of training without evaluation, seconds")
    rank_pattern: dict[str, int] = Field(description="module name to rank; empty for full fine-tuning")
    costs: dict[str, Number] = Field(
        default_factory=dict,
        description="what was counted when training was done: `inference_flops` per evaluation text as it would be "
        "served, `active_share` and `total_rank` of the adapter that a text uses, `peak_memory_bytes` of training, "
        "`premise` if asked for",
    )
    checkpoint: str | None = Field(description="folder of the checkpoint, relative to the folder of this file")


class ComparisonResult(_Part):
    """One method against the reference method, over the seeds that both ran with."""

    arm: str = Field(description="method name")
    reference: str = Field(description="name of the method it is compared to")
    task: str = Field(description="task name")
    metric: str = Field(description="metric name")
    difference: Number = Field(description="mean over the paired seeds of arm minus reference, in units of the metric")
    interval: tuple[Number, Number] = Field(description="[low, high] of the difference, in units of the metric")
    confidence: float = Field(gt=0, lt=1, description="confidence of the interval, as a fraction")
    n: int = Field(ge=1, description="paired seeds")
    examples: int = Field(ge=2, description="evaluation examples, the same ones for every run")
    note: str = Field(description="what must be known to read the interval; empty if nothing")


class Results(_Part):
    """The whole file."""

    schema_version: Literal[1] = Field(description="version of this form")
    runs: tuple[RunResult, ...] = Field(description="the completed runs")
    comparisons: tuple[ComparisonResult, ...] = Field(description="each method against the reference, per metric")
    machine: dict[str, Any] = Field(description="processor, cores, memory, accelerator: whatever was recorded")
    versions: dict[str, str] = Field(description="package name to version")
    command: str = Field(description="the command that made this file")


def build_results(
    records: Sequence[RunRecord], comparisons: Sequence[Comparison], meta: Mapping[str, object]
) -> dict[str, Any]:
    """The content of `results.json`: the completed ones of `records`, the comparisons, and where it all ran.

    Args:
        records: runs; unfinished and failed ones are left out.
        comparisons: what `statistics.compare_arms` found.
        meta: `machine` (dict), `versions` (package to version) and `command` (one string).

    Raises:
        DataError: `meta` lacks one of these, or a value has the wrong type.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "runs": [_run(record) for record in records if record.status == "completed"],
        "comparisons": [_comparison(comparison) for comparison in comparisons],
        **meta,
    }
    return check_results(content, "results").model_dump(mode="json")


def check_results(content: object, source: str) -> Results:
    """The content of a `results.json`, checked field by field; `source` is named in errors.

    Raises:
        DataError: a field is missing, unknown or of the wrong type; every problem is listed.
    """
    version = content.get("schema_version") if isinstance(content, Mapping) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(
            f"{source}: schema_version {version} is newer than this Rankwise reads ({SCHEMA_VERSION}); upgrade"
        )
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        problems = [f"  {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise DataError("\n".join([f"{source}: not a results file:", *problems])) from None


def write_results(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write `results.json` in one step: the file is the old one or the new one, never half of it.

    Raises:
        DataError: the content is not what `build_results` makes.
        OutputError: the file cannot be written.
    """
    content = check_results(content, str(path)).model_dump(mode="json")
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    return write_atomically(Path(path), (text + "\n").encode())


def read_results(path: str | Path) -> dict[str, Any]:
    """The checked content of a `results.json`.

    Raises:
        DataError: it is not there, not readable or not in the documented form.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON ({error})"
        raise DataError(f"{path}: the results cannot be read: {reason}") from error
    return check_results(content, str(path)).model_dump(mode="json")


def write_atomically(path: Path, content: bytes) -> Path:
    """Put `content` at `path` by renaming a finished temporary file beside it; makes the folders.

    Raises:
        OutputError: the folder or file cannot be written, or the disk is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot be written: {reason}. Free space or choose a folder you can write"
        ) from error
    return path


def describe_fields() -> str:
    """The fields of the file as Markdown tables, one per level; docs/results.md holds this text."""
    parts = []
    for title, model in (
        ("Top level", Results),
        ("Each of `runs`", RunResult),
        ("Each of `metrics`", MetricResult),
        ("Each of `comparisons`", ComparisonResult),
    ):
        fields = model.model_json_schema()["properties"].items()
        rows = [f"| `{name}` | {_type_name(field)} | {field['description']} |" for name, field in fields]
        parts.append("\n".join([f"### {title}", "", "| field | type | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _type_name(field: Mapping[str, Any]) -> str:
    """`number or null` and the like, from a field's JSON schema."""
    if "anyOf" in field:
        return " or ".join(_type_name(option) for option in field["anyOf"])
    return str(field["type"])


def _run(record: RunRecord) -> dict[str, object]:
    names = [name for name in RunResult.model_fields if name != "metrics"]
    metrics = {name: {"value": m.value, "se": m.se, "n": m.n} for name, m in record.metrics.items()}
    return {**{name: getattr(record, name) for name in names}, "metrics": metrics}


def _comparison(comparison: Comparison) -> dict[str, object]:
    names = [name for name in ComparisonResult.model_fields if name != "interval"]
    interval = (comparison.low, comparison.high)
    return {**{name: getattr(comparison, name) for name in names}, "interval": interval}
