"""calls.jsonl: every call of a language model, one JSON object per line. No texts, no keys: what was said is known by
its digest."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from rankwise.errors import OutputError
from rankwise.research.artefacts import Artefact
from rankwise.research.limits import Spent
from rankwise.research.project import Project

CALLS = "calls.jsonl"
REPLAYED = "replayed"


class Call(Artefact):
    """One request and what came of it."""

    prompt: str = Field(description="name of the prompt, such as hypothesize-minimal")
    digest: str = Field(description="SHA-256 of the messages")
    model: str
    status: str = Field(description="ok, replayed, http 429, timeout, no connection, too large, …")
    input_tokens: int | None = None
    output_tokens: int | None = None
    estimated: bool = Field(default=False, description="the endpoint gave no counts: they are estimated from lengths")
    cost: float | None = Field(default=None, description="US dollars; none: the price is not known")
    latency_ms: float = 0.0
    at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    @property
    def tokens(self) -> int:
        """In and out."""
        return (self.input_tokens or 0) + (self.output_tokens or 0)


class CallLog:
    """The calls of one project, in its file; without a project, in memory."""

    def __init__(self, project: Project | None = None) -> None:
        self._path: Path | None = project.path(CALLS) if project else None
        self._kept: list[Call] = []

    def add(self, call: Call) -> None:
        """Append a call; on the disk when this returns.

        Raises:
            OutputError: it cannot be written.
        """
        if self._path is None:
            self._kept.append(call)
            return
        line = (json.dumps(call.model_dump(), ensure_ascii=True) + "\n").encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(handle, line if _whole(handle) else b"\n" + line)
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror or error}") from error

    def calls(self) -> tuple[Call, ...]:
        """All calls; a line that was cut off by a kill is left out."""
        if self._path is None:
            return tuple(self._kept)
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ()
        found = []
        for line in lines:
            try:
                found.append(Call.model_validate_json(line))
            except ValidationError:
                continue
        return tuple(found)

    def spent(self) -> Spent:
        """What limits count: every request that went to an endpoint, answered or not."""
        real = [call for call in self.calls() if call.status != REPLAYED]
        return Spent(
            requests=len(real),
            tokens=sum(call.tokens for call in real),
            cost=sum(call.cost or 0.0 for call in real),
            unpriced=sum(call.cost is None and call.status == "ok" for call in real),
        )


def _whole(handle: int) -> bool:
    """Does the file end with a whole line? A kill may have cut the last one off."""
    size = os.fstat(handle).st_size
    return size == 0 or os.pread(handle, 1, size - 1) == b"\n"
