"""Settings of block mode: one early router decides which later blocks an input skips."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rankwise.allocation.schedules import Length
from rankwise.allocation.shares import Share

Patterns = Literal["any", "exit"] | int
"""`any`: every subset of the skippable blocks; `exit`: a block is kept only if all before it are; K: K subsets."""


class BlockSettings(BaseModel):
    """What block mode needs to know beside budget, scaling, dropout and target modules."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: Share = Field(
        default=0.5, description="target share of the blocks that can be skipped and are executed: '50%' or 0.5"
    )
    router_after: int = Field(default=0, ge=0, description="block after which the router decides, the first is 0")
    keep_last: int = Field(
        default=1,
        ge=0,
        description="blocks at the end that every input keeps: what reads the hidden states (a classifier on the first "
        "token, a language head) has learned to read theirs",
    )
    router_hidden: int = Field(default=16, ge=1, description="width of the middle of the router")
    bypass_rank: int = Field(default=4, ge=1, description="rank of the low-rank path that replaces a skipped block")
    patterns: Patterns = Field(
        default="any",
        description="`any`: every subset of blocks; `exit`: once a block is skipped so are all later ones; a number: "
        "at most so many subsets, the most frequent ones of the training examples",
    )
    full_depth: Length = Field(
        default=0.2, description="how long plain LoRA is trained with every block: steps, or a fraction of all steps"
    )
    annealing: Length = Field(
        default=0.5,
        description="when the share reaches its target and the temperature its end: a step, or a fraction of all steps",
    )
    temperature: tuple[float, float] = Field(
        default=(2.0, 0.5),
        description="what the router's logits are divided by in training, at first and at the end; in units of their "
        "standard deviation over examples and blocks, once that is above 1",
    )
    full_rows: float = Field(
        default=0.25,
        ge=0,
        lt=1,
        description="share of the inputs that keep every block while the others skip, drawn anew at every step: full "
        "depth, which the others learn from, stays trained",
    )
    distillation: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the distance to what the model says at full depth; 0 turns it off",
    )
    distillation_temperature: float = Field(
        default=2.0, gt=0, allow_inf_nan=False, description="what both logits are divided by for it"
    )

    @field_validator("patterns")
    @classmethod
    def _patterns(cls, value: Patterns) -> Patterns:
        if isinstance(value, int) and value < 2:
            raise ValueError(f"{value} patterns cannot tell inputs apart; use 2 or more, 'any' or 'exit'")
        return value
