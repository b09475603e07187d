"""Banks of components that modules share, and the windows through which each sees its own.

All modules with inputs of one width share a bank of rows of A, all with outputs of one width a bank of columns of B.
A module of rank r sees r neighbouring components of the ring that a bank is; the windows of its users begin at evenly
spread places, so that every component serves about equally many of them. Sharing vectors over layers is VeRA's and
VB-LoRA's idea (arXiv 2310.11454, 2405.15179); what tells users of one component apart is the other factor, which comes
from another bank at another place, and the coefficients that routers give per input.
"""

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rankwise.allocation.budget import Target, allocate, largest_reachable, spent

BANKS = {"in": "lora_bank_A", "out": "lora_bank_B"}
"""Containers on the first layer that uses a bank, by the side of the matrix it serves."""

Sizes = Mapping[str, tuple[int, int]]
"""Module -> (in, out), in model order."""


class Bank(nn.Module):
    """Components as rows: (components, width).

    Args:
        components: how many.
        width: of each.
        bound: rows start uniform in ± this.
    """

    def __init__(self, components: int, width: int, bound: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(components, width).uniform_(-bound, bound))


class Window(nn.Module):
    """What a module sees of a bank; stands where PEFT has `lora_A` or `lora_B`, of which it reads `weight` alone.

    Args:
        bank: owned by the first layer that uses it; not registered here, so it is saved once.
        first: where the window begins.
        rank: its length.
        transposed: False for A, (rank, in); True for B, (out, rank).
    """

    def __init__(self, bank: Bank, first: int, rank: int, *, transposed: bool) -> None:
        super().__init__()
        self._bank = (bank,)
        self.first, self.rank, self.transposed = first, rank, transposed

    @property
    def weight(self) -> Tensor:
        """With a graph to the bank; a view of it where the window does not go round the end of the ring."""
        ring = self._bank[0].weight
        over = self.first + self.rank - len(ring)
        rows = torch.cat([ring[self.first :], ring[:over]]) if over > 0 else ring[self.first : self.first + self.rank]
        return rows.t() if self.transposed else rows


def bank_users(sizes: Sizes) -> Counter[str]:
    """Bank (`in 384`, `out 1536`) -> number of modules that use it."""
    return Counter(key for width_in, width_out in sizes.values() for key in (f"in {width_in}", f"out {width_out}"))


def width_of(bank: str) -> int:
    """`in 384` -> 384."""
    return int(bank.split()[1])


def smallest_banks(sizes: Sizes, rank: int) -> int:
    """Parameters of banks that hold one window each."""
    return rank * sum(map(width_of, bank_users(sizes)))


def fill_banks(sizes: Sizes, rank: int, parameters: int) -> dict[str, int]:
    """Components per bank for so many parameters in all, shared out in proportion to the users; a window at least.

    Less than one component is left over, unless every user could have a window of its own.

    Raises:
        BudgetError: it is not enough for one window each.
    """
    users = bank_users(sizes)
    costs = {bank: width_of(bank) for bank in users}
    most = {bank: count * rank for bank, count in users.items()}
    least = smallest_banks(sizes, rank)
    growing = [costs[bank] for bank, count in users.items() if count > 1]
    total = least + largest_reachable(parameters - least, growing)
    target = Target(min(total, spent(most, costs)) if parameters >= least else parameters, "parameters")
    return allocate({bank: float(count) for bank, count in users.items()}, costs, target, floor=rank, cap=most)


def spread_windows(sizes: Sizes, banks: Mapping[str, int]) -> dict[str, list[int]]:
    """Module -> [where its window into the bank of A begins, and into that of B], evenly spread over the users."""
    users, seen = bank_users(sizes), Counter[str]()
    windows: dict[str, list[int]] = {}
    for name, (width_in, width_out) in sizes.items():
        windows[name] = []
        for bank in (f"in {width_in}", f"out {width_out}"):
            windows[name].append(seen[bank] * banks[bank] // users[bank])
            seen[bank] += 1
    return windows


def first_bound(side: str, width: int, rank: int, start: bool) -> float:
    """Bound of the uniform start of a bank: LoRA's 1/√in for A; 0 for B, or 1/√r where `start` is False."""
    if side == "in":
        return 1 / math.sqrt(width)
    return 0.0 if start else 1 / math.sqrt(rank)
