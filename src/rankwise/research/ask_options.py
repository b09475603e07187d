"""Which asker a command's options mean. The command line imports this at every start, so the rest comes when needed."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.errors import ConfigError, Finding
from rankwise.experiments.shown import Summary

if TYPE_CHECKING:
    from rankwise.research.asking import Asker
    from rankwise.research.calls import CallLog
    from rankwise.research.conversation import Speaker
    from rankwise.research.project import Project

MODEL = "RANKWISE_MODEL"
BASE_URL = "RANKWISE_BASE_URL"
KEYS = ("RANKWISE_API_KEY", "OPENAI_API_KEY")
WAYS = (
    "name a model (--model or RANKWISE_MODEL, key in RANKWISE_API_KEY or OPENAI_API_KEY), replay a conversation "
    "(--cassette FILE), or go without: --prompt-only prints the prompt, --answer FILE takes the answer"
)


@dataclass(frozen=True)
class ModelOptions:
    """The options of every command that may ask a language model."""

    model: str | None = None
    base_url: str | None = None
    cassette: Path | None = None
    record: Path | None = None
    prompt_only: bool = False
    answer: Path | None = None
    max_requests: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None


def asker(options: ModelOptions, project: "Project", environment: Mapping[str, str] = os.environ) -> "Asker | None":
    """Whoever answers a project's questions; none, if the options name nobody.

    Raises:
        ConfigError: options that exclude each other, no key where one is needed, or a cassette that cannot be read.
        MissingPackageError: a model is named, and pydantic-ai is not installed.
    """
    from rankwise.research.calls import CallLog
    from rankwise.research.cassettes import Player, Recorder
    from rankwise.research.conversation import Conversing
    from rankwise.research.pasted import Pasted, PromptOnly

    _check(options, environment)
    if options.prompt_only:
        return PromptOnly()
    if options.answer is not None:
        return Pasted(options.answer)
    log = CallLog(project)
    if options.cassette is not None:
        return Conversing(Player(options.cassette, log))
    if not _named(options, environment):
        return None
    endpoint = _endpoint(options, log, environment)
    return Conversing(endpoint if options.record is None else Recorder(endpoint, options.record))


def somebody(options: ModelOptions, project: "Project", environment: Mapping[str, str] = os.environ) -> "Asker":
    """As `asker`, for a stage that cannot do without.

    Raises:
        ConfigError: as `asker`, and if the options name nobody; says which ways there are.
    """
    found = asker(options, project, environment)
    if found is None:
        raise ConfigError("this step asks a language model", [Finding("", WAYS)])
    return found


def with_prompt(project: "Project", work: Callable[[], Summary]) -> Summary:
    """Do a stage, while no other command writes into the project. If it stops at a prompt for a person (--prompt-only,
    or an --answer that is used up), show that."""
    from rankwise.research.pasted import PromptWanted

    with project.locked():
        try:
            return work()
        except PromptWanted as wanted:
            return Summary(wanted.text, wanted.data)


def _check(options: ModelOptions, environment: Mapping[str, str]) -> None:
    ways = {
        "--cassette": options.cassette is not None,
        "--record": options.record is not None,
        "--prompt-only": options.prompt_only,
        "--answer": options.answer is not None,
    }
    given = [name for name, there in ways.items() if there]
    problems = []
    if len(given) > 1:
        problems.append(Finding(" ".join(given), "exclude each other; give one of them"))
    if given == ["--record"] and not _named(options, environment):
        problems.append(Finding("--record", "records what a model answers; name one with --model"))
    if problems:
        raise ConfigError("options", problems)


def _named(options: ModelOptions, environment: Mapping[str, str]) -> str | None:
    return options.model or environment.get(MODEL) or None


def _endpoint(options: ModelOptions, log: "CallLog", environment: Mapping[str, str]) -> "Speaker":
    from rankwise.research.limits import Limits
    from rankwise.research.llm import OPENAI, Endpoint

    base_url = options.base_url or environment.get(BASE_URL) or OPENAI
    key = next((environment[name].strip() for name in KEYS if environment.get(name, "").strip()), None)
    problems = []
    if not base_url.startswith(("http://", "https://")):
        problems.append(Finding("--base-url", "must begin with http:// or https://"))
    if key is None and base_url == OPENAI:
        problems.append(Finding("", f"no key: set {' or '.join(KEYS)}; {WAYS}"))
    if key is not None and not (key.isascii() and key.isprintable()):
        problems.append(Finding(" / ".join(KEYS), "the key holds a character that no key has (its value is not shown)"))
    if problems:
        raise ConfigError("the language model", problems)
    limits = Limits(options.max_requests, options.max_tokens, options.max_cost)
    return Endpoint(_named(options, environment) or "", base_url=base_url, key=key, log=log, limits=limits)
