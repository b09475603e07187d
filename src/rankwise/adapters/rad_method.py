"""A router per module that decides, per example, whether its adapter is used and with how many components.

See `adapters.conditional.rad_layer` for the layer. Two budgets are tracked to their targets, each by a price of its
own: `active`, the share of open gates (see `adapters.conditional_method`), and `rank_budget`, the mean rank over
modules and examples as a share of the largest, closed gates counting 0. The second price acts on the rank of open
adapters, whose target is `rank_budget / active`, so neither pulls at what the other controls.
"""

import math
from abc import ABC
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.conditional.rad_bank import fill_banks, smallest_banks
from rankwise.adapters.conditional.rad_config import RadloraPeftConfig
from rankwise.adapters.conditional.rad_hyper import HYPER, Hyper, hyper_cost
from rankwise.adapters.conditional.rad_layer import decided
from rankwise.adapters.conditional.rad_ranks import RankTracker, fitting_rank_price, rank_chances
from rankwise.adapters.conditional.rad_tuner import routers_cost
from rankwise.adapters.conditional.router import opened, stacked_logits
from rankwise.adapters.conditional.tuner import ROUTER
from rankwise.adapters.conditional_method import (
    CLOSE,
    LASTING,
    PASSES,
    ConditionalConfig,
    ConditionalMethod,
    between,
)
from rankwise.adapters.contract import Batches
from rankwise.adapters.deciding_method import TOLERANCE, measured_examples, sample_size
from rankwise.adapters.distributed import all_mean
from rankwise.adapters.pairs import Pair, fold
from rankwise.allocation.allocate import spent
from rankwise.allocation.budget import Target
from rankwise.allocation.schedules import in_steps
from rankwise.allocation.shares import Share
from rankwise.allocation.tracking import Search
from rankwise.errors import AllocationError, BudgetError, Finding

RATE = 0.2
"""How fast the units of the temperatures follow the logits."""
HARDNESS = 0.9
"""How much colder than the draws, at the end, is what prices are set by: inference draws nothing."""
NARROWEST = 0.01
"""No unit is smaller."""


class RadSettings(ConditionalConfig, ABC):
    """What the method needs to know."""

    generator: Literal["bank", "hyper"] = Field(
        default="bank",
        description="`bank`: components shared by modules, with coefficients per input; `hyper`: a network per module "
        "writes the factors for every input. `budget` does not bind the network, which is many times as large",
    )
    generator_rank: int | None = Field(
        default=None, ge=1, description="factorise the networks of `hyper` through a middle of this width"
    )
    r_max: int | None = Field(
        default=None,
        ge=2,
        description="largest rank; by default twice the rank that the budget buys as plain LoRA, so that half of what "
        "adapters of this rank would take is the budget",
    )
    rank_budget: Share | None = Field(
        default=None,
        description="target mean rank over modules and examples, closed ones counting 0, as a share of r_max: '25%' or "
        "0.25; by default half of `active`",
    )
    temperature: tuple[float, float] = Field(
        default=(2.0, 0.1),
        description="what routers' logits are divided by in training, at first and at the end, in units of their "
        "standard deviation over examples and modules (of gates, and of ranks by itself)",
    )
    cache: int = Field(default=0, ge=0, description="examples whose decisions are remembered in inference; 0 for none")

    @property
    def open_rank(self) -> float:
        """Target mean rank of open adapters, as a share of r_max."""
        return 0.5 if self.rank_budget is None else float(self.rank_budget) / float(self.active)

    def check(self, total_steps: int) -> list[Finding]:
        """See `ConditionalConfig.check`; the two budgets have to fit each other."""
        found = super().check(total_steps)
        if self.generator == "bank" and self.generator_rank is not None:
            found.append(Finding("method.generator_rank", "belongs to `generator: hyper`; leave it out with `bank`"))
        lowest = 0.0 if self.r_max is None else 1 / self.r_max
        if not lowest < self.open_rank < 1:
            found.append(
                Finding(
                    "method.rank_budget",
                    f"{self.rank_budget} has to be below `active` ({self.active}), and above it divided by r_max "
                    f"({'twice the rank that the budget buys' if self.r_max is None else self.r_max}): an open adapter "
                    "uses 1 to r_max components",
                )
            )
        return found


