"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512), ours.

Every matrix starts at `initial_ratio` times the mean rank of the budget, in the form P Λ Q (B = P, A = Q, Λ a gate in
the rank dimension, zero at first). After every step the importance of all components is updated
(`allocation.importance`); on a cubic schedule (`allocation.schedules.cubic`) those that the budget no longer holds get
λ = 0, and may come back with a later allocation. A penalty keeps A and B near orthonormal (`adapters.orthogonality`).
At the last allocation the budget is spent exactly, and what it does not hold is removed for good, optimizer state
included.

Differences to the paper and to PEFT, all meant:

- λ of a pruned component is zero after *every* optimizer step, not only after an allocation: at any time the model in
  memory is the model that would be saved.
- The budget may be counted in parameters, and is met exactly; equal scores are not pruned together.
- The penalty is no part of `forward`, so evaluation never sees it, and stops with the components that it is for.
- Scores stand still at the last allocation, as in both codes, and are dropped after it.
"""

from collections.abc import Mapping
from typing import Literal, final

import torch
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.contract import METHODS, Resize, generator_for, refuse_impossible
from rankwise.adapters.distributed import all_mean
from rankwise.adapters.gated import add_gates, gate_of
from rankwise.adapters.lora_method import LoraMethod, enlarged_target
from rankwise.adapters.orthogonality import Orthogonality
from rankwise.adapters.pruning_schedule import PruningConfig
from rankwise.allocation.budget import Target, spent
from rankwise.allocation.components import keep_components
from rankwise.allocation.importance import Importance, Triplets
from rankwise.allocation.schedules import cubic
from rankwise.errors import AllocationError

SPREAD = 0.02
"""Standard deviation of the entries that A and B start from, as in the authors' code and PEFT."""
AVERAGES, PARTS = ("rankwise.sensitivity", "rankwise.uncertainty"), ("gate", "A", "B")
"""Parts of the keys under which the averages are saved."""


@METHODS.register("adalora")
class AdaloraConfig(PruningConfig):
    """AdaLoRA, ours: components pruned by importance on a cubic schedule, then removed; ends as plain LoRA."""

    name: Literal["adalora"] = "adalora"
    initial_ratio: float = Field(
        default=1.5, ge=1, description="initial rank over target rank (1.5 in the paper); 1 prunes next to nothing"
    )
    orthogonality: float = Field(
        default=0.1, ge=0, description="weight of the orthogonality penalty (the paper: 0.1 on most tasks, 0.3 and 0.5)"
    )

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Adalora":
        """Wrap the model at the initial rank.

        Raises:
            ConfigError: the schedule leaves no step for pruning.
            BudgetError: the budget cannot be spent exactly out of the initial components.
        """
        refuse_impossible(self, total_steps)
        warmup, final_steps = self.phases(total_steps)
        return Adalora(model, self, warmup=warmup, last=total_steps - final_steps, seed=seed)


