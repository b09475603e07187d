"""One request to a chat completion endpoint, through pydantic-ai. The only file that imports it, or opens a connection.

Nothing here retries, logs or looks at limits: `llm` does.
"""

import asyncio
import warnings
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from rankwise.errors import MissingPackageError
from rankwise.research.conversation import Messages, Wanted

if TYPE_CHECKING:
    from ssl import SSLContext

    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import Model, ModelRequestParameters

MAX_RESPONSE = 16_000_000
"""Bytes of a response."""
CHARACTERS_PER_TOKEN = 4
"""For an estimate where an endpoint counts no tokens."""
Result = TypeVar("Result")
Counts: TypeAlias = tuple[int | None, int | None]
NameOrModel: TypeAlias = "str | Model"


@dataclass(frozen=True)
class Address:
    """Where a request goes. `model` is a name, or a pydantic-ai `Model` in place of the endpoint (tests)."""

    model: "NameOrModel"
    base_url: str
    key: str = field(repr=False)
    timeout: float
    """Seconds for a whole answer."""


@dataclass(frozen=True)
class Received:
    """What came back. `counts` are tokens in and out, `estimated` where the endpoint counts none; `cost` is in US
    dollars, none if the price is not known; `cut`: it ran out of room."""

    text: str
    cut: bool
    counts: Counts
    estimated: bool
    cost: float | None


@dataclass(frozen=True)
class Failure:
    """A request that brought no answer."""

    status: str
    message: str
    again: bool
    """May it work next time?"""
    refused: bool = False
    """The endpoint did not like the form of the request."""
    pause: float | None = None
    """Seconds that the endpoint asks to wait."""


class TooLarge(Exception):
    """A response with more bytes than anyone should read."""


def require() -> None:
    """Is pydantic-ai there?

    Raises:
        MissingPackageError: no; says what to install, and which ways there are without it.
    """
    try:
        import pydantic_ai.models.openai  # noqa: F401 - the import is the test
    except ImportError as error:
        raise MissingPackageError(
            f"asking a language model needs pydantic-ai ({error}); install it with `pip install 'rankwise[research]'`, "
            "or use --prompt-only and --answer, or --cassette"
        ) from None


def send(address: Address, messages: Messages, wanted: Wanted, *, structured: bool) -> Received:
    """Send a conversation and wait for the next turn. `structured` asks for JSON in the wanted schema.

    Raises:
        Exception: whatever pydantic-ai, the client or the network raise; `failure` says what it means.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of prices that are not known, and of usage that is not said
        response = _finished(_request(address, messages, wanted, structured))
        text = response.text or ""  # what was said, not what was thought; calls of tools that do not exist are nothing
        counts, estimated = _counts(response, messages, text)
        return Received(text, response.finish_reason == "length", counts, estimated, _cost(response))


def failure(error: Exception, timeout: float) -> Failure:
    """What an exception of `send` means."""
    from pydantic_ai import exceptions

    chain = _chain(error)
    if any(isinstance(item, TooLarge) for item in chain):
        return Failure("too large", f"its answer has more than {MAX_RESPONSE:,} bytes", again=False)
    if any(isinstance(item, TimeoutError | exceptions.ModelTimeoutError) for item in chain):
        return Failure("timeout", f"no whole answer within {timeout:g} seconds", again=True)
    if isinstance(error, exceptions.ModelHTTPError):
        return _http(error)
    said = str(chain[-1]) or type(chain[-1]).__name__
    if isinstance(error, exceptions.ModelAPIError):
        return Failure("no connection", f"cannot be reached: {said}", again=True)
    return Failure("no answer", f"its response is no chat completion: {said}", again=True)


def _http(error: Any) -> Failure:  # noqa: ANN401 - a ModelHTTPError, imported lazily
    code = int(error.status_code)
    said = str(error.body or "no reason given")
    status = f"http {code}"
    if code in (401, 403):
        hint = "it refuses the key; set RANKWISE_API_KEY or OPENAI_API_KEY"
        return Failure(status, f"{hint} (HTTP {code})", again=False)
    if code == 404:
        return Failure(status, f"no such model or address (HTTP 404): {said}", again=False)
    again = code in (408, 409, 425, 429) or code >= 500
    return Failure(status, f"HTTP {code}: {said}", again, refused=code in (400, 422), pause=error.retry_after)


async def _request(address: Address, messages: Messages, wanted: Wanted, structured: bool) -> "ModelResponse":
    from pydantic_ai.direct import model_request

    said, parameters = _messages(messages), _parameters(wanted, structured)
    async with asyncio.timeout(address.timeout):
        if not isinstance(address.model, str):
            return await model_request(address.model, said, model_request_parameters=parameters, instrument=False)
        async with _client(address.timeout) as http:
            model = _chat_model(address.model, address.base_url, address.key, http)
            return await model_request(model, said, model_request_parameters=parameters, instrument=False)


def _finished(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, in a thread of its own where a loop is running already (notebooks)."""
    if not _looping():  # not inside an `except`: what goes wrong would seem to come from there
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _looping() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _chat_model(name: str, base_url: str, key: str, http: Any) -> "Model":  # noqa: ANN401 - an httpx2.AsyncClient
    from openai import AsyncOpenAI
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    client = AsyncOpenAI(base_url=base_url, api_key=key, http_client=http, max_retries=0)
    return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))


