"""Asking without a key: print the prompt, let a person carry it to any model, and go on from the pasted answer."""

from pathlib import Path

from rankwise import __version__
from rankwise.errors import ConfigError, Finding
from rankwise.research.asking import Answer, Content, Problems, Prompt
from rankwise.research.conversation import Wrong, digest, first_messages, read_answer, wanted
from rankwise.research.project import MAX_BYTES, Made


class PromptWanted(Exception):
    """Not an error: the prompt that is to be answered by hand. `ask_commands.with_prompt` prints it and ends there."""

    def __init__(self, prompt: Prompt, kind: type[Content]) -> None:
        asked = wanted(prompt, kind)
        self.system, self.user = first_messages(prompt, asked.schema)
        self.name = prompt.name
        self.schema = asked.schema
        super().__init__(prompt.name)

    @property
    def text(self) -> str:
        """All of it, to be pasted as one message."""
        return f"{self.system.text.rstrip()}\n\n{self.user.text}"

    @property
    def data(self) -> dict[str, object]:
        """The same in parts."""
        return {"prompt": self.name, "system": self.system.text, "user": self.user.text, "schema": self.schema}


class PromptOnly:
    """An asker that never gets an answer: the first question stops the stage with its prompt."""

    def ask(self, prompt: Prompt, kind: type[Content], problems: Problems[Content] | None = None) -> Answer[Content]:
        """Raises `PromptWanted`."""
        raise PromptWanted(prompt, kind)


class Pasted:
    """An asker with one answer, from a file. The next question stops with its prompt.

    What is sent back to a model once, to be mended or not (`wellformed.MendOnce`), does not refuse a pasted answer:
    each command begins anew, and it could never be taken.

    Raises from `ask`:
        ConfigError: the file cannot be read, or its answer is wrong; every problem with its path.
        PromptWanted: a second question.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._used = False

    def ask(self, prompt: Prompt, kind: type[Content], problems: Problems[Content] | None = None) -> Answer[Content]:
        """The file's answer as a `kind` in which `problems` finds nothing."""
        if self._used:
            raise PromptWanted(prompt, kind)
        source = f"{self.file} (answer to the prompt {prompt.name!r})"
        try:
            content = read_answer(self._text(), kind)
            found = tuple(problems(content)) if problems else ()
            found = tuple(problems(content)) if problems and found else ()  # advice given once refuses nothing here
        except Wrong as wrong:
            found = wrong.problems
        if found:
            raise ConfigError(source, [Finding("", problem) for problem in found])
        self._used = True
        start = first_messages(prompt, wanted(prompt, kind).schema)
        return Answer(content, Made(by="answer", prompt=digest(start), version=__version__))

    def _text(self) -> str:
        try:
            if self.file.stat().st_size > MAX_BYTES:
                raise ConfigError(str(self.file), [Finding("", f"is larger than {MAX_BYTES:,} bytes")])
            return self.file.read_text(encoding="utf-8-sig", errors="replace")
        except OSError as error:
            raise ConfigError(str(self.file), [Finding("", f"cannot be read: {error.strerror or error}")]) from None
