"""What a stage needs of a language model: one question with a typed answer. `llm` answers with a model, `cassettes`
with a recorded conversation, `pasted` with a person's clipboard, tests with a function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rankwise.research.artefacts import Artefact
from rankwise.research.project import Made

Content = TypeVar("Content", bound=Artefact)
Problems = Callable[[Content], Sequence[str]]
"""What is wrong with an answer beyond its type, one sentence each; the model is asked again with them."""


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt. `name` is that of its Markdown file, `system` says who the model is and what it may do.

    `known_by` is the text by which a recorded conversation knows the prompt again, if `text` holds measurements or
    findings of code, which differ from machine to machine or version to version; empty: the text itself.
    """

    name: str
    system: str
    text: str
    known_by: str = ""


@dataclass(frozen=True)
class Answer(Generic[Content]):
    """A validated answer and where it comes from."""

    content: Content
    made: Made


class Asker(Protocol):
    """Whatever answers."""

    def ask(self, prompt: Prompt, kind: type[Content], problems: Problems[Content] | None = None) -> Answer[Content]:
        """The answer as a `kind` in which `problems` finds nothing.

        Raises:
            ModelAnswerError: no valid answer after all retries, or the model cannot be reached.
            LimitError: the limit on requests, tokens or money is reached.
        """
        ...