@final
class Adalora(LoraMethod):
    """Scores until `last`, prunes from `warmup` + 1 on, removes at `last`."""

    config: AdaloraConfig

    def __init__(self, model: nn.Module, config: AdaloraConfig, *, warmup: int, last: int, seed: int) -> None:
        self._ranks: dict[str, int] = {}
        super().__init__(model, config, seed=seed, initial=enlarged_target(model, config, config.initial_ratio))
        self.warmup, self.last = warmup, last
        self.initial = self._ranks = super().rank_pattern()
        self.peak += sum(self.initial.values())  # λ is trained too
        self.finished = False
        self._kept = {name: list(range(rank)) for name, rank in self.initial.items()}
        self._masks: list[Tensor] = []  # per matrix (rank,), ones and zeros, once anything is pruned
        self._importance: Importance | None = None  # made at the first step, on the device the model then is on
        self._restored: dict[str, Tensor] = {}
        self._orthogonality: Orthogonality | None = None
        self._triplets: dict[str, Triplets] = {}
        add_gates(self.model, initial=0.0, per_component=True)
        self._draw_factors()
        nothing = {name: torch.zeros(rank) for name, rank in self.initial.items()}
        keep_components(nothing, self.costs, self.target, exact=True)  # if it must fail, then now

    def penalty(self) -> Tensor | None:
        """`orthogonality` times how far A and B are from orthonormal.

        Pruned components are in it until they are removed: scores contain the penalty's gradient, and leaving it out
        for some would keep them from ever coming back.
        """
        if self.config.orthogonality == 0:
            return None
        if self._orthogonality is None:
            factors = list(self._living().values())
            rows, columns = [t.a for t in factors], [t.b for t in factors]
            self._orthogonality = Orthogonality(rows, columns, matrices=len(self.matrices))
        return self.config.orthogonality * self._orthogonality()

    def after_optimizer_step(self, step: int) -> Resize | None:
        """Score, allocate if it is time, and keep λ of pruned components at zero."""
        if self.finished:
            return None
        if step >= self.last:
            return self._remove()
        self._score()
        if step > self.warmup and step % self.config.every == 0:
            self._prune(step)
        self._hold_zero()
        return None

    def rank_pattern(self) -> dict[str, int]:
        """Components that are not pruned, per matrix; known without looking at the model."""
        return dict(self._ranks) or super().rank_pattern()

    def check_finished(self) -> None:
        """What was pruned is gone, and what is left costs exactly the budget."""
        if not self.finished:
            raise AllocationError(
                f"adalora did not come to its last allocation: it was to be after step {self.last}. Either training "
                "stopped before, or its hooks were not called: does the trainer have a RankwiseCallback?"
            )
        ranks = super().rank_pattern()
        total = sum(ranks.values()) if self.target.unit == "ranks" else spent(ranks, self.costs)
        if total != self.target.total:
            raise AllocationError(
                f"adalora ended at {total:,} {self.target.unit}, its budget is {self.target.total:,}: was the resize "
                f"it asked for at step {self.last} applied? A RankwiseCallback does that"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Weights; until the last allocation also the averages and which components are pruned."""
        state = super().state_dict() | {"rankwise.finished": torch.tensor(self.finished)}
        if self.finished:
            return state
        live = {"rankwise.live": torch.cat(list(self._live().values()))}
        return state | live | {key: average.clone() for key, average in self._averages().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up weights, ranks, averages and pruned components."""
        self._ranks = {}
        super().load_state_dict(state)
        self.finished = bool(state["rankwise.finished"])
        self._forget()
        if self.finished:
            self._ranks = super().rank_pattern()
            return
        self._restored = {key: average.clone() for key, average in state.items() if key.startswith(AVERAGES)}
        live = state["rankwise.live"].split(list(self.initial.values()))
        self._kept = {n: t.nonzero().flatten().tolist() for n, t in zip(self.initial, live, strict=True)}
        self._ranks = {name: len(kept) for name, kept in self._kept.items()}

    def _score(self) -> None:
        """Take this step's gradients into the averages."""
        gradients = [_gradients(name, triplets) for name, triplets in self._living().items()]
        self._scorer().update(gradients)

    def _scorer(self) -> Importance:
        """The averages; made when first needed, on the device where the model then is."""
        if self._importance is None:
            triplets = list(self._living().values())
            self._importance = Importance(triplets, beta1=self.config.beta1, beta2=self.config.beta2)
            for key, average in self._averages().items():
                if self._restored:
                    average.copy_(self._restored[key])
            self._restored = {}
        return self._importance

    def _averages(self) -> dict[str, Tensor]:
        """Views of the averages, by the key under which they are saved."""
        if self._importance is None:
            return self._restored
        found: dict[str, Tensor] = {}
        for name, pair in zip(self.initial, self._importance.averages(), strict=True):
            for average, triplets in zip(AVERAGES, pair, strict=True):
                found |= {f"{average}.{name}.{part}": t for part, t in zip(PARTS, triplets, strict=True)}
        return found

    def _scores(self) -> dict[str, Tensor]:
        """Importance of every component, (rank,) per matrix on its device, the same on all processes."""
        found = self._scorer().scores()
        all_mean(found)
        return dict(zip(self.initial, found, strict=True))

    def _prune(self, step: int) -> None:
        """Keep what the budget of this step holds; what was pruned before may come back."""
        unit = self.target.unit
        initial = sum(self.initial.values()) if unit == "ranks" else spent(self.initial, self.costs)
        amount = cubic(step, initial=initial, target=self.target.total, warmup=self.warmup, last=self.last)
        self._keep(self._scores(), Target(amount, unit), exact=False)
        self._masks = []

    def _remove(self) -> Resize:
        """Spend the budget exactly and ask for the rest to be taken off."""
        scores = self._scores()
        self._keep(scores, self.target, exact=True)
        self.finished = True
        self._forget()
        device = next(iter(scores.values())).device
        means = torch.stack([values.mean().to(device) for values in scores.values()]).tolist()
        return Resize(dict(self._ranks), dict(zip(scores, means, strict=True)), kept=self._kept)

    def _keep(self, scores: Mapping[str, Tensor], target: Target, *, exact: bool) -> None:
        self._kept = keep_components(scores, self.costs, target, exact=exact)
        self._ranks = {name: len(kept) for name, kept in self._kept.items()}

    @torch.no_grad()
    def _hold_zero(self) -> None:
        """The optimizer's momentum moves λ of pruned components away from zero: put it back."""
        if not self._masks and self._ranks != self.initial:
            self._masks = self._make_masks()
        if self._masks:
            torch._foreach_mul_([triplets.values for triplets in self._living().values()], self._masks)

    def _make_masks(self) -> list[Tensor]:
        """1 for live and 0 for pruned components: (rank,) per matrix, beside its λ; one transfer per device."""
        values = [triplets.values for triplets in self._living().values()]
        live = torch.cat(list(self._live().values())).to(values[0].dtype)
        on_device = {
            device: live.to(device).split(list(self.initial.values())) for device in {v.device for v in values}
        }
        return [on_device[value.device][index] for index, value in enumerate(values)]

    def _live(self) -> dict[str, Tensor]:
        """Which components are not pruned: (rank,) boolean per matrix, on the CPU."""
        live = {name: torch.zeros(rank, dtype=torch.bool) for name, rank in self.initial.items()}
        for name, kept in self._kept.items():
            live[name][kept] = True
        return live

    def _living(self) -> dict[str, Triplets]:
        """The parameters now in the model, by matrix; those that were taken off are not there."""
        if not self._triplets:
            layers = adapted_layers(self.model)
            self._triplets = {name: _triplets(layers[name]) for name in self.matrices if name in layers}
        return self._triplets

    def _forget(self) -> None:
        """Drop everything that refers to the parameters of before, and to scores."""
        self._triplets, self._masks, self._restored = {}, [], {}
        self._importance = self._orthogonality = None

    @torch.no_grad()
    def _draw_factors(self) -> None:
        """A and B from N(0, `SPREAD`²); PEFT's zero in B would be a point without a gradient for Λ."""
        for index, triplets in enumerate(self._living().values()):
            generator = generator_for(self.seed, index)
            for factor in (triplets.a, triplets.b):
                factor.copy_(SPREAD * torch.randn(factor.shape, generator=generator))


def _triplets(layer: LoraLayer) -> Triplets:
    gated = gate_of(layer)
    assert gated is not None
    return Triplets(gated.gate, gated.raw, layer.lora_B[ADAPTER].weight)


def _gradients(name: str, triplets: Triplets) -> Triplets:
    values, a, b = triplets.values.grad, triplets.a.grad, triplets.b.grad
    if values is None or a is None or b is None:
        raise AllocationError(f"{name}: the adapter has no gradient; is this part of the model used in training?")
    return Triplets(values, a, b)
