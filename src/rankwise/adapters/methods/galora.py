"""GaLoRA: one learned gate per module; modules that do too little are shrunk to nothing and removed during training.

    ΔW_m = g_m · s · B_m A_m ,    g_m one trained number per module, 1 at first.

Training starts at uniform rank with budget / keep parameters. From the end of the warm-up on, every optimizer step is
followed by a proximal step on what the modules do (`allocation.shrinkage`), whose strength is set so that the share of
living parameters follows a cubic from 100 % down to `keep`. It scales B, as weight decay does, so that a module that
lives learns as fast as before; the gate of a module that dies is set to exactly zero, and what it had learned waits,
in case the gate moves away from zero by more than the next step takes. A module that stayed at zero for `patience`
steps is removed for real, parameters and moments included: once the lowest blocks carry no adapter any more, the
backward pass ends above them. `final` steps before the end the living are trimmed to the budget exactly, by truncated
SVD, and what is left trains on undisturbed. Gates are folded into A wherever the adapter is saved.
"""

from collections.abc import Mapping
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.contract import METHODS, AdapterConfig, Resize, refuse_impossible
from rankwise.adapters.gated import add_gates, gate_of
from rankwise.adapters.lora_method import LoraMethod, enlarged_target
from rankwise.allocation.budget import spent
from rankwise.allocation.schedules import Length, in_steps
from rankwise.allocation.shares import Share
from rankwise.allocation.shrinkage import (
    Decline,
    can_hold,
    delta_norms,
    shrink_factors,
    surviving_ranks,
    threshold,
)
from rankwise.errors import AllocationError, Finding

POWERS = {"lasso": 1, "adaptive": 2}
"""Penalty -> q in the proximal step (see `allocation.shrinkage`)."""


@METHODS.register("galora")
class GaloraConfig(AdapterConfig):
    """One learned gate per module; the weakest modules shrink to nothing and are removed while training goes on."""

    name: Literal["galora"] = "galora"
    keep: Share = Field(
        default=0.35,
        description="share of the adapter parameters trained at first that is left at the end, '35%' or 0.35; training "
        "starts at uniform rank with budget / keep parameters (rounded up to a whole rank, at most full rank)",
    )
    warmup: Length = Field(
        default=0.2, description="when shrinking starts: a step (int), or a fraction of all steps (0 to 1)"
    )
    final: Length = Field(
        default=0.3, description="how long the modules that are left train on undisturbed: steps, or a fraction"
    )
    patience: Length = Field(
        default=0.02,
        description="how long a gate has to be zero before its module is removed; removals happen at most this often",
    )

    penalty: Literal["adaptive", "lasso"] = Field(
        default="adaptive",
        description="`adaptive` takes little from strong modules; `lasso` as much from all, as an L1 penalty does",
    )

    def check(self, total_steps: int) -> list[Finding]:
        """Between the warm-up and the final stretch there have to be steps left to shrink in."""
        warmup, stretch = in_steps(self.warmup, total_steps), in_steps(self.final, total_steps)
        if warmup + stretch < total_steps:
            return []
        message = (
            f"{self.warmup} and {self.final} are the first {warmup} and last {stretch} of {total_steps} steps, which "
            f"leaves none to shrink modules in; together they may be at most {total_steps - 1}, e.g. 0.2 and 0.3"
        )
        return [Finding("method.warmup, method.final", message)]

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Galora":
        """Wrap the model at the larger uniform rank, with a gate in every module.

        Raises:
            ConfigError: no steps are left to shrink modules in.
        """
        refuse_impossible(self, total_steps)
        return Galora(model, self, total_steps=total_steps, seed=seed)


