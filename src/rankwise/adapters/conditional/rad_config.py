"""PEFT config of RAD-LoRA adapters with decisions per module."""

from dataclasses import dataclass, field
from typing import ClassVar

from rankwise.adapters.conditional.config import ConditionalPeftConfig


@dataclass
class RadloraPeftConfig(ConditionalPeftConfig):
    """See `conditional.rad_layer`; `r` is the largest rank, the same for every module.

    Args:
        generator: where factors come from: `bank` or `hyper`.
        generator_rank: width of the middle of a factorised `hyper` generator; the full one if left out.
        banks: components per bank (`in 384`, `out 1536`); if left out, as many as keep banks and routers at half the
            parameters of the adapters they replace, but `r` at least. Filled in when the adapter is made.
        windows: module -> where its windows into the banks of A and of B begin; filled in likewise.
        cache: number of examples whose decisions are remembered in inference; 0 for none.
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
        if self.generator_rank is not None and (self.generator != "hyper" or self.generator_rank < 1):
            raise ValueError(
                f"generator_rank is {self.generator_rank} with generator '{self.generator}'; it must be at least 1, "
                "and belongs to 'hyper'"
            )
        if self.rank_pattern:
            raise ValueError(f"{self.TYPE} has one largest rank for all modules: set r, and leave rank_pattern empty")
        if not isinstance(self.init_lora_weights, bool):
            raise ValueError(f"{self.TYPE} starts from init_lora_weights True or False, not '{self.init_lora_weights}'")
        if self.cache < 0:
            raise ValueError(f"cache is {self.cache}; it is a number of examples, 0 or more")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")
