"""What every method on stock PEFT LoRA layers has in common. Abstract: methods derive from it and are final."""

from abc import ABC
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, Matrix, adapted_layers, attach_lora, base_parameter_count, find_matrices
from rankwise.adapters.contract import AdapterConfig, Form, Method, ParameterCount, trainable_state
from rankwise.adapters.export import lora_pairs, write_compact
from rankwise.adapters.patterns import set_patterns
from rankwise.adapters.resize import apply_resize
from rankwise.allocation.budget import Target, allocate, parse_budget, spent


class LoraMethod(Method, ABC):
    """Adapters on PEFT LoRA layers, started at the uniform allocation of the budget.

    Where the budget is no multiple of one rank everywhere, some matrices start one rank higher, so that
    exactly the same number of parameters is spent as by every other method.
    """

    model: PeftModel

    def __init__(self, model: nn.Module, config: AdapterConfig, *, seed: int) -> None:
        self.matrices: dict[str, Matrix] = find_matrices(model, config.target_modules)
        self.costs = {name: matrix.cost for name, matrix in self.matrices.items()}
        self.target: Target = resolve_budget(model, config, self.matrices)
        self.seed = seed
        peft_config = uniform_config(config, self.matrices, self.target)
        self.model = attach_lora(model, self.matrices, config=peft_config, seed=seed)
        self.peak = spent(self.rank_pattern(), self.costs)

    def rank_pattern(self) -> dict[str, int]:
        """Live rank per matrix; 0 where the adapter has been taken off."""
        layers = adapted_layers(self.model)
        return {name: layers[name].r[ADAPTER] if name in layers else 0 for name in self.matrices}

    def parameter_count(self) -> ParameterCount:
        """Adapter parameters: rank x (in + out), summed."""
        final = spent(self.rank_pattern(), self.costs)
        self.peak = max(self.peak, final)
        return ParameterCount(final, self.peak)

    def state_dict(self) -> dict[str, Tensor]:
        """Trainable weights at their live shapes (adapters and head)."""
        return trainable_state(self.model) | {"rankwise.peak": torch.tensor(self.peak)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resize every module to the saved shapes, then copy the weights."""
        saved = {name: state.get(f"base_model.model.{name}.lora_A.{ADAPTER}.weight") for name in self.matrices}
        ranks = {name: 0 if a is None else a.shape[0] for name, a in saved.items()}
        apply_resize(self.model, ranks, kept={name: range(rank) for name, rank in ranks.items()})  # shapes matter only
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])
        self.peak = int(state["rankwise.peak"])

    def export(self, directory: Path, form: Form = "compact") -> Path:
        """Write a plain PEFT LoRA checkpoint."""
        self.check_finished()
        return write_compact(self.model, lora_pairs(self.model), directory)


def resolve_budget(model: nn.Module, config: AdapterConfig, matrices: Mapping[str, Matrix]) -> Target:
    """The budget of `config` on this model, in whole ranks."""
    return parse_budget(config.budget).resolve([m.cost for m in matrices.values()], base_parameter_count(model))


def uniform_config(config: AdapterConfig, matrices: Mapping[str, Matrix], target: Target) -> LoraConfig:
    """A PEFT config that spends `target` uniformly, every module at the same scaling."""
    costs = {name: matrix.cost for name, matrix in matrices.items()}
    caps = {name: matrix.full_rank for name, matrix in matrices.items()}
    ranks = allocate(dict.fromkeys(matrices, 1.0), costs, target, floor=1, cap=caps)
    peft_config = LoraConfig(lora_dropout=config.dropout)
    set_patterns(peft_config, ranks, {name: config.scaling * rank for name, rank in ranks.items()})
    return peft_config
