"""Full fine-tuning: every weight moves. The reference that adapters are measured against."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor, nn

from rankwise.adapters.contract import METHODS, Form, Method, MethodConfig, ParameterCount, trainable_state
from rankwise.adapters.export import new_directory
from rankwise.adapters.merge import save_model
from rankwise.errors import ConfigError, Finding


@METHODS.register("full")
class FullConfig(MethodConfig):
    """Full fine-tuning has no budget and no adapter."""

    name: Literal["full"] = "full"

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Full":
        """Unfreeze everything."""
        return Full(model, self)


@final
class Full(Method):
    """The base model itself, trained whole. Its checkpoint is a Transformers model folder."""

    def __init__(self, model: nn.Module, config: FullConfig) -> None:
        self.config = config
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        self.model = model

    def rank_pattern(self) -> dict[str, int]:
        """Empty: there are no adapters."""
        return {}

    def parameter_count(self) -> ParameterCount:
        """Every weight counts, the head too: all of them are written to the checkpoint."""
        total = sum(p.numel() for p in self.model.parameters())
        return ParameterCount(final=total, peak=total)

    def state_dict(self) -> dict[str, Tensor]:
        """All weights."""
        return trainable_state(self.model)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy all weights back."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(state[name])

    def export(self, directory: Path, form: Form = "merged") -> Path:
        """Write a Transformers model folder: `merged` is the only form there is.

        Raises:
            ConfigError: another form was asked for.
        """
        if form != "merged":
            message = f"full fine-tuning has no adapter to write as '{form}'; its form is 'merged'"
            raise ConfigError("export", [Finding("form", message)])
        with new_directory(directory) as folder:
            save_model(self.model, folder)
        return directory
