"""PEFT config of RAD-LoRA adapters with decisions per module."""

import re
import sys
from dataclasses import dataclass, field
from typing import ClassVar

from rankwise.adapters.conditional.config import ConditionalPeftConfig, check_number, check_whole
from rankwise.adapters.conditional.rad_bank import BANKS

_BANK = re.compile(r"(in|out) \d+")


@dataclass
class RadloraPeftConfig(ConditionalPeftConfig):
    """See `conditional.rad_layer`; `r` is the largest rank, the same for every module.

    Args:
        generator: where factors come from: `bank` or `hyper`.
        generator_rank: width of the middle of a factorised `hyper` generator; the full one if left out.
        banks: components per bank (`in 384`, `out 1536`); if left out, as many as keep banks and routers at half the
            parameters of the adapters they replace, but `r` at least. Filled in when the adapter is made.
        windows: module -> where its windows into the banks of A and of B begin; filled in likewise.
        cache: number of examples whose decisions are remembered in inference without gradients; 0 for none.
        rank_price: what every component costs, in units of the rank's logits.
        temperature: what the rank's logits are divided by.
        components: module -> average weight of every component over training examples, 0 where it was not used;
            measured when training ended.
    """

    TYPE: ClassVar[str] = "RADLORA"

    generator: str = field(default="bank", metadata={"help": "`bank` or `hyper`"})
    generator_rank: int | None = field(
        default=None, metadata={"help": "width of the middle of a factorised `hyper` generator"}
    )
    banks: dict[str, int] | None = field(default=None, metadata={"help": "bank -> number of components"})
    windows: dict[str, list[int]] | None = field(
        default=None, metadata={"help": "module -> first component of its A and of its B"}
    )
    cache: int = field(default=0, metadata={"help": "examples whose decisions are remembered in inference"})
    rank_price: float = field(default=0.0, metadata={"help": "what every component costs, in logits"})
    temperature: float = field(default=1.0, metadata={"help": "what the rank's logits are divided by"})
    components: dict[str, list[float]] | None = field(
        default=None, metadata={"help": "module -> average weight of every component over training examples"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generator not in ("bank", "hyper"):
            raise ValueError(f"generator is '{self.generator}'; it must be 'bank' or 'hyper'")
        if self.generator_rank is not None and self.generator != "hyper":
            raise ValueError(
                f"generator_rank is {self.generator_rank} with generator '{self.generator}'; it belongs to 'hyper'"
            )
        if self.generator_rank is not None:
            check_whole("generator_rank", self.generator_rank, "it must be at least 1", least=1)
        if self.rank_pattern:
            raise ValueError(f"{self.TYPE} has one largest rank for all modules: set r, and leave rank_pattern empty")
        if not isinstance(self.init_lora_weights, bool):
            raise ValueError(f"{self.TYPE} starts from init_lora_weights True or False, not '{self.init_lora_weights}'")
        check_whole("cache", self.cache, "it is a number of examples, 0 or more", least=0)
        check_number("rank_price", self.rank_price, "it is a number of logits")
        check_number("temperature", self.temperature, "it must be positive", low=sys.float_info.min)
        self._check_banks()

    def _check_banks(self) -> None:
        """Windows must lie in banks that hold at least one."""
        banks, windows = self.banks, self.windows
        if banks is not None and not (isinstance(banks, dict) and all(map(_BANK.fullmatch, banks))):
            raise ValueError(f"banks is {banks!r}; it holds a number of components by bank, such as `in 384`")
        for bank, size in (banks or {}).items():
            check_whole(f"banks of {bank}", size, f"a bank holds r = {self.r} components at least", least=self.r)
        if windows is None:
            return
        ends = [max((n for bank, n in (banks or {}).items() if bank.startswith(side)), default=0) for side in BANKS]
        if not all(ends) or not isinstance(windows, dict):
            raise ValueError(
                f"windows is {windows!r} and banks {banks!r}; leave both out, or give two starts by module, and "
                "the size of every bank of inputs and of outputs"
            )
        for name, window in windows.items():
            if not (isinstance(window, list | tuple) and len(window) == 2 and all(map(_within, window, ends))):
                raise ValueError(
                    f"the window of {name} is {window!r}; it is where its components begin in its bank of inputs, 0 to "
                    f"{ends[0] - 1}, and in that of outputs, 0 to {ends[1] - 1}"
                )


def _within(first: object, end: int) -> bool:
    return isinstance(first, int) and not isinstance(first, bool) and 0 <= first < end
