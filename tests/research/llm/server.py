"""A loopback server that speaks OpenAI's chat completions, and misbehaves in every way a test asks for.

    with Server([busy(429), says('{"a": 1}')]) as server:
        Endpoint("gpt-4o-mini", base_url=server.url, key="k").say(...)

Each request takes the next behaviour; the last one answers all that follow. `server.requests` holds what came in.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}


@dataclass(frozen=True)
class Request:
    """What came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Behaviour = Callable[["Handler", Request], None]


def completion(
    text: str | None,
    *,
    usage: dict | None = USAGE,
    finish: str = "stop",
    model: str = "gpt-4o-mini",
    **more: Any,
) -> dict[str, Any]:
    """A chat completion with one choice."""
    message = {"role": "assistant", "content": text, **more}
    body = {
        "id": "x1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
    }
    return body | ({"usage": usage} if usage else {})


def says(text: str | None, **more: Any) -> Behaviour:
    """Answer with this text."""
    return sends(json.dumps(completion(text, **more)).encode())


def answers(function: Callable[[Request], str]) -> Behaviour:
    """Answer with what a function of the request says."""
    return lambda handler, request: says(function(request))(handler, request)


def sends(body: bytes, code: int = 200, kind: str = "application/json", **headers: str) -> Behaviour:
    """Send these bytes."""

    def behave(handler: "Handler", request: Request) -> None:
        handler.send_response(code)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def refuses(code: int, message: str = "no", **headers: str) -> Behaviour:
    """Answer with an error in OpenAI's form."""
    error = {"error": {"message": message, "type": "error", "param": None, "code": None}}
    return sends(json.dumps(error).encode(), code, **headers)


def floods(size: int) -> Behaviour:
    """A valid beginning, then that many bytes."""

    def behave(handler: "Handler", request: Request) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        handler.wfile.write(json.dumps(completion("")).encode()[:-1] + b', "x": "')
        block = b"a" * 1_000_000
        with suppress(OSError):
            for _ in range(size // len(block)):
                handler.wfile.write(block)
            handler.wfile.write(b'"}')

    return behave


def drips(pause: float) -> Behaviour:
    """One byte at a time, for ever."""

    def behave(handler: "Handler", request: Request) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        with suppress(OSError):
            while not handler.server.stopping.is_set():
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(pause)

    return behave


def hangs_up(handler: "Handler", request: Request) -> None:
    """Close the connection in the middle of the answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"id": ')
    handler.close_connection = True


class Handler(BaseHTTPRequestHandler):
    """Hands every request to the next behaviour."""

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length) or b"{}")
        request = Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        with suppress(BrokenPipeError, ConnectionResetError):
            self.server.take(request)(self, request)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    """The server; a context manager."""

    daemon_threads = True

    def __init__(self, behaviours: Sequence[Behaviour]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours = list(behaviours)
        self.requests: list[Request] = []
        self.stopping = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def take(self, request: Request) -> Behaviour:
        """Note a request and say how it is answered."""
        with self._lock:
            self.requests.append(request)
            return self.behaviours[min(len(self.requests), len(self.behaviours)) - 1]

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
