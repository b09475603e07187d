"""What PEFT configs of conditional adapters have in common."""

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
        if self.router_hidden < 1:
            raise ValueError(f"router_hidden is {self.router_hidden}; it must be at least 1")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; it is a probability, 0 to 1")

    def to_dict(self) -> dict[str, Any]:
        """As it is written: the type says what it takes to load it."""
        values: dict[str, Any] = super().to_dict()
        return values | {"peft_type": written_type(self.TYPE)}
