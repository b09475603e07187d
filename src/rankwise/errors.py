"""Every error Rankwise raises on purpose.

Each is also the standard-library type a caller would expect, so `except ValueError` works too:

    RankwiseError
    ├── ConfigError            ValueError     a run config, flag or override is wrong (carries every finding)
    ├── BudgetError            ValueError     a budget cannot be read, or cannot be met on this model
    ├── UnknownNameError       LookupError    no method, task, metric or signal of that name
    ├── DataError              ValueError     a task's data is missing or malformed
    ├── ModelError             ValueError     a base model cannot be found, loaded or adapted
    ├── MissingPackageError    ImportError    an optional package is needed; says what to install
    ├── AllocationError        RuntimeError   a method did not do what it promised (hooks not called, budget not met)
    ├── TrainingError          RuntimeError   training could not go on
    │   └── DivergedError                     its loss is no finite number any more
    ├── StoreError             OSError        the results store cannot be read or written
    ├── OutputError            OSError        an output exists already, or cannot be written
    ├── ModelAnswerError       RuntimeError   a language model cannot be reached, or gives no valid answer
    └── LimitError             RuntimeError   a limit on requests, tokens or money is reached

The command line prints the message alone and exits with code 2. Messages say what is wrong, where it
came from, the value, and what is allowed. To add one: subclass `RankwiseError` and the stdlib type, and
draw it here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


class RankwiseError(Exception):
    """Root of everything raised on purpose."""


@dataclass(frozen=True)
class Finding:
    """One thing wrong (or worth knowing) about a config.

    `path` is dotted (`training.batch_size`), `message` says what is wrong with which value and what is
    allowed, `level` is `error` (refuses to run), `warning` (runs, but a claim suffers) or `note` (how a
    value was read).
    """

    path: str
    message: str
    level: Literal["error", "warning", "note"] = "error"

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(RankwiseError, ValueError):
    """A config, flag or override is wrong. `findings` holds every problem, not the first one."""

    def __init__(self, source: str, findings: Sequence[Finding]) -> None:
        self.source = source
        self.findings = tuple(findings)
        count = len(self.findings)
        head = f"{source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  {finding}" for finding in self.findings)]))


class BudgetError(RankwiseError, ValueError):
    """A budget cannot be read, or cannot be met on this model."""


class UnknownNameError(RankwiseError, LookupError):
    """No entry of that name in a registry."""


class DataError(RankwiseError, ValueError):
    """A task's data is missing or malformed."""


class ModelError(RankwiseError, ValueError):
    """A base model cannot be found, loaded or adapted."""


class MissingPackageError(RankwiseError, ImportError):
    """An optional package is needed; the message says what to install."""


class AllocationError(RankwiseError, RuntimeError):
    """A method did not do what it promised: hooks never called, budget not met."""


class TrainingError(RankwiseError, RuntimeError):
    """Training diverged or could not go on."""


class DivergedError(TrainingError):
    """The loss is no finite number any more. Under `torchrun` all processes raise it at the same step.

    Its message has `MARK` in it, by which a failed run in a store is known to fail the same way again.
    """

    MARK = "diverged: "


class StoreError(RankwiseError, OSError):
    """The results store cannot be read or written."""


class OutputError(RankwiseError, OSError):
    """An output exists already, or cannot be written."""


class ModelAnswerError(RankwiseError, RuntimeError):
    """A language model cannot be reached, or gave no valid answer after all retries."""


class LimitError(RankwiseError, RuntimeError):
    """A limit on requests, tokens or money is reached; nothing that was made so far is lost."""
