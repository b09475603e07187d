"""Budgets: how many there are to give (who gets them: `allocation.allocate`).

A budget is counted in adapter **parameters** or in **ranks**. One rank of a matrix costs `in + out`
parameters, so the two differ as soon as matrices have different shapes; methods are compared at equal
parameters. Everything here is exact integer arithmetic on plain numbers: no tensors, no modules.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rankwise.allocation.allocate import Target, allocate, spent
from rankwise.errors import BudgetError

__all__ = ["Budget", "Target", "Unit", "allocate", "largest_reachable", "parse_budget", "spent"]

Unit = Literal["percent", "rank", "parameters", "ranks"]

_FORMS = "'0.5%' (of the base model's parameters), 'r=4' (uniform LoRA of rank 4), '200k' parameters, '144 ranks'"
_WHOLE = r"(?:\d{1,3}(?:[,_]\d{3})+|\d{1,15})"
_PATTERNS: tuple[tuple[Unit, str], ...] = (
    ("percent", r"(?P<n>\d{1,3}(?:\.\d+)?)\s*%"),
    ("rank", r"r\s*=\s*(?P<n>\d{1,6})"),
    ("ranks", rf"(?P<n>{_WHOLE})\s*ranks?"),
    ("parameters", rf"(?P<n>{_WHOLE}(?:\.\d+)?)\s*(?P<suffix>[km]?)(?:\s*param(?:eter)?s)?"),
)
_SUFFIX = {"": 1, "k": 1_000, "m": 1_000_000}


@dataclass(frozen=True)
class Budget:
    """An amount and its unit: percent of the base model, rank of a uniform LoRA, parameters, or total ranks."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        number = f"{self.amount:g}" if self.unit == "percent" else str(int(self.amount))
        form = {"percent": "{}%", "rank": "r={}", "parameters": "{} parameters", "ranks": "{} ranks"}[self.unit]
        return form.format(number)

    def resolve(self, costs: Sequence[int], base_parameters: int) -> Target:
        """The exact amount to spend on matrices whose ranks cost `costs` parameters each.

        Percent, `r=` and plain numbers are parameters; the largest amount that whole ranks (one or more in every
        matrix) can reach without going over is taken, so that every method that spends it spends the same. `ranks`
        stay ranks.

        Raises:
            BudgetError: not even one rank per matrix fits.
        """
        if self.unit == "ranks":
            return Target(int(self.amount), "ranks")
        if not costs:
            raise BudgetError("nothing to allocate to: no adapted matrices")
        asked = {
            "percent": math.floor(self.amount / 100 * base_parameters),
            "rank": int(self.amount) * sum(costs),
            "parameters": int(self.amount),
        }[self.unit]
        every = sum(costs)
        if asked < every:
            raise BudgetError(
                f"budget '{self}' is {asked:,} parameters, but one rank in each of the {len(costs)} matrices costs "
                f"{every:,}; raise the budget or adapt fewer target_modules"
            )
        return Target(every + largest_reachable(asked - every, costs), "parameters")


def parse_budget(text: str) -> Budget:
    """Read `0.5%`, `r=4`, `200k`, `1.5M`, `165888` or `144 ranks`.

    Raises:
        BudgetError: it is none of these, or nothing is left to give.
    """
    clean = text.strip().lower()
    for unit, pattern in _PATTERNS:
        if match := re.fullmatch(pattern, clean):
            amount = float(match["n"].replace(",", "").replace("_", "") or 0)
            if unit == "parameters":
                amount = math.floor(amount * _SUFFIX[match["suffix"]] + 0.5)
            if amount <= 0 or (unit == "percent" and amount > 100):
                raise BudgetError(f"budget '{text}' must be above 0 (and at most 100 %); write it as {_FORMS}")
            return Budget(amount, unit)
    raise BudgetError(f"cannot read budget '{text}'; write it as {_FORMS}")


def largest_reachable(total: int, costs: Sequence[int]) -> int:
    """The largest number not above `total` that is a sum of whole ranks (any number of each, no cap).

    A coin problem over the distinct costs: past the Frobenius number every multiple of their greatest common divisor
    is reachable, so only a short stretch below needs a table (held as the bits of one integer).
    """
    if not costs or total < min(costs):
        return 0
    divisor = math.gcd(*costs)
    units = sorted({cost // divisor for cost in costs})
    limit = total // divisor
    if limit >= units[0] * units[-1]:  # Frobenius number < smallest x largest (Schur's bound)
        return limit * divisor
    table, mask = 1, (1 << (limit + 1)) - 1
    for unit in units:
        step = unit
        while step <= limit:  # doubling: after it, any multiple of `unit` has been added
            table |= (table << step) & mask
            step *= 2
    return (table.bit_length() - 1) * divisor
