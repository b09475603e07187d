"""What PEFT configs of conditional adapters have in common."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft import LoraConfig

from rankwise.adapters.conditional.register import peft_type, written_type

_FORBIDDEN = (
    "use_dora", "use_rslora", "use_bdlora", "lora_bias", "arrow_config", "alora_invocation_tokens", "layer_replication",
    "target_parameters", "velora_config", "monteclora_config", "mica", "kasa_config", "target_modules_to_tie",
)  # fmt: skip
"""LoRA's own variants: each is a forward pass of its own."""


@dataclass
class ConditionalPeftConfig(LoraConfig):
    """A LoRA config whose adapters are used for some inputs only.

    Args:
        router_hidden: width of the middle of every router.
        threshold: a gate is open in inference where its probability is above this.
        usage: module -> share of training examples that open it, measured when training ended.
    """

    TYPE: ClassVar[str] = ""
    """Name of the PEFT type."""

    router_hidden: int = field(default=4, metadata={"help": "width of the middle of every router"})
    threshold: float = field(default=0.5, metadata={"help": "probability above which a gate is open in inference"})
    usage: dict[str, float] | None = field(
        default=None, metadata={"help": "module -> share of training examples that open it"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type(self.TYPE)
        set_fields = [name for name in _FORBIDDEN if getattr(self, name, None)]
        if set_fields:
            raise ValueError(f"{self.TYPE} cannot be combined with {set_fields[0]}")
        if self.init_lora_weights not in (True, False, "gaussian", "orthogonal"):
            raise ValueError(
                f"{self.TYPE} cannot start from init_lora_weights='{self.init_lora_weights}': base weights must stay "
                "what they are for inputs whose gates are closed; use True, False, 'gaussian' or 'orthogonal'"
            )
        check_whole("router_hidden", self.router_hidden, "it must be at least 1", least=1)
        check_number("threshold", self.threshold, "it is a probability, 0 to 1", low=0, high=1)
        for name, rank in {"r": self.r, **_entries("rank_pattern", self.rank_pattern)}.items():
            check_whole(name, rank, "ranks are whole numbers, at least 1", least=1)
        for name, alpha in {"lora_alpha": self.lora_alpha, **_entries("alpha_pattern", self.alpha_pattern)}.items():
            check_number(name, alpha, "it is a number")

    def to_dict(self) -> dict[str, Any]:
        """As it is written: the type says what it takes to load it."""
        values: dict[str, Any] = super().to_dict()
        return values | {"peft_type": written_type(self.TYPE)}


def check_whole(name: str, value: object, allowed: str, *, least: int) -> None:
    """Refuse what is not a whole number from `least` on.

    Raises:
        ValueError: names the field, the value and what is allowed.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; {allowed}")


def check_number(name: str, value: object, allowed: str, *, low: float = -math.inf, high: float = math.inf) -> None:
    """Refuse what is not a finite number from `low` to `high`.

    Raises:
        ValueError: names the field, the value and what is allowed.
    """
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(f"{name} is {value!r}; {allowed}")


def _entries(name: str, pattern: object) -> dict[str, object]:
    if pattern is not None and not isinstance(pattern, dict):
        raise ValueError(f"{name} is {pattern!r}; it holds a number by module")
    return {f"{name} of {module}": value for module, value in (pattern or {}).items()}
