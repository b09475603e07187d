"""A question until its answer is right: what is said, how an answer is read, and what goes back when it is wrong.

An answer is a JSON object in the schema of the wanted type. It is only ever parsed, never executed; text around it,
code fences and Python literals are understood (`parse`). What is wrong with it, of its type or of what code checks,
goes back to the model, a few times.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from pydantic import ValidationError

from rankwise import __version__
from rankwise.errors import ModelAnswerError
from rankwise.research.artefacts import Artefact
from rankwise.research.asking import Answer, Content, Problems, Prompt
from rankwise.research.project import Made, findings
from rankwise.research.prompts import quote

MAX_ANSWER = 1_000_000
"""Characters of an answer that are looked at; a longer one is wrong."""
MAX_PROBLEMS = 30
MAX_PROBLEM = 600
MAX_REPEATED = 20_000
"""Characters of a wrong answer that the model is shown again."""
RETRIES = 3

Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `known_by` is as in `asking.Prompt`: what code says may
    change from version to version, and what was measured from machine to machine."""

    role: Role
    text: str
    known_by: str = ""


Messages: TypeAlias = tuple[Message, ...]


@dataclass(frozen=True)
class Wanted:
    """What is asked for: name of the prompt, name and JSON schema of the answer's type."""

    prompt: str
    name: str
    schema: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What came back. `cut`: the model says that it ran out of room. `by` is `model` or `cassette`."""

    text: str
    model: str
    by: Literal["model", "cassette"] = "model"
    cut: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None


class Speaker(Protocol):
    """Whatever continues a conversation by one turn: an endpoint, a cassette, a test's function."""

    def say(self, messages: Messages, wanted: Wanted) -> Reply:
        """The next turn.

        Raises:
            ModelAnswerError: nothing came back.
            LimitError: no more may be asked.
        """
        ...


def digest(messages: Messages) -> str:
    """SHA-256 of a conversation: roles and texts, nothing else (no times, no ids)."""
    return _sha256([[message.role, message.text] for message in messages])


def key(messages: Messages) -> str:
    """The digest by which a recorded conversation knows these messages again: as `digest`, without measurements."""
    return _sha256([[message.role, message.known_by or message.text] for message in messages])


def _sha256(said: list[list[str]]) -> str:
    return hashlib.sha256(json.dumps(said, ensure_ascii=True).encode()).hexdigest()


def wanted(prompt: Prompt, kind: type[Artefact]) -> Wanted:
    """What a prompt wants to have."""
    return Wanted(prompt.name, kind.__name__, schema_of(kind))


def schema_of(kind: type[Artefact]) -> dict[str, Any]:
    """The JSON schema of a type as models get it: without titles that repeat names, defaults, and largest lengths,
    which servers that generate by a grammar cannot build. The answer is held to the lengths all the same."""
    schema: dict[str, Any] = _slim(kind.model_json_schema())
    return schema