class _Group:
    """Living and dead modules of one shape: the raw A (rank, in), B (out, rank) and gate (1,) of each."""

    def __init__(self, modules: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> None:
        self.names = list(modules)
        self._a, self._b, self._gates = ([parts[i] for parts in modules.values()] for i in range(3))

    def norms(self) -> Tensor:
        """‖g B A‖_F, (modules,)."""
        return delta_norms(torch.stack(self._a), torch.stack(self._b)) * self.gates().abs()

    def gates(self) -> Tensor:
        """(modules,), a copy."""
        return torch.cat(self._gates)

    def scale(self, factors: Tensor) -> None:
        """Multiply every ΔW with its factor: B where it is above 0, else the gate, so that what was learned stays.

        All modules at once: stacked, multiplied, copied back.
        """
        living = torch.where(factors > 0, factors, 1.0)
        torch._foreach_copy_(self._b, list((torch.stack(self._b) * living[:, None, None]).to(self._b[0].dtype)))
        torch._foreach_copy_(self._gates, list(torch.where(factors > 0, self.gates(), 0.0).split(1)))


class _Modules:
    """The modules that still carry an adapter, grouped by shape; everything is in the order of `names`.

    Valid until ranks change.
    """

    def __init__(self, model: nn.Module, price: Mapping[str, int], costs: Mapping[str, int]) -> None:
        shapes: dict[tuple[torch.Size, torch.Size], dict[str, tuple[Tensor, Tensor, Tensor]]] = {}
        for name, layer in adapted_layers(model).items():
            gated, b = gate_of(layer), layer.lora_B[ADAPTER].weight
            assert gated is not None
            shapes.setdefault((gated.raw.shape, b.shape), {})[name] = (gated.raw, b, gated.gate)
        self.groups = [_Group(modules) for modules in shapes.values()]
        self.names = [name for group in self.groups for name in group.names]
        ranks = [a.shape[0] for modules in shapes.values() for a, _, _ in modules.values()]
        device = next(model.parameters()).device
        self.ranks = dict(zip(self.names, ranks, strict=True))
        self.sizes = torch.tensor([price[n] * r for n, r in self.ranks.items()], device=device)
        self.weights = torch.tensor([costs[n] * r for n, r in self.ranks.items()], device=device).sqrt()

    def norms(self) -> Tensor:
        """‖g B A‖_F / √p, (modules,)."""
        return torch.cat([group.norms() for group in self.groups]) / self.weights

    def scale(self, factors: Tensor) -> None:
        """Multiply every ΔW with its factor."""
        for group, part in zip(self.groups, factors.split([len(g.names) for g in self.groups]), strict=True):
            group.scale(part)

    def closed(self) -> Tensor:
        """Whose gate is exactly zero, (modules,)."""
        return torch.cat([group.gates() for group in self.groups]) == 0


@final
class Galora(LoraMethod):
    """Takes a proximal step after every optimizer step, removes what is dead, and trims the rest to the budget.

    `rank_pattern` counts a module until it is removed: one whose gate is zero still costs memory and time, may come
    back, and would take a look at the device at every step to find.
    """

    config: GaloraConfig

    def __init__(self, model: nn.Module, config: GaloraConfig, *, total_steps: int, seed: int) -> None:
        super().__init__(model, config, seed=seed, initial=enlarged_target(model, config, 1 / float(config.keep)))
        add_gates(self.model, initial=1.0, per_component=False)
        self.power = POWERS[config.penalty]
        self.patience = in_steps(config.patience, total_steps)
        self.price = dict.fromkeys(self.costs, 1) if self.target.unit == "ranks" else self.costs
        self.decline = Decline(
            first=in_steps(config.warmup, total_steps),
            last=total_steps - in_steps(config.final, total_steps),
            total=spent(self.rank_pattern(), self.price),
            final=self.target.total,
        )
        self.trimmed = False
        self._idle = dict.fromkeys(self.matrices, 0)  # steps at zero per module, up to the last change of ranks
        self._closed_for: Tensor | None = None  # the same since then, on the device, in the order of `_modules`
        self._modules: _Modules | None = None

    @torch.no_grad()
    def after_optimizer_step(self, step: int) -> Resize | None:
        """Shrink; ask for removals from time to time, and for the final ranks when shrinking ends."""
        if self.trimmed or step <= self.decline.first:
            return None
        modules, closed_for = self._present()
        norms = modules.norms() * self.config.scaling
        tau, dies = threshold(norms, modules.sizes, self.decline, step, power=self.power)
        factors = shrink_factors(norms, tau, dies, power=self.power)
        modules.scale(factors)
        self._closed_for = torch.where(modules.closed(), closed_for + 1, 0)
        if step >= self.decline.last:
            return self._trim(modules, norms * factors)
        return self._remove(modules, norms * factors) if step % self.patience == 0 else None

    def check_finished(self) -> None:
        """Shrinking came to its end and the budget is spent to the last parameter."""
        if not self.trimmed:
            raise AllocationError(
                f"galora never came to its final ranks: it was to do so after step {self.decline.last}. Either "
                "training stopped before, or its hooks were not called: does the trainer have a RankwiseCallback?"
            )
        total = spent(self.rank_pattern(), self.price)
        if total != self.target.total:
            raise AllocationError(f"galora ended at {total:,} {self.target.unit}, its budget is {self.target.total:,}")

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and gates, how long each gate has been zero, and whether the final ranks are reached."""
        memory = {"idle": torch.tensor(list(self._idle_steps().values())), "trimmed": torch.tensor(self.trimmed)}
        return super().state_dict() | {f"rankwise.{key}": value for key, value in memory.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up weights, gates and ranks."""
        super().load_state_dict(state)
        self.trimmed = bool(state["rankwise.trimmed"])
        self._idle = dict(zip(self.matrices, state["rankwise.idle"].tolist(), strict=True))
        self._modules = self._closed_for = None

    def _present(self) -> tuple[_Modules, Tensor]:
        if self._modules is None or self._closed_for is None:
            self._modules = _Modules(self.model, self.price, self.costs)
            idle = [self._idle[name] for name in self._modules.names]
            self._closed_for = torch.tensor(idle, device=self._modules.sizes.device)
        return self._modules, self._closed_for

    def _idle_steps(self) -> dict[str, int]:
        """Steps that each module's gate has been zero; looks at the device."""
        if self._modules is None or self._closed_for is None:
            return self._idle
        return self._idle | dict(zip(self._modules.names, self._closed_for.tolist(), strict=True))

    def _remove(self, modules: _Modules, norms: Tensor) -> Resize | None:
        """Take off what has been at zero for long enough, but nothing that the budget cannot do without."""
        idle = self._idle_steps()
        gone = [name for name in modules.names if idle[name] >= self.patience]
        ranks = modules.ranks
        while gone and not can_hold([n for n in ranks if n not in gone], ranks, self.costs, self.target):
            gone.pop()
        if not gone:
            return None
        return self._resize(ranks | dict.fromkeys(gone, 0), dict(zip(modules.names, norms.tolist(), strict=True)))

    def _trim(self, modules: _Modules, norms: Tensor) -> Resize:
        strength = dict(zip(modules.names, norms.tolist(), strict=True))
        self.trimmed = True
        return self._resize(surviving_ranks(strength, modules.ranks, self.costs, self.target), strength)

    def _resize(self, ranks: Mapping[str, int], strength: Mapping[str, float]) -> Resize:
        self._idle = self._idle_steps()
        self._modules = self._closed_for = None
        names = self.matrices
        return Resize({n: ranks.get(n, 0) for n in names}, {n: strength.get(n, 0.0) for n in names})