def _client(timeout: float) -> Any:  # noqa: ANN401 - an httpx2.AsyncClient, imported lazily
    """A client that follows no redirects and reads no more than `MAX_RESPONSE` bytes."""
    import httpx2

    class Limited(httpx2.AsyncByteStream):
        def __init__(self, stream: Any) -> None:  # noqa: ANN401
            self.stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for part in self.stream:
                size += len(part)
                if size > MAX_RESPONSE:
                    raise TooLarge
                yield part

        async def aclose(self) -> None:
            await self.stream.aclose()

    async def limit(response: Any) -> None:  # noqa: ANN401
        response.stream = Limited(response.stream)

    hooks = {"response": [limit]}
    return httpx2.AsyncClient(timeout=timeout, follow_redirects=False, event_hooks=hooks, verify=_certificates())


@cache
def _certificates() -> "SSLContext":
    """What connections are verified with; reading it takes longer than a request to a server nearby."""
    import httpx2

    return httpx2.create_ssl_context()


def _messages(messages: Messages) -> "list[ModelMessage]":
    from pydantic_ai.messages import (
        ModelMessage,
        ModelRequest,
        ModelResponse,
        SystemPromptPart,
        TextPart,
        UserPromptPart,
    )

    said: list[ModelMessage] = []
    for message in messages:
        if message.role == "assistant":
            said.append(ModelResponse(parts=[TextPart(message.text)]))
        else:
            part = SystemPromptPart(message.text) if message.role == "system" else UserPromptPart(message.text)
            said.append(ModelRequest(parts=[part]))
    return said


def _parameters(wanted: Wanted, structured: bool) -> "ModelRequestParameters":
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.output import OutputObjectDefinition

    if not structured:
        return ModelRequestParameters()
    schema = OutputObjectDefinition(json_schema=wanted.schema, name=wanted.name, strict=False)
    return ModelRequestParameters(output_mode="native", output_object=schema)


def _counts(response: "ModelResponse", messages: Messages, text: str) -> tuple[Counts, bool]:
    usage = response.usage
    if usage.input_tokens or usage.output_tokens:
        return (usage.input_tokens, usage.output_tokens), False
    characters = sum(len(message.text) for message in messages)
    return (characters // CHARACTERS_PER_TOKEN, len(text) // CHARACTERS_PER_TOKEN), True


def _cost(response: "ModelResponse") -> float | None:
    """US dollars: what the endpoint says, else from pydantic-ai's table of prices; none: not in it."""
    if response.usage.cost is not None:
        return float(response.usage.cost)
    try:
        return float(response.cost().total_price)
    except (LookupError, ValueError, AssertionError):
        return None


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from, the root last."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain
