"""Limits on what a language model may cost a project. They are checked before every request, so that a limit is passed
by one answer at most."""

from dataclasses import dataclass

from rankwise.errors import LimitError

CHARACTERS_PER_TOKEN = 8
"""More than tokens have on average in any language; a prompt has at least that many tokens."""


@dataclass(frozen=True)
class Spent:
    """What a project's requests took so far; `cost` in US dollars, as far as prices are known."""

    requests: int = 0
    tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0
    """Requests whose price is not known."""


@dataclass(frozen=True)
class Limits:
    """At most so many requests, tokens (in and out) and US dollars for a project, all its commands together."""

    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None

    def check(self, spent: Spent, characters: int = 0) -> None:
        """May a prompt of so many characters be sent?

        Raises:
            LimitError: no; says which limit, what is spent and what to do.
        """
        rest = "nothing made so far is lost: raise the limit, and the same command goes on"
        if self.requests is not None and spent.requests >= self.requests:
            raise LimitError(f"--max-requests {self.requests}: the project has made {spent.requests}; {rest}")
        if self.tokens is not None:
            least = characters // CHARACTERS_PER_TOKEN
            if spent.tokens >= self.tokens:
                raise LimitError(f"--max-tokens {self.tokens}: the project has used {spent.tokens}; {rest}")
            if spent.tokens + least > self.tokens:
                raise LimitError(
                    f"--max-tokens {self.tokens}: the project has used {spent.tokens}, the next prompt has at least "
                    f"{least}; {rest}"
                )
        if self.cost is not None:
            if spent.unpriced:
                raise LimitError(
                    f"--max-cost {self.cost:g}: the price of {spent.unpriced} request(s) of the project is not known, "
                    "so the limit cannot be held; use --max-tokens"
                )
            if spent.cost >= self.cost:
                raise LimitError(f"--max-cost {self.cost:g}: the project has spent {spent.cost:.4f} USD; {rest}")
