"""Budgets: how many there are to give, and who gets them.

A budget is counted in adapter **parameters** or in **ranks**. One rank of a matrix costs `in + out`
parameters, so the two differ as soon as matrices have different shapes; methods are compared at equal
parameters. Everything here is exact integer arithmetic on plain numbers: no tensors, no modules.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rankwise.errors import BudgetError

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

    def resolve(self, costs: Sequence[int], base_parameters: int) -> "Target":
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


@dataclass(frozen=True)
class Target:
    """A resolved budget: `total` in `unit`, exactly."""

    total: int
    unit: Literal["parameters", "ranks"]


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


def allocate(
    scores: Mapping[str, float],
    costs: Mapping[str, int],
    target: Target,
    *,
    floor: int = 1,
    cap: Mapping[str, int] | int | None = None,
) -> dict[str, int]:
    """Whole ranks in proportion to `scores`, spending `target` exactly, each within `[floor, cap]`.

    Ideal shares `r_k ∝ s_k` with Σ r_k (or Σ r_k·cost_k) equal to the target are clamped to floor and cap by
    water-filling, then rounded by largest remainder (Hamilton's method). In parameters, matrices of one cost form a
    class: first the class totals are chosen so that the parameters add up exactly with the least deviation from their
    ideals, then largest remainder runs inside each class. Ties go to the earlier name in the mapping. Zero scores
    everywhere count as equal scores.

    Args:
        scores: name -> importance, finite and >= 0.
        costs: name -> parameters per rank (in + out).
        target: what to spend.
        floor: smallest rank a matrix may get.
        cap: largest rank, for all or per name.

    Raises:
        BudgetError: a score is not a finite number >= 0, or floor and cap leave no way to spend the target exactly.
    """
    names = list(scores)
    _check_scores(scores)
    lower = dict.fromkeys(names, floor)
    upper = {name: _cap_of(cap, name, default=target.total) for name in names}
    price = {name: costs[name] if target.unit == "parameters" else 1 for name in names}
    _check_bounds(names, price, lower, upper, target)
    ideal = _water_fill(scores, price, lower, upper, target.total)
    classes: dict[int, list[str]] = {}
    for name in names:
        classes.setdefault(price[name], []).append(name)
    totals = _class_totals(classes, ideal, lower, upper, target)
    ranks: dict[str, int] = {}
    for cost, members in classes.items():
        ranks |= _largest_remainder(members, ideal, lower, upper, totals[cost])
    return {name: ranks[name] for name in names}


def spent(ranks: Mapping[str, int], costs: Mapping[str, int]) -> int:
    """Parameters that `ranks` cost."""
    return sum(rank * costs[name] for name, rank in ranks.items())


def _cap_of(cap: Mapping[str, int] | int | None, name: str, default: int) -> int:
    if cap is None:
        return default
    return cap if isinstance(cap, int) else cap[name]


def _check_scores(scores: Mapping[str, float]) -> None:
    if not scores:
        raise BudgetError("nothing to allocate to: no adapted matrices")
    for name, score in scores.items():
        if not (math.isfinite(score) and score >= 0):
            raise BudgetError(f"score of {name} is {score}; scores must be finite numbers >= 0")


def _check_bounds(
    names: Sequence[str], price: Mapping[str, int], lower: Mapping[str, int], upper: Mapping[str, int], target: Target
) -> None:
    for name in names:
        if lower[name] > upper[name]:
            raise BudgetError(f"{name}: floor {lower[name]} is above cap {upper[name]}")
    least = sum(lower[name] * price[name] for name in names)
    most = sum(upper[name] * price[name] for name in names)
    if target.total < least:
        raise BudgetError(
            f"budget of {target.total:,} {target.unit} is below the floor: {len(names)} matrices at rank "
            f"{max(lower.values())} cost {least:,}"
        )
    if target.total > most:
        raise BudgetError(
            f"budget of {target.total:,} {target.unit} is above the cap: at their largest ranks the {len(names)} "
            f"matrices hold {most:,}"
        )


def _water_fill(
    scores: Mapping[str, float],
    price: Mapping[str, int],
    lower: Mapping[str, int],
    upper: Mapping[str, int],
    total: int,
) -> dict[str, float]:
    """Real-valued shares: λ·s_k clamped to [lower, upper] with Σ share·price = total (λ by bisection)."""
    largest = max(scores.values())
    relative = {name: (score / largest if largest > 0 else 1.0) for name, score in scores.items()}
    # A score of zero still has to be able to take what nobody else can hold.
    relative = {name: max(score, 1e-12) for name, score in relative.items()}
    if len(set(relative.values())) == 1 and len(set(lower.values())) == 1 and len(set(upper.values())) == 1:
        share = total / sum(price.values())
        return dict.fromkeys(scores, share)

    def shares(factor: float) -> dict[str, float]:
        return {n: min(max(factor * relative[n], float(lower[n])), float(upper[n])) for n in scores}

    low, high = 0.0, max(upper[n] / relative[n] for n in scores)
    for _ in range(200):
        middle = (low + high) / 2
        if sum(share * price[n] for n, share in shares(middle).items()) < total:
            low = middle
        else:
            high = middle
    return shares(high)


def _class_totals(
    classes: Mapping[int, Sequence[str]],
    ideal: Mapping[str, float],
    lower: Mapping[str, int],
    upper: Mapping[str, int],
    target: Target,
) -> dict[int, int]:
    """Total rank per cost class with Σ total·cost = target, nearest to the ideals (Σ |deviation|·cost least).

    Trading ranks between two classes keeps the sum when each moves by the other's cost over their common divisor, so
    the best totals lie within that distance of the ideals: a small table over the classes finds them.
    """
    divisor = math.gcd(*classes)
    reach = max(classes) // divisor + 1
    partial: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for cost, members in classes.items():
        want = sum(ideal[name] for name in members)
        least, most = sum(lower[n] for n in members), sum(upper[n] for n in members)
        options = range(max(least, math.floor(want) - reach), min(most, math.ceil(want) + reach) + 1)
        grown: dict[int, tuple[float, tuple[int, ...]]] = {}
        for used, (penalty, chosen) in partial.items():
            for total in options:
                candidate = (penalty + abs(total - want) * cost, (*chosen, total))
                key = used + total * cost
                if key not in grown or candidate < grown[key]:
                    grown[key] = candidate
        partial = grown
    if target.total not in partial:
        near = max((used for used in partial if used <= target.total), default=None)
        hint = f"; {near:,} can" if near is not None else ""
        raise BudgetError(
            f"{target.total:,} {target.unit} cannot be spent exactly on ranks costing "
            f"{', '.join(f'{cost:,}' for cost in sorted(classes))} within floor and cap{hint}"
        )
    return dict(zip(classes, partial[target.total][1], strict=True))


def _largest_remainder(
    members: Sequence[str],
    ideal: Mapping[str, float],
    lower: Mapping[str, int],
    upper: Mapping[str, int],
    total: int,
) -> dict[str, int]:
    """Whole ranks with the given total: round down, then hand out (or take back) one rank at a time by remainder."""
    ranks = {n: min(max(math.floor(ideal[n] + 1e-9), lower[n]), upper[n]) for n in members}
    order = {n: i for i, n in enumerate(members)}
    while (missing := total - sum(ranks.values())) != 0:
        sign = 1 if missing > 0 else -1
        open_ = [n for n in members if (ranks[n] < upper[n] if sign > 0 else ranks[n] > lower[n])]
        open_.sort(key=lambda n: (sign * (ranks[n] - ideal[n]), sign * order[n]))
        for name in open_[: abs(missing)]:
            ranks[name] += sign
    return ranks
