"""Adapters that decide per input, as PEFT types of their own; importing this registers them."""

from rankwise.adapters.conditional.cogalora import CogaloraModel, CogaloraPeftConfig
from rankwise.adapters.conditional.config import ConditionalPeftConfig

__all__ = ["CogaloraModel", "CogaloraPeftConfig", "ConditionalPeftConfig"]
