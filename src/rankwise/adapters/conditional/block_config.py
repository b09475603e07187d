"""What a checkpoint of block mode says beside LoRA's own fields."""

from dataclasses import dataclass, field
from typing import ClassVar

from rankwise.adapters.conditional.config import ConditionalPeftConfig


@dataclass
class RadBlockPeftConfig(ConditionalPeftConfig):
    """Plain LoRA, a router after one block, and a low-rank bypass for every later block.

    Args:
        router_after: block after which the router decides, the first is 0.
        keep_last: how many blocks at the end every input keeps.
        bypass_rank: rank of every bypass.
        exit: whether a block is kept only if all before it are.
        kept_patterns: the subsets that inputs may take, one string of 0 and 1 each, block by block; any if None.
        blocks: full names of the blocks that can be skipped, in order; filled in when the adapter is made.
    """

    TYPE: ClassVar[str] = "RADBLOCK"

    router_after: int = field(default=0, metadata={"help": "block after which the router decides, the first is 0"})
    keep_last: int = field(default=1, metadata={"help": "how many blocks at the end every input keeps"})
    bypass_rank: int = field(default=4, metadata={"help": "rank of the path that replaces a skipped block"})
    exit: bool = field(default=False, metadata={"help": "once a block is skipped so are all later ones"})
    kept_patterns: list[str] | None = field(
        default=None, metadata={"help": "subsets of blocks that inputs may take, such as '1101'; any if not given"}
    )
    blocks: list[str] | None = field(
        default=None, metadata={"help": "blocks that can be skipped, in the order of the router's outputs"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.router_after < 0:
            raise ValueError(f"router_after is {self.router_after}; blocks are counted from 0")
        if self.keep_last < 0:
            raise ValueError(f"keep_last is {self.keep_last}; it must be at least 0")
        if self.bypass_rank < 1:
            raise ValueError(f"bypass_rank is {self.bypass_rank}; it must be at least 1")
        widths = {len(pattern) for pattern in self.kept_patterns or ()}
        odd = [pattern for pattern in self.kept_patterns or () if set(pattern) - set("01")]
        if self.kept_patterns == [] or odd or len(widths) > 1:
            raise ValueError(
                f"kept_patterns is {self.kept_patterns}; it holds strings of 0 and 1, one character per block"
            )
