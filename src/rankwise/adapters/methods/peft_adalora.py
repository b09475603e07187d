"""PEFT's AdaLoRA as a peer (Zhang et al. 2023, arXiv 2303.10512), run as PEFT's documentation says.

`update_and_allocate(step)` is called once per optimizer step, after the weights moved and while gradients are there;
`total_step`, `tinit`, `tfinal` follow from the length of training. Two things are done for the comparison's sake,
both through PEFT's own attributes:

- PEFT budgets ranks, the comparison budgets parameters. The allocator's target is set to the number of ranks that the
  parameters buy at the present allocation, and at the last allocation to the largest number that fits, found by trying.
- The result is folded into plain LoRA (A' = E·A, B' = B·alpha/ranknum, dead components left out), which is exact.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, final

import torch
from peft import AdaLoraConfig, PeftModel
from pydantic import Field
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, attach_lora, find_matrices
from rankwise.adapters.contract import (
    METHODS,
    Form,
    Method,
    ParameterCount,
    Resize,
    refuse_impossible,
    trainable_state,
)
from rankwise.adapters.export import export_adapter
from rankwise.adapters.lora_method import resolve_budget
from rankwise.adapters.pairs import Pair
from rankwise.adapters.pruning_schedule import PruningConfig
from rankwise.allocation.budget import spent
from rankwise.errors import AllocationError, BudgetError

TOLERANCE = 0.02
"""Share of the parameter budget that may be left over: PEFT drops tied components together and masks whole ranks."""


@METHODS.register("peft_adalora")
class PeftAdaloraConfig(PruningConfig):
    """PEFT's AdaLoRA with PEFT's own defaults; the schedule is given as steps or as fractions of training."""

    name: Literal["peft_adalora"] = "peft_adalora"
    initial_ratio: float = Field(
        default=1.5, gt=1, description="initial rank over target rank (1.5 in the paper and PEFT)"
    )
    orthogonality: float = Field(
        default=0.5, ge=0, description="weight of the orthogonality term (PEFT: orth_reg_weight)"
    )

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "PeftAdalora":
        """Wrap the model with PEFT's AdaLoRA.

        Raises:
            ConfigError: the schedule leaves no step for pruning.
        """
        refuse_impossible(self, total_steps)
        warmup, final_steps = self.phases(total_steps)
        return PeftAdalora(model, self, total_steps=total_steps, warmup=warmup, final_steps=final_steps, seed=seed)


@final
class PeftAdalora(Method):
    """Drives PEFT's allocator and keeps its books in parameters."""

    model: PeftModel

    def __init__(
        self, model: nn.Module, config: PeftAdaloraConfig, *, total_steps: int, warmup: int, final_steps: int, seed: int
    ) -> None:
        self.config = config
        self.matrices = find_matrices(model, config.target_modules)
        self.costs = {name: matrix.cost for name, matrix in self.matrices.items()}
        self.target = resolve_budget(model, config, self.matrices)
        mean_rank = self._affordable(dict.fromkeys(self.matrices, 1)) / len(self.matrices)
        initial = int(-(-config.initial_ratio * mean_rank // 1))
        least = min(m.full_rank for m in self.matrices.values())
        if initial > least:
            raise BudgetError(
                f"peft_adalora: initial rank {initial} is above the full rank {least} of the smallest matrix"
            )
        peft_config = AdaLoraConfig(
            target_r=max(1, round(mean_rank)),
            init_r=initial,
            tinit=warmup,
            tfinal=final_steps,
            deltaT=config.every,
            beta1=config.beta1,
            beta2=config.beta2,
            orth_reg_weight=config.orthogonality,
            total_step=total_steps,
            lora_alpha=config.scaling * initial,  # PEFT divides by the initial rank
            lora_dropout=config.dropout,
        )
        self.model = attach_lora(model, self.matrices, config=peft_config, seed=seed)
        self.prune_from, self.last_allocation = warmup, total_steps - final_steps
        self.allocator = self.model.base_model.rankallocator
        self.layers = {name: self.model.base_model.model.get_submodule(name) for name in self.matrices}
        self.peak = sum(p.numel() for n, p in self.model.named_parameters() if _is_adapter(n) and p.requires_grad)
        self._retarget()

    def after_optimizer_step(self, step: int) -> Resize | None:
        """Let PEFT score, and prune on its schedule."""
        if step == self.last_allocation:
            self.allocator.target_bgt = self._largest_target()
        elif self.prune_from < step < self.last_allocation:
            self._retarget()
        self.model.base_model.update_and_allocate(step)
        return None

    def rank_pattern(self) -> dict[str, int]:
        """Components that PEFT has not masked, per matrix."""
        return {name: int(mask.sum()) for name, mask in self._live().items()}

    def parameter_count(self) -> ParameterCount:
        """`final` as plain LoRA (what is exported); `peak` with every component that was trained."""
        return ParameterCount(final=spent(self.rank_pattern(), self.costs), peak=self.peak)

    def check_finished(self) -> None:
        """PEFT pruned, and what is left is the budget within `TOLERANCE`."""
        if not self.model.peft_config[ADAPTER].rank_pattern:
            raise AllocationError(
                f"peft_adalora never pruned: it was to do so after step {self.prune_from}. Either training stopped "
                "before, or its hooks were not called: does the trainer have a RankwiseCallback?"
            )
        ranks = self.rank_pattern()
        total = sum(ranks.values()) if self.target.unit == "ranks" else spent(ranks, self.costs)
        slack = max(TOLERANCE * self.target.total, 1 if self.target.unit == "ranks" else max(self.costs.values()))
        if not self.target.total - slack <= total <= self.target.total:
            raise AllocationError(
                f"peft_adalora ended at {total:,} {self.target.unit}, its budget is {self.target.total:,}: it was to "
                f"get there at step {self.last_allocation}; did training stop before?"
            )

    def task_loss_model(self) -> nn.Module:
        """The adapted Transformers model: PEFT adds the orthogonality term in the wrapper around it."""
        inner: nn.Module = self.model.base_model.model
        return inner

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, PEFT's moving averages and masks (PEFT itself saves neither)."""
        state = trainable_state(self.model) | {"rankwise.target": torch.tensor(self.allocator.target_bgt)}
        for kind in ("exp_avg_ipt", "exp_avg_unc"):
            state |= {f"rankwise.{kind}.{n}": t.clone() for n, t in getattr(self.allocator, kind).items()}
        pattern = self.model.peft_config[ADAPTER].rank_pattern or {}
        return state | {f"rankwise.mask.{n}": torch.tensor(mask) for n, mask in pattern.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up weights, averages and masks; shapes never change under PEFT's AdaLoRA."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])
        self.allocator.target_bgt = int(state["rankwise.target"])
        device = next(self.model.parameters()).device
        memory = {kind: _with_prefix(state, f"rankwise.{kind}.", device) for kind in ("exp_avg_ipt", "exp_avg_unc")}
        self.allocator.exp_avg_ipt, self.allocator.exp_avg_unc = memory["exp_avg_ipt"], memory["exp_avg_unc"]
        self.allocator.ipt = {name: torch.zeros_like(t) for name, t in memory["exp_avg_ipt"].items()}
        masks = _with_prefix(state, "rankwise.mask.", torch.device("cpu"))
        if masks:
            self.model.peft_config[ADAPTER].rank_pattern = {n: mask.tolist() for n, mask in masks.items()}

    def export(self, directory: Path, form: Form = "compact") -> Path:
        """Fold E, alpha and PEFT's constant divisor into plain LoRA factors of the live components."""
        self.check_finished()
        pairs = {}
        for name, live in self._live().items():
            layer = self.layers[name]
            a = (layer.lora_A[ADAPTER] * layer.lora_E[ADAPTER]).detach()[live]
            scale = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER] + 1e-5)
            pairs[name] = Pair(a, layer.lora_B[ADAPTER].detach()[:, live] * scale)
        return export_adapter(self.model, pairs, directory, form)

    def _live(self) -> dict[str, Tensor]:
        """Boolean mask (initial rank,) per matrix; all True before the first pruning."""
        pattern = self.model.peft_config[ADAPTER].rank_pattern
        if not pattern:
            return {n: torch.ones(layer.lora_E[ADAPTER].shape[0]).bool() for n, layer in self.layers.items()}
        # PEFT's own save_pretrained (a stock Trainer's checkpoint) strips the adapter's name from the keys.
        stripped = not any(key.endswith(f".{ADAPTER}") for key in pattern)
        keys = {name: _mask_key(name).removesuffix(f".{ADAPTER}" if stripped else "") for name in self.matrices}
        return {name: torch.tensor(pattern[key]) for name, key in keys.items()}

    def _affordable(self, weights: Mapping[str, float]) -> int:
        """How many ranks the budget buys when they are spread like `weights` (evenly if those are all 0)."""
        if self.target.unit == "ranks":
            return self.target.total
        if not any(weights.values()):  # PEFT drops tied components together, at worst all of them
            weights = dict.fromkeys(weights, 1)
        total = sum(weights.values())
        price = sum(self.costs[name] * weight / total for name, weight in weights.items())
        return int(self.target.total // price)

    def _retarget(self) -> None:
        """Aim at the number of ranks that the budget buys at the present allocation."""
        ranks = self.rank_pattern()
        self.allocator.target_bgt = min(self._affordable(ranks), self.allocator.init_bgt - 1)

    @torch.no_grad()
    def _largest_target(self) -> int:
        """The most ranks whose parameters fit the budget, by bisection over what PEFT's own masking would keep."""
        values = [layer.lora_E[ADAPTER] for layer in self.layers.values()]
        saved = [value.clone() for value in values]
        low, high = 1, self.allocator.init_bgt - 1
        while low < high:
            middle = (low + high + 1) // 2
            pattern = self.allocator.mask_to_budget(self.task_loss_model(), middle)
            for value, copy in zip(values, saved, strict=True):
                value.copy_(copy)
            kept = {name: sum(pattern[_mask_key(name)]) for name in self.matrices}
            fits = (sum(kept.values()) if self.target.unit == "ranks" else spent(kept, self.costs)) <= self.target.total
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def _mask_key(name: str) -> str:
    return f"{name}.lora_E.{ADAPTER}"


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _with_prefix(state: Mapping[str, Tensor], prefix: str, device: torch.device) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value.clone().to(device) for key, value in state.items() if key.startswith(prefix)
    }