@final
class Radlora(ConditionalMethod):
    """Adapters whose gate and rank depend on the input, at two budgets."""

    config: RadSettings
    rank_tracker: RankTracker
    measured_rank: float | None = None
    """Mean rank on training examples as a share of r_max, once training has ended."""

    spreads: tuple[float, float] = (0.0, 0.0)
    """Standard deviations of the logits of gates and of ranks, smoothed over steps: the units of their temperatures. 0:
    not known yet."""

    _rank_logits: Tensor | None = None  # of the step that goes on: (examples, modules, r)

    @property
    def rank_target(self) -> float:
        """`rank_budget` as a number."""
        return self.config.open_rank * float(self.config.active)

    @property
    def peft(self) -> RadloraPeftConfig:
        """The adapter's PEFT config."""
        found = super().peft
        assert isinstance(found, RadloraPeftConfig)
        return found

    def peft_config(self, target: Target) -> RadloraPeftConfig:
        """See `ConditionalMethod.peft_config`; makes the tracker of ranks too, which needs the largest."""
        config, rank = self.config, self.largest_rank()
        self.rank_tracker = RankTracker(
            rank=rank,
            target=config.open_rank,
            first=in_steps(config.warmup, self.total_steps),
            last=in_steps(config.annealing, self.total_steps),
        )
        return RadloraPeftConfig(
            lora_dropout=config.dropout,
            r=rank,
            lora_alpha=config.scaling * rank,
            router_hidden=config.router_hidden,
            generator=config.generator,
            generator_rank=config.generator_rank,
            banks=fill_banks(self._sizes(), rank, target.total) if config.generator == "bank" else None,
            cache=config.cache,
        )

    def largest_rank(self) -> int:
        """r_max: as set, or twice what the budget buys as plain LoRA, at most full rank.

        Raises:
            BudgetError: no matrix may have a rank this large, or a mean rank of `rank_budget` cannot be had with it.
        """
        full = min(matrix.full_rank for matrix in self.matrices.values())
        rank = self.config.r_max or min(2 * math.ceil(self._allowed() / sum(self.costs.values())), full)
        if rank > full:
            raise BudgetError(f"radlora: r_max is {rank}, and one of the matrices has full rank {full}; lower it")
        if rank * self.config.open_rank <= 1:
            raise BudgetError(
                f"radlora: with r_max {rank}, rank_budget {self.rank_target:.1%} leaves open adapters (active: "
                f"{self.config.active:.1%}) {rank * self.config.open_rank:.2f} components on average; they use one at "
                "least: raise rank_budget or r_max, or lower active"
            )
        return rank

    def overhead(self) -> int:
        """Routers."""
        return routers_cost(self._sizes(), self.largest_rank(), self.config.router_hidden, self.config.generator)

    def left_for_ranks(self) -> Target:
        """What is left for banks of the budget, or of half of what they replace if that is less; without routers."""
        rank = self.largest_rank()
        if self.config.generator == "hyper":  # not bound by the budget
            self._check_middle(rank)
            return self.target
        half = rank * sum(self.costs.values()) // 2
        left = min(self._allowed(), half) - self.overhead()
        least = smallest_banks(self._sizes(), rank)
        if left < least:
            raise BudgetError(
                f"radlora: budget '{self.config.budget}' is {self._allowed():,} parameters, and half of what adapters "
                f"of rank {rank} take is {half:,}; routers take {self.overhead():,} and the smallest banks {least:,}. "
                "Raise the budget, make the routers smaller (router_hidden), lower r_max, or use cogalora"
            )
        return Target(left, "parameters")

    def _check_middle(self, rank: int) -> None:
        middle, sizes = self.config.generator_rank, self._sizes().values()
        whole = sum(hyper_cost(*size, rank, None) for size in sizes)
        if middle is not None and sum(hyper_cost(*size, rank, middle) for size in sizes) >= whole:
            narrowest = min(matrix.in_features for matrix in self.matrices.values())
            raise BudgetError(
                f"radlora: generator_rank is {middle}, and networks factorised at that width have more parameters than "
                f"whole ones ({whole:,}); use less than {narrowest}, the narrowest input"
            )

    def logits(self) -> Tensor:
        """See `ConditionalMethod.logits`; keeps the rank's for `penalty`."""
        outputs = self._outputs({name: torch.cat(parts) for (name, _), parts in self.context.recorded.items()})
        self._rank_logits = outputs[..., 1 : 1 + self.rank_tracker.rank]
        return outputs[..., 0]

    def penalty(self) -> Tensor | None:
        """What the expected share of open gates and their mean rank cost, and the fading bonus for variety."""
        penalty = super().penalty()
        if penalty is None or self._rank_logits is None or self._logits is None:
            return penalty
        chances = rank_chances(self._rank_logits, self.rank_tracker.price, self.peft.temperature)
        penalty = penalty + self.rank_tracker.penalty(chances, self._open_chances(), self.step + 1)
        bonus = self.config.entropy * max(1 - self._progress(self.step + 1), LASTING)
        return penalty - bonus * _entropy(chances.mean(0)) if bonus else penalty

    def gate_biases(self) -> list[Tensor]:
        """See `ConditionalMethod.gate_biases`: the first output is the gate's."""
        return [getattr(layer, ROUTER)[ADAPTER].up_bias[:1] for layer in adapted_layers(self.model).values()]

    def price_temperature(self) -> float:
        """See `ConditionalMethod.price_temperature`."""
        return self.context.temperature * self._hardness()

    def before_optimizer_step(self, step: int) -> None:
        """New prices of components and of gates."""
        if self._rank_logits is not None and self._logits is not None:
            gates, ranks = self._logits.double(), self._rank_logits.detach().double()
            self.rank_tracker.update(ranks, self.peft.temperature * self._hardness(), step, self._open_chances())
            price = gates.new_tensor(self.rank_tracker.price)
            found = [price, gates.std(correction=0), (ranks - ranks.mean(-1, keepdim=True)).std(correction=0)]
            all_mean(found)
            self.rank_tracker.price, *wide = (float(value) for value in found)
            gate, rank = (_followed(*pair) for pair in zip(self.spreads, wide, strict=True))
            self.spreads = gate, rank
        self._rank_logits = None
        super().before_optimizer_step(step)

    @torch.no_grad()
    def conclude(self, batches: Batches) -> None:
        """Measure both shares; move the threshold and the price of a component until they are met."""
        self.start_inference()
        peft, rank = self.peft, self.rank_tracker.rank
        search = Search(self.tracker.target)
        for number in range(PASSES + 1):
            outputs = self._observed(batches)
            ranks, weights = decided(outputs, rank, peft)
            self.measured = float((ranks > 0).double().mean())
            self.measured_rank = float(ranks.double().mean()) / rank
            off = abs(self.measured - self.tracker.target), abs(self.measured_rank - self.rank_target)
            search.tried.append((peft.threshold, self.measured))
            if max(off) <= CLOSE or number == PASSES:
                break
            if off[0] > CLOSE:
                read = between(outputs[..., 0], self.tracker.target)
                peft.threshold = search.next(read) if number < PASSES - 1 else search.best()
            self._refit_ranks(outputs)
        self.context.recording = False
        self.context.seen.clear()
        peft.usage = dict(zip(self.live(), (ranks > 0).float().mean(0).tolist(), strict=True))
        peft.components = dict(zip(self.live(), weights.mean(0).tolist(), strict=True))

    def observe(self, batches: Batches) -> Tensor:
        """See `ConditionalMethod.observe`."""
        return self._observed(batches)[..., 0]

    def static_pairs(self) -> dict[str, Pair]:
        """ΔW = s · Σ_j w̄_j · b_j a_jᵀ with w̄ the average of gate · mask · coefficient over training examples.

        Networks write their factors for the average input.
        """
        components, found = self.peft.components or {}, {}
        for name, layer in adapted_layers(self.model).items():
            if self.config.generator == "hyper":
                a, b = getattr(layer, HYPER)[ADAPTER].average()
            else:
                a, b = (side[ADAPTER].weight.detach() for side in (layer.lora_A, layer.lora_B))
            found[name] = fold(a, b * b.new_tensor(components[name]), layer.scaling[ADAPTER])
        return found

    def check_finished(self) -> None:
        """Both shares are within `TOLERANCE` of their targets."""
        super().check_finished()
        if self.measured_rank is None or abs(self.measured_rank - self.rank_target) > TOLERANCE:
            raise AllocationError(
                f"radlora ended with a mean rank of {self.measured_rank or 0:.1%} of r_max, its target is "
                f"{self.rank_target:.1%}: ranks do not tell inputs apart well enough; train longer or aim elsewhere"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """See `ConditionalMethod.state_dict`; with the second price, and what was measured of ranks."""
        measured = [] if self.measured_rank is None else [self.measured_rank, self.peft.rank_price]
        memory = {
            "rank_price": torch.tensor(self.rank_tracker.price, dtype=torch.float64),
            "measured_rank": torch.tensor(measured, dtype=torch.float64),
            "spreads": torch.tensor(self.spreads, dtype=torch.float64),
            "components": torch.tensor(list((self.peft.components or {}).values())),
        }
        memory |= {f"centre.{name}": hyper.centre.clone() for name, hyper in self._hypers().items()}
        return super().state_dict() | {f"rankwise.{key}": value for key, value in memory.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `ConditionalMethod.load_state_dict`."""
        self.rank_tracker.price = float(state["rankwise.rank_price"])
        gates, ranks = state["rankwise.spreads"].tolist()
        self.spreads = gates, ranks
        super().load_state_dict(state)
        for name, hyper in self._hypers().items():
            hyper.centre.copy_(state[f"rankwise.centre.{name}"])
        components = state["rankwise.components"].tolist()
        self.peft.components = dict(zip(self.live(), components, strict=True)) if components else None
        self.measured_rank = None
        if measured := state["rankwise.measured_rank"].tolist():
            self.measured_rank, self.peft.rank_price = measured

    def _at(self, step: int) -> None:
        super()._at(step)
        gates, ranks = self.spreads
        self.peft.temperature = self.context.temperature * (ranks or 1.0)
        self.context.temperature *= gates or 1.0
        if self.measured is None:
            self.peft.rank_price = self.rank_tracker.price

    def _hardness(self) -> float:
        """Of prices, as a factor of a temperature."""
        return 1 - HARDNESS * self._progress(self.step + 1)

    def _allowed(self) -> int:
        """The budget in parameters."""
        if self.target.unit == "parameters":
            return self.target.total
        return spent(self.uniform_ranks(self.target), self.costs)

    def _sizes(self) -> dict[str, tuple[int, int]]:
        return {name: (matrix.in_features, matrix.out_features) for name, matrix in self.matrices.items()}

    def _hypers(self) -> dict[str, Hyper]:
        layers = adapted_layers(self.model) if self.config.generator == "hyper" else {}
        return {name: getattr(layer, HYPER)[ADAPTER] for name, layer in layers.items()}

    def _open_chances(self) -> Tensor:
        """(examples, modules), without a graph, of the step that goes on."""
        assert self._logits is not None
        return torch.sigmoid((self._logits - self.tracker.price) / self.context.temperature)

    def _outputs(self, seen: Mapping[str, Tensor]) -> Tensor:
        """(examples, modules, outputs) for the routers' inputs, by module."""
        routers = {name: getattr(layer, ROUTER)[ADAPTER] for name, layer in adapted_layers(self.model).items()}
        each = stacked_logits(routers, seen)
        return torch.stack([each[name] for name in routers], dim=1)

    def _observed(self, batches: Batches) -> Tensor:
        """Routers' outputs in inference on a sample of the training examples; takes the generators' centres too."""
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for _batch, _output in measured_examples(batches, self.model, sample_size(self.total_steps)):
            for name in self.live():
                parts[name].append(self.context.seen[name, ADAPTER])
        seen = {name: torch.cat(each) for name, each in parts.items()}
        for name, hyper in self._hypers().items():
            hyper.centre.copy_(hyper.normalise(seen[name]).mean(0))
        return self._outputs(seen)

    def _refit_ranks(self, outputs: Tensor) -> None:
        """Move the price of a component to where `outputs` meet the target of ranks."""
        peft, rank = self.peft, self.rank_tracker.rank
        logits, goal = outputs[..., 1 : 1 + rank], rank * self.rank_target
        peft.rank_price = fitting_rank_price(logits, peft.temperature, goal, opened(outputs[..., 0], peft.threshold))


def _entropy(chances: Tensor) -> Tensor:
    """Mean entropy of ranks with these chances, in nats."""
    return -(chances * chances.clamp_min(1e-6).log()).sum(-1).mean()


def _followed(spread: float, found: float) -> float:
    """A unit of a temperature after a step whose logits had the standard deviation `found`."""
    wide = max(found, NARROWEST)
    return spread + RATE * (wide - spread) if spread else wide
