"""Adapters that decide per input, as PEFT types of their own; importing this registers them."""

from rankwise.adapters.conditional.block_tuner import RadBlockModel
from rankwise.adapters.conditional.cogalora import CogaloraModel, CogaloraPeftConfig
from rankwise.adapters.conditional.config import ConditionalPeftConfig
from rankwise.adapters.conditional.drop import drop_unused
from rankwise.adapters.conditional.rad_config import RadloraPeftConfig
from rankwise.adapters.conditional.rad_tuner import RadloraModel

__all__ = [
    "CogaloraModel",
    "CogaloraPeftConfig",
    "ConditionalPeftConfig",
    "RadBlockModel",
    "RadloraModel",
    "RadloraPeftConfig",
    "drop_unused",
]