def _slim(schema: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(schema, list):
        return [_slim(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        a_field = isinstance(value, dict)  # `title` may be the name of one
        if a_field or key not in ("title", "default", "maxLength"):
            kept[key] = _slim(value)
    return kept


def first_messages(prompt: Prompt, schema: dict[str, Any]) -> Messages:
    """How a conversation begins: the prompt with the schema of the answer below it, word for word what is sent."""
    form = (
        "\n\n# Form of the answer\n\nOne JSON object, nothing before or after it, in this JSON schema:\n\n"
        f"{json.dumps(schema, ensure_ascii=False)}\n"
    )
    known_by = f"{prompt.known_by.rstrip()}{form}" if prompt.known_by else ""
    return (Message("system", prompt.system), Message("user", f"{prompt.text.rstrip()}{form}", known_by))


class Wrong(Exception):
    """An answer that is no `kind`; `problems` says why, one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


def read_answer(text: str, kind: type[Content], *, cut: bool = False) -> Content:
    """The `kind` in an answer. Of several objects it is the last one that is right: drafts come first.

    Raises:
        Wrong: there is none; every problem of the object that comes closest.
    """
    if len(text) > MAX_ANSWER:
        raise Wrong([f"the answer has {len(text):,} characters, at most {MAX_ANSWER:,} are read"])
    values = _objects(text)
    closest, known = [f"there is no whole JSON object in it; it begins {text.strip()[:80]!r}"], 0
    for value in reversed(values):
        try:
            return kind.model_validate(_ours(value, kind))
        except ValidationError as error:
            same = len(_ours(value, kind).keys() & kind.model_fields.keys())
            if same > known:
                closest, known = [str(finding) for finding in findings(error)], same
        except RecursionError:
            closest = ["it is nested too deeply"]
    if values and not known:
        closest = [f"none of its {len(values)} object(s) has the wanted keys ({', '.join(kind.model_fields)})"]
    if cut:
        closest.insert(0, "it was cut off because it is too long; be shorter")
    raise Wrong([problem[:MAX_PROBLEM] for problem in closest])


def _objects(text: str) -> list[dict[str, Any]]:
    """Every object in an answer; the usual case, only JSON, is fast."""
    from rankwise.research.parse import objects

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return [parsed.value for parsed in objects(text)]
    return [value] if isinstance(value, dict) else [item for item in _items(value) if isinstance(item, dict)]


def _ours(value: dict[str, Any], kind: type[Artefact]) -> dict[str, Any]:
    """An object with its keys as we write them, where a model wrote `Open Problems` or `methods`."""
    from rankwise.research import parse

    known = kind.model_fields
    if value.keys() <= known.keys():
        return value
    others = parse.HYPOTHESIS if kind.__name__ == "Hypothesis" else {}
    return {
        name if name in known else others.get(parse.key(name), parse.key(name)): content
        for name, content in value.items()
    }


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def feedback(problems: Sequence[str]) -> str:
    """What a model is told about a wrong answer. Quoted: problems repeat words of the answer, perhaps a paper's."""
    shown = [f"- {problem[:MAX_PROBLEM]}" for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        shown.append(f"- and {len(problems) - MAX_PROBLEMS} more")
    listed = quote("what is wrong with the answer", "\n".join(shown))
    return (
        f"That answer cannot be used. What code found wrong with it:\n\n{listed}\n\n"
        "Answer again with the whole JSON object, everything that was found mended."
    )


class Conversing:
    """An `asking.Asker` that talks with a `Speaker` until the answer is right.

    Raises from `ask`:
        ModelAnswerError: still wrong after `retries` more tries, or nothing came back.
        LimitError: no more may be asked.
    """

    def __init__(self, speaker: Speaker, *, retries: int = RETRIES) -> None:
        self.speaker = speaker
        self.retries = retries

    def ask(self, prompt: Prompt, kind: type[Content], problems: Problems[Content] | None = None) -> Answer[Content]:
        """The answer as a `kind` in which `problems` finds nothing."""
        asked = wanted(prompt, kind)
        messages = start = first_messages(prompt, asked.schema)
        found: Sequence[str] = ()
        for _ in range(1 + self.retries):
            reply = self.speaker.say(messages, asked)
            try:
                content = read_answer(reply.text, kind, cut=reply.cut)
                found = problems(content) if problems else ()
            except Wrong as wrong:
                found = wrong.problems
            else:
                if not found:
                    made = Made(by=reply.by, model=reply.model, prompt=digest(start), version=__version__)
                    return Answer(content, made)
            repeated = reply.text[:MAX_REPEATED]
            messages = (*messages, Message("assistant", repeated), Message("user", feedback(found), "(what is wrong)"))
        listed = "\n".join(f"  {problem}" for problem in found[:MAX_PROBLEMS])
        raise ModelAnswerError(
            f"{reply.model}: no valid answer to the prompt {prompt.name!r} in {1 + self.retries} tries; "
            f"wrong with the last one:\n{listed}"
        )
