"""What tests of conversations share: a small type, a prompt, a speaker with fixed lines, an endpoint in a hurry."""

from pydantic import Field

from rankwise.research.artefacts import Artefact
from rankwise.research.asking import Prompt
from rankwise.research.calls import CallLog
from rankwise.research.conversation import Reply
from rankwise.research.llm import Endpoint

KEY = "sk-very-secret-0123456789"
PROMPT = Prompt("pick", "You pick numbers.", "Pick a number between 1 and 10, and say why.")


class Pick(Artefact):
    """An answer."""

    number: int = Field(ge=1, le=10)
    why: str = Field(min_length=1)
    tags: tuple[str, ...] = ()


class Lines:
    """A speaker with fixed lines; `heard` holds the conversations, the last line is repeated."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        self.heard = []

    def say(self, messages, wanted):
        """The next line."""
        self.heard.append(messages)
        return Reply(self.lines[min(len(self.heard), len(self.lines)) - 1], "lines")


def endpoint(server, **more):
    """An endpoint at a test's server that waits for nothing; `pauses` holds how long it would have."""
    pauses = []
    more = {"log": CallLog(), "key": KEY, "pause": pauses.append, "timeout": 20.0} | more
    made = Endpoint("gpt-4o-mini", base_url=server.url, **more)
    made.pauses = pauses
    return made
