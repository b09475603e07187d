"""The options of every command that may ask a language model, written once."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.research.ask_options import BASE_URL, MODEL, ModelOptions

_OPTIONS: dict[str, Any] = {
    "model": Annotated[
        str | None, typer.Option(envvar=MODEL, help="Language model that is asked, by the endpoint's name for it.")
    ],
    "base_url": Annotated[
        str | None,
        typer.Option(
            envvar=BASE_URL,
            metavar="URL",
            help="OpenAI-compatible endpoint (default: OpenAI's); its key: RANKWISE_API_KEY or OPENAI_API_KEY.",
        ),
    ],
    "cassette": Annotated[
        Path | None, typer.Option(metavar="FILE", help="Replay a recorded conversation instead of asking a model.")
    ],
    "record": Annotated[
        Path | None, typer.Option(metavar="FILE", help="Record the conversation, to be replayed with --cassette.")
    ],
    "prompt_only": Annotated[
        bool, typer.Option("--prompt-only", help="Print the prompt with the answer's JSON schema, and stop there.")
    ],
    "answer": Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Go on from this answer to what --prompt-only printed."),
    ],
    "max_requests": Annotated[
        int | None, typer.Option(min=1, help="Requests that the project may make, all its commands together.")
    ],
    "max_tokens": Annotated[
        int | None, typer.Option(min=1, help="Tokens that the project may use, in and out, all its commands together.")
    ],
    "max_cost": Annotated[
        float | None, typer.Option(min=0, help="US dollars that the project may spend, all its commands together.")
    ],
}


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options: its parameter `options: ModelOptions` becomes one option for each field.

    Use it below `@app.command`. The options stand where `options` stands in the command's signature.
    """
    signature = inspect.signature(command)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != "options":
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        for name, annotation in _OPTIONS.items():
            default = getattr(ModelOptions, name)
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )

    def called(**given: Any) -> None:  # noqa: ANN401 - each has its own type above
        options = ModelOptions(**{name: given.pop(name) for name in _OPTIONS})
        command(options=options, **given)

    called.__name__ = command.__name__
    called.__doc__ = command.__doc__
    called.__module__ = command.__module__
    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
    return called
