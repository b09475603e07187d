"""The language model: any endpoint that speaks OpenAI's chat completions.

It sends a conversation and returns the next turn, nothing else: no tools, no telemetry, no redirects. Every request is
checked against the limits before it goes out and is logged after it. Busy or broken endpoints are asked again with
growing pauses. The key comes from the environment and is taken out of everything that comes back.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from rankwise.errors import LimitError, ModelAnswerError
from rankwise.experiments.redact import HIDDEN, without_passwords
from rankwise.research.calls import Call, CallLog
from rankwise.research.conversation import Messages, Reply, Wanted, digest
from rankwise.research.limits import Limits
from rankwise.research.llm_wire import Address, Failure, NameOrModel, Received, failure, require, send

OPENAI = "https://api.openai.com/v1"
NO_KEY = "no-key"
"""What is sent where an endpoint needs no key."""
TRIES = 5
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
TIMEOUT = 600.0
"""Seconds for a whole answer, however slowly it drips."""
MOST_SAID = 300
"""Characters of an endpoint's words in a message of ours."""


class Endpoint:
    """A `conversation.Speaker`: a model behind an address.

    Args:
        model: name of the model, or a pydantic-ai `Model` (tests).
        base_url: address of the endpoint.
        key: its key; none: the endpoint needs none.
        log: where every request is written down.
        limits: checked before every request.
        timeout: seconds for a whole answer.
        pause: waits that many seconds (tests wait less).

    Raises:
        MissingPackageError: pydantic-ai is not installed.
    """

    def __init__(
        self,
        model: NameOrModel,
        *,
        base_url: str = OPENAI,
        key: str | None = None,
        log: CallLog | None = None,
        limits: Limits | None = None,
        timeout: float = TIMEOUT,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        require()
        self.model = model
        self.base_url = base_url
        self.log = log or CallLog()
        self.limits = limits or Limits()
        self.timeout = timeout
        self._key = key
        self._pause = pause
        self._structured = True

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model if isinstance(self.model, str) else self.model.model_name

    def say(self, messages: Messages, wanted: Wanted) -> Reply:
        """The model's next turn.

        Raises:
            ModelAnswerError: the endpoint cannot be reached, refuses, or stays broken after all tries.
            LimitError: a limit is reached.
        """
        characters = sum(len(message.text) for message in messages)
        last, tries = None, 0
        while tries < TRIES:
            self._check(characters, last)
            found = self._once(messages, wanted)
            if isinstance(found, Reply):
                return found
            last, tries = found, tries + 1
            if last.refused and self._structured:
                self._structured = False  # an endpoint without structured output: the schema is in the prompt too
            elif not last.again:
                break
            elif tries < TRIES:
                wait = FIRST_PAUSE * 2.0 ** (tries - 1) if last.pause is None else last.pause
                self._pause(min(wait, LONGEST_PAUSE))
        message = last.message if last else ""
        times = f" ({tries} tries)" if tries > 1 else ""
        raise ModelAnswerError(f"{self.name} at {self._shown()}: {message}{times}")

    def _check(self, characters: int, last: Failure | None) -> None:
        try:
            self.limits.check(self.log.spent(), characters)
        except LimitError as error:
            raise LimitError(f"{error} (the last request: {last.message})" if last else str(error)) from None

    def _once(self, messages: Messages, wanted: Wanted) -> Reply | Failure:
        """One request, logged."""
        began = time.perf_counter()
        address = Address(self.model, self.base_url, self._key or NO_KEY, self.timeout)
        found: Received | Failure
        try:
            found = send(address, messages, wanted, structured=self._structured)
        except Exception as error:
            found = failure(error, self.timeout)
        self._log(messages, wanted, found, 1000 * (time.perf_counter() - began))
        if isinstance(found, Received):
            return Reply(self._clean(found.text), self.name, "model", found.cut, *found.counts)
        return replace(found, message=self._said(found.message))

    def _log(self, messages: Messages, wanted: Wanted, found: Received | Failure, latency_ms: float) -> None:
        call = Call(
            prompt=wanted.prompt,
            digest=digest(messages),
            model=self.name,
            status="ok" if isinstance(found, Received) else found.status,
            latency_ms=round(latency_ms, 1),
        )
        if isinstance(found, Received):
            tokens = {"input_tokens": found.counts[0], "output_tokens": found.counts[1], "estimated": found.estimated}
            call = call.model_copy(update={**tokens, "cost": found.cost})
        self.log.add(call)

    def _said(self, text: str) -> str:
        """An endpoint's words for a message of ours: one line, not long, no secrets."""
        return " ".join(self._clean(without_passwords(text)).split())[:MOST_SAID]

    def _clean(self, text: str) -> str:
        """Text without the key, should an endpoint say it back, and without halves of characters."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        return text.replace(self._key, HIDDEN) if self._key and len(self._key) > 3 else text

    def _shown(self) -> str:
        return without_passwords(self.base_url.split("?")[0])
