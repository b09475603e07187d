"""Recorded conversations: a JSON file of requests and answers that plays them again, without a key or a network.

A request is found by the digest of its messages (`conversation.key`): roles and texts, no times, no ids, no
measurements, no findings of code. Only what was said is on a cassette, never a key or an address.
"""

import difflib
import json
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import Field, ValidationError

from rankwise.errors import ConfigError, Finding, ModelAnswerError
from rankwise.experiments.sweep_locks import locked
from rankwise.research.artefacts import Artefact
from rankwise.research.calls import REPLAYED, Call, CallLog
from rankwise.research.conversation import Message, Messages, Reply, Role, Speaker, Wanted, digest, key
from rankwise.research.project import MAX_BYTES, Project, findings

FORM = 1


class Turn(Artefact):
    """One turn of a recorded request."""

    role: Role
    text: str


class Recorded(Artefact):
    """One request and its answer."""

    key: str = Field(description="SHA-256 of the messages")
    prompt: str
    model: str
    messages: tuple[Turn, ...]
    answer: str
    cut: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None


class Cassette(Artefact):
    """The file."""

    form: int = FORM
    recorded: tuple[Recorded, ...] = ()


def load(path: Path) -> Cassette:
    """Read a cassette.

    Raises:
        ConfigError: there is none, or it is no cassette; every finding.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(str(path), [Finding("", f"is larger than {MAX_BYTES:,} bytes")])
        cassette = Cassette.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(str(path), [Finding("", f"cannot be read: {error.strerror or error}")]) from None
    except ValidationError as error:
        raise ConfigError(str(path), list(findings(error))) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), [Finding("", f"is not JSON ({error})")]) from None
    if cassette.form != FORM:
        raise ConfigError(str(path), [Finding("form", f"is {cassette.form}; this version reads form {FORM}")])
    return cassette


class Player:
    """A speaker that answers from a cassette.

    Raises from `say`:
        ModelAnswerError: the request is not on it; says which one, and where the nearest one differs.
    """

    def __init__(self, path: Path, log: CallLog) -> None:
        self.path = path
        self.log = log
        self._recorded = load(path).recorded
        self._by_key = {item.key: item for item in reversed(self._recorded)}

    def say(self, messages: Messages, wanted: Wanted) -> Reply:
        """The recorded answer to these messages."""
        item = self._by_key.get(key(messages))
        if item is None:
            raise ModelAnswerError(_missing(self.path, self._recorded, messages, wanted))
        call = Call(prompt=wanted.prompt, digest=digest(messages), model=item.model, status=REPLAYED)
        self.log.add(call.model_copy(update={"input_tokens": item.input_tokens, "output_tokens": item.output_tokens}))
        return Reply(item.answer, item.model, "cassette", item.cut, item.input_tokens, item.output_tokens)


class Recorder:
    """A speaker that asks another one and keeps what is said. The file is written whole after every answer, with what
    another command recorded meanwhile; a request that is on it already is asked again and its answer replaced."""

    def __init__(self, speaker: Speaker, path: Path) -> None:
        self.speaker = speaker
        self.path = path
        with self._held():  # is it a cassette, and can it be written? Before anything is asked for
            self._there()

    def say(self, messages: Messages, wanted: Wanted) -> Reply:
        """What the other one answers."""
        reply = self.speaker.say(messages, wanted)
        item = Recorded(
            key=key(messages),
            prompt=wanted.prompt,
            model=reply.model,
            messages=tuple(Turn(role=message.role, text=message.known_by or message.text) for message in messages),
            answer=reply.text,
            cut=reply.cut,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
        )
        with self._held():
            recorded = {**self._there(), item.key: item}
            content = Cassette(recorded=tuple(recorded.values())).model_dump(mode="json")
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            Project(self.path.parent).write_text(self.path.name, text, again=True)
        return reply

    def _held(self) -> AbstractContextManager[None]:
        return locked(self.path.parent, f".{self.path.name}", tidy=True)

    def _there(self) -> dict[str, Recorded]:
        return {item.key: item for item in load(self.path).recorded} if self.path.exists() else {}


def _missing(path: Path, recorded: tuple[Recorded, ...], messages: Messages, wanted: Wanted) -> str:
    which = f"the request for {wanted.prompt!r} (turn {len(messages) // 2}, {key(messages)[:12]})"
    if not recorded:
        return f"{path}: the cassette is empty; {which} is not on it"
    now = _lines(messages)
    shares = [_share(_lines(_messages(item)), now) for item in recorded]
    best = max(range(len(recorded)), key=shares.__getitem__)
    near = recorded[best]
    return (
        f"{path}: {which} is not on this cassette of {len(recorded)} request(s). The nearest is number {best + 1} "
        f"({near.prompt!r}): {100 * shares[best]:.1f} % of the lines are the same. "
        f"{_first_difference(_lines(_messages(near)), now)} Record it again with --record."
    )


def _messages(item: Recorded) -> Messages:
    return tuple(Message(turn.role, turn.text) for turn in item.messages)


def _lines(messages: Messages) -> list[str]:
    return [f"{said.role}: {line}" for said in messages for line in (said.known_by or said.text).splitlines()]


def _share(first: list[str], second: list[str]) -> float:
    """Share of lines that both have, in any order: quick, whatever the texts are."""
    return difflib.SequenceMatcher(None, first, second, autojunk=False).quick_ratio()


def _first_difference(recorded: list[str], now: list[str]) -> str:
    for number, (old, new) in enumerate(zip(recorded, now, strict=False), 1):
        if old != new:
            at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
            begin = max(0, at - 20)
            return (
                f"First difference in line {number}: recorded {old[begin : at + 40]!r}, now {new[begin : at + 40]!r}."
            )
    return f"One goes on where the other ends (recorded {len(recorded)} lines, now {len(now)})."
