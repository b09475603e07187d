"""What every method on stock PEFT LoRA layers has in common. Abstract: methods derive from it and are final."""

import math
from abc import ABC
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, Matrix, adapted_layers, attach_lora, base_parameter_count, find_matrices
from rankwise.adapters.contract import AdapterConfig, Form, Method, ParameterCount, trainable_state
from rankwise.adapters.export import export_adapter, lora_pairs
from rankwise.adapters.fused import fuse
from rankwise.adapters.patterns import set_patterns
from rankwise.adapters.resize import apply_resize
from rankwise.allocation.budget import Target, allocate, parse_budget, spent
from rankwise.errors import BudgetError


class LoraMethod(Method, ABC):
    """Adapters on PEFT LoRA layers, started at the uniform allocation of the budget, or of `initial` where a method
    trains more than it ends with (see `enlarged_target`).

    Where the budget is no multiple of one rank everywhere, some matrices start one rank higher, so that
    exactly the same number of parameters is spent as by every other method.
    """

    model: PeftModel
    config: AdapterConfig

    def __init__(self, model: nn.Module, config: AdapterConfig, *, seed: int, initial: Target | None = None) -> None:
        self.config = config
        self.matrices: dict[str, Matrix] = find_matrices(model, config.target_modules)
        self.costs = {name: matrix.cost for name, matrix in self.matrices.items()}
        self.target: Target = resolve_budget(model, config, self.matrices)
        self.seed = seed
        ranks = self.start_ranks(initial or self.target)
        live = [name for name, rank in ranks.items() if rank > 0]
        self.model = attach_lora(model, live, config=lora_config(config, ranks), seed=seed)
        fuse(self.model)
        self.peak = spent(self.rank_pattern(), self.costs)

    def start_ranks(self, target: Target) -> dict[str, int]:
        """Ranks to begin with, by name, 0 allowed: uniform at `target`. For methods that begin elsewhere to override;
        called while building, when `matrices`, `costs`, `target` and `seed` are there and the model is not."""
        caps = {name: matrix.full_rank for name, matrix in self.matrices.items()}
        return allocate(dict.fromkeys(self.matrices, 1.0), self.costs, target, floor=1, cap=caps)

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
        kept = {name: range(rank) for name, rank in ranks.items()}  # shapes matter only
        apply_resize(self.model, ranks, kept=kept, restore=True)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])
        self.peak = int(state["rankwise.peak"])

    def export(self, directory: Path, form: Form = "compact") -> Path:
        """Write a plain PEFT LoRA checkpoint, or the whole model with it merged."""
        self.check_finished()
        return export_adapter(self.model, lora_pairs(self.model), directory, form)


def resolve_budget(model: nn.Module, config: AdapterConfig, matrices: Mapping[str, Matrix]) -> Target:
    """The budget of `config` on this model, in whole ranks."""
    return parse_budget(config.budget).resolve([m.cost for m in matrices.values()], base_parameter_count(model))


def enlarged_target(model: nn.Module, config: AdapterConfig, ratio: float) -> Target:
    """What uniform LoRA costs at `ratio` times the mean rank that the budget of `config` buys, rounded up.

    No matrix is given more than its full rank; if that leaves less than the budget itself, the others get more.

    Raises:
        BudgetError: not even full rank everywhere holds the budget.
    """
    matrices = find_matrices(model, config.target_modules)
    target = resolve_budget(model, config, matrices)
    costs = {name: matrix.cost for name, matrix in matrices.items()}
    mean = target.total / (len(costs) if target.unit == "ranks" else sum(costs.values()))
    highest = max(matrix.full_rank for matrix in matrices.values())
    wanted = math.ceil(ratio * mean - 1e-9)  # 1.1 · 10 is a little more than 11
    for rank in range(min(wanted, highest), highest + 1):
        ranks = {name: min(rank, matrix.full_rank) for name, matrix in matrices.items()}
        held = sum(ranks.values()) if target.unit == "ranks" else spent(ranks, costs)
        if held >= target.total:
            return Target(spent(ranks, costs), "parameters")
    raise BudgetError(
        f"{config.name}: budget '{config.budget}' ({target.total:,} {target.unit}) is more than all matrices hold at "
        "their full ranks; lower it"
    )


def lora_config(config: AdapterConfig, ranks: Mapping[str, int]) -> LoraConfig:
    """A PEFT config of these ranks (modules of rank 0 are left out), every module at the same scaling."""
    live = {name: rank for name, rank in ranks.items() if rank > 0}
    peft_config = LoraConfig(lora_dropout=config.dropout)
    set_patterns(peft_config, live, {name: config.scaling * rank for name, rank in live.items()})
    return peft_config
