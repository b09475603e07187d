"""One small registry for everything that is chosen by name: methods, tasks, metrics, signals."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from rankwise.errors import UnknownNameError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name.lower(), [str(k) for k in known], n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


class Registry(Generic[T]):
    """Names to objects, in the order they were registered.

    `kind` is the word used in errors ("method", "task", …).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files an object under `name`; a name can be taken once.

        Raises:
            ValueError: the name is taken by another object.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """The entry called `name`.

        Raises:
            UnknownNameError: there is none; the message lists what there is.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(self.explain(name)) from None

    def explain(self, name: str) -> str:
        """Why `name` is not known, what is close to it and what is allowed."""
        allowed = ", ".join(self._entries)
        return f"unknown {self.kind} '{name}'{did_you_mean(name, self._entries) or '.'} Known: {allowed}"

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
