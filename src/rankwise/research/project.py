"""A research project: a folder in which every stage reads files and writes files.

    project.json          topic and settings
    papers.json           prior papers
    hypothesis/000.json   the first proposal, 001 its refinement, …
    evaluation/000.json   checks and opinion of each round
    choice.json           the round that is taken, and why
    design.json           arms, data, metrics, claims
    plan.yaml, configs/   what `rankwise compare` runs
    run.json              the profile that is run, and why
    runs/PROFILE/         the plan's run folder
    verdicts.json         a verdict on every claim
    review.json           the review; settle.yaml and settle-premise.yaml are plans of what would settle it
    plugins.json          methods of the user's own, copied to plugins/
    report.html           all of it as one page
    calls.jsonl           every call of a language model

Each JSON file holds an envelope: what it is, how it was made and from which files (with their digests), and the
content. A stage is done if its file is there; a killed stage leaves none, because files are written whole or not at
all. A file made by hand, or edited, counts: its digest is what the next stages record.
"""

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from rankwise.errors import ConfigError, Finding, OutputError
from rankwise.experiments.processes import is_first
from rankwise.experiments.sweep_locks import locked
from rankwise.research.artefacts import Artefact, Style

MAX_BYTES = 50_000_000
Content = TypeVar("Content", bound=Artefact)


class Made(Artefact):
    """Where an artefact comes from."""

    by: Literal["model", "import", "code", "hand", "answer", "cassette"] = Field(
        description="a language model, a record, our code, a person, a pasted answer, a replayed conversation"
    )
    model: str | None = Field(default=None, description="name of the language model")
    prompt: str | None = Field(default=None, description="SHA-256 of the prompt")
    inputs: dict[str, str] = Field(default_factory=dict, description="file in the project to its SHA-256")
    at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    version: str = Field(default="", description="version of Rankwise")


class Settings(Artefact):
    """What a project is asked to do."""

    topic: str = Field(min_length=1, max_length=20_000, description="research topic")
    style: Style = "minimal"
    rounds: int = Field(default=2, ge=0, le=50, description="refinements after the first proposal")
    budget_minutes: float = Field(default=30.0, gt=0, description="how long the runs may take on this machine")
    base_model: str = Field(default="minilm", description="base model, if the design names none that is here")


class Project:
    """The folder, and safe ways to read and write its files."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the project: one command writes at a time, others wait and say so; one that dies lets go of it.

        Neither the lock nor a folder that was made for it and stays empty is left behind.

        Raises:
            OutputError: the folder cannot be written.
        """
        if not is_first():  # of what torchrun started, the first process holds it for all
            yield
            return
        with locked(self.folder, "", busy=self._say_busy, tidy=True):
            yield

    def _say_busy(self) -> None:
        print(f"rankwise: another command works on {self.folder}; this one waits for it", file=sys.stderr)

    def path(self, name: str) -> Path:
        """A file of the project by its name relative to the folder.

        Raises:
            OutputError: the name leads out of the folder.
        """
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise OutputError(f"{name!r} leads out of the project folder {self.folder}")
        return path

    def has(self, name: str) -> bool:
        """Is the file there?"""
        return self.path(name).is_file()

    def digest(self, name: str) -> str:
        """SHA-256 of a file. Of an artefact the time at which it was made does not count: made again, it is equal."""
        content = self.path(name).read_bytes()
        try:
            body = json.loads(content)
            body["made"].pop("at", None)
            content = json.dumps(body, sort_keys=True).encode()
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            pass  # not an artefact: its bytes are what it is
        return hashlib.sha256(content).hexdigest()

    def inputs(self, *names: str) -> dict[str, str]:
        """Digests of the files that are there, for `Made.inputs`."""
        return {name: self.digest(name) for name in names if self.has(name)}

    def write(self, name: str, content: Artefact, made: Made, *, again: bool = False) -> Path:
        """Write an artefact with its envelope; whole or not at all.

        Raises:
            OutputError: the file is there (and `again` is not said), or cannot be written.
        """
        kind = type(content).__name__.lower()
        body = {"kind": kind, "form": 1, "made": made.model_dump(), "content": content.model_dump(mode="json")}
        return self.write_text(name, json.dumps(body, indent=2, ensure_ascii=False) + "\n", again=again)

    def write_text(self, name: str, text: str, *, again: bool = False) -> Path:
        """Write a text file; whole or not at all.

        Raises:
            OutputError: the file is there (and `again` is not said), or cannot be written.
        """
        path = self.path(name)
        if path.exists() and not again:
            raise OutputError(f"{path} exists; remove it to make it again")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            try:
                with temporary.open("x", encoding="utf-8") as file:
                    file.write(text.encode("utf-8", "replace").decode("utf-8"))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        return path

    def read(self, name: str, kind: type[Content]) -> Content:
        """The content of an artefact.

        Raises:
            ConfigError: no such file, not JSON, another kind of artefact, or content that is wrong (every finding).
        """
        body = self._body(name)
        try:
            return kind.model_validate(body["content"])
        except ValidationError as error:
            raise ConfigError(str(self.path(name)), list(findings(error))) from None

    def made(self, name: str) -> Made:
        """How an artefact was made.

        Raises:
            ConfigError: as `read`.
        """
        try:
            return Made.model_validate(self._body(name).get("made", {}))
        except ValidationError as error:
            raise ConfigError(str(self.path(name)), list(findings(error, "made"))) from None

    def _body(self, name: str) -> dict[str, Any]:
        path = self.path(name)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise _problem(path, f"is larger than {MAX_BYTES:,} bytes")
            body = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise _problem(path, "no such file") from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _problem(path, f"is not JSON ({error})") from None
        except OSError as error:
            raise _problem(path, f"cannot be read: {error.strerror or error}") from None
        if not isinstance(body, dict) or "content" not in body:
            raise _problem(path, "holds no artefact: an object with `kind`, `made` and `content` is expected")
        return body

    def rounds(self) -> int:
        """How many hypotheses there are, from 000 on without a gap."""
        count = 0
        while self.has(hypothesis_file(count)):
            count += 1
        return count


def hypothesis_file(round_number: int) -> str:
    """Name of the file of a round's hypothesis."""
    return f"hypothesis/{round_number:03d}.json"


def evaluation_file(round_number: int) -> str:
    """Name of the file of a round's evaluation."""
    return f"evaluation/{round_number:03d}.json"


def findings(error: ValidationError, under: str = "") -> Iterable[Finding]:
    """What a validation found, as findings with dotted paths."""
    for item in error.errors(include_url=False):
        path = ".".join([under, *(str(part) for part in item["loc"])]).strip(".")
        yield Finding(path, f"{item['msg']}, got {str(item['input'])[:200]!r}")


def _problem(path: Path, message: str) -> ConfigError:
    return ConfigError(str(path), [Finding("", message)])
