"""Block mode: an early router decides per input which later transformer blocks are run at all.

Training has two phases. At first plain LoRA is trained with every block, and bypasses learn to imitate their blocks.
Then the router draws which blocks an input keeps; the expected share follows a cubic down to its target
(`allocation.tracking`), and the model learns from the task and from what it says itself at full depth
(`conditional.block_distil`); some inputs keep every block, so that full depth stays worth learning from. When training
ends, patterns are limited if that is asked for, and the router's bias is put where training examples keep the target
share.

What block mode saves is frozen compute, not the adapter's: LoRA can be merged into the base weights (`merge_static`).
"""

import math
from collections.abc import Iterable, Mapping
from typing import final

import torch
from peft import PeftModel
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, Matrix, adapted_layers, attach_lora, find_matrices
from rankwise.adapters.conditional.block_bypass import bypass_cost
from rankwise.adapters.conditional.block_config import RadBlockPeftConfig
from rankwise.adapters.conditional.block_decision import (
    fitting_level,
    frequent_patterns,
    kept_bits,
    pattern_rows,
    settled,
)
from rankwise.adapters.conditional.block_distil import SelfDistillation
from rankwise.adapters.conditional.block_settings import BlockSettings
from rankwise.adapters.conditional.block_tuner import NO_UNLOAD, RadBlockModel, hidden_width, skippable_blocks
from rankwise.adapters.conditional.router import Router, router_cost
from rankwise.adapters.conditional.tuner import ROUTER
from rankwise.adapters.contract import AdapterConfig, Batches, ParameterCount
from rankwise.adapters.deciding_method import FAR, DecidingMethod, check_schedule, measured_examples, sample_size
from rankwise.adapters.distributed import all_mean
from rankwise.adapters.export import lora_pairs
from rankwise.adapters.fused import fuse
from rankwise.adapters.lora_method import lora_config, resolve_budget
from rankwise.adapters.pairs import Pair
from rankwise.adapters.peft_types import trained_parameters
from rankwise.allocation.budget import Target
from rankwise.allocation.schedules import in_steps
from rankwise.allocation.tracking import Tracker
from rankwise.errors import ConfigError, Finding


def check_block(settings: BlockSettings, total_steps: int) -> list[Finding]:
    """What cannot work in a training of `total_steps` optimizer steps."""
    length, annealing, temperature = settings.full_depth, settings.annealing, settings.temperature
    return check_schedule("method.block", ("full_depth", length), annealing, temperature, total_steps)


@final
class BlockMethod(DecidingMethod):
    """LoRA at the uniform allocation of what router and bypasses leave of the budget.

    Args:
        model: a Transformers model.
        config: an adapter config with a field `block` of type `BlockSettings`.
        total_steps: optimizer steps.
        seed: what adapters start from.

    Raises:
        ConfigError: a setting makes no sense for `total_steps`.
        BudgetError: router and bypasses leave too little of the budget.
        ModelError: the model's blocks cannot be skipped.
    """

    opened = "the blocks after the router executed"
    failed = "the router does not tell inputs apart well enough; train longer, aim elsewhere, or allow more patterns"
    unmerged = NO_UNLOAD

    def __init__(self, model: nn.Module, config: AdapterConfig, *, total_steps: int, seed: int) -> None:
        self.config, self.settings = config, vars(config)["block"]
        if findings := check_block(self.settings, total_steps):
            raise ConfigError(config.name, findings)
        self.matrices: dict[str, Matrix] = find_matrices(model, config.target_modules)
        self.costs = {name: matrix.cost for name, matrix in self.matrices.items()}
        self.target: Target = resolve_budget(model, config, self.matrices)
        self.model = attach_lora(model, self.matrices, config=self._peft_config(model), seed=seed)
        fuse(self.model)
        self.tracker = Tracker(
            target=float(self.settings.keep),
            first=in_steps(self.settings.full_depth, total_steps),
            last=in_steps(self.settings.annealing, total_steps),
        )
        self.distillation = SelfDistillation(
            self.model.base_model.model,
            self.peft,
            weight=self.settings.distillation,
            temperature=self.settings.distillation_temperature,
        )
        self.step, self.total_steps = 0, total_steps
        self.spread = 1.0  # standard deviation of logits, where it is above 1
        self.measured: float | None = None
        self._logits: Tensor | None = None  # of the step that goes on
        self.context.recording, self.context.full_rows = True, self.settings.full_rows
        self._at(1)

    @property
    def peft(self) -> RadBlockPeftConfig:
        """The adapter's PEFT config."""
        found = self.model.peft_config[ADAPTER]
        assert isinstance(found, RadBlockPeftConfig)
        return found

    @property
    def router(self) -> Router:
        """The only one."""
        found = [getattr(layer, ROUTER)[ADAPTER] for layer in adapted_layers(self.model).values() if _has_router(layer)]
        router: Router = found[0]
        return router

    def penalty(self) -> Tensor | None:
        """What the expected share of executed blocks costs."""
        recorded = [part for parts in self.context.recorded.values() for part in parts]
        if self.context.all_open or not recorded:
            return None
        logits = self._settled(torch.cat(recorded))
        self._logits = logits.detach()
        chances = torch.sigmoid((logits - self.tracker.price) / self.context.temperature)
        return self.tracker.penalty(chances.mean(), self.step + 1)

    def before_optimizer_step(self, step: int) -> None:
        """A new price; what was recorded of this step is forgotten."""
        if self._logits is not None:
            self.tracker.update(self._logits, self.context.temperature, step)
            both = [self.tracker.price, max(1.0, float(self._logits.std()))]
            means = torch.tensor(both, dtype=torch.float64, device=self._logits.device)
            all_mean([means])
            self.tracker.price, now = means.tolist()
            if abs(self.tracker.price) > FAR:
                with torch.no_grad():
                    self._gate_biases().sub_(self.tracker.price)
                self.tracker.price = 0.0
            self.spread += self.tracker.rate * (now - self.spread)
        if self.distillation.phase == "imitate":
            for parameter in self.router.parameters():  # its zeros would leave Adam's second moment at 0 for later
                parameter.grad = None
        self._logits = None
        self.context.recorded.clear()
        self.step = step
        self._at(step + 1)

    @torch.no_grad()
    def conclude(self, batches: Batches) -> None:
        """On training examples: limit the patterns, put logits where the share is met at 0.5, and measure it."""
        self.distillation.phase, self.context.all_open = None, False
        seen: list[Tensor] = []
        for _ in measured_examples(batches, self.model, sample_size(self.total_steps)):
            seen.extend(self.context.seen.values())
        self.context.recording = False
        self.context.seen.clear()
        logits, share = self._settled(torch.cat(seen)), self.tracker.target
        level = fitting_level(logits, share)
        if isinstance(self.settings.patterns, int):
            free = kept_bits(logits - level, 0.5)
            self.peft.kept_patterns = frequent_patterns(free, self.settings.patterns, share)
            level = fitting_level(logits, share, pattern_rows(self.peft.kept_patterns))
        # into the router's bias: a price that has gone far up leaves no probabilities to tell apart
        self._gate_biases().sub_(level)
        bits = kept_bits(logits - level, 0.5, pattern_rows(self.peft.kept_patterns))
        self.peft.threshold = 0.5
        self.measured = float(bits.double().mean())
        self.peft.usage = dict(zip(self.peft.blocks or (), bits.double().mean(0).tolist(), strict=True))

    def rank_pattern(self) -> dict[str, int]:
        """LoRA's rank per module."""
        return {name: layer.r[ADAPTER] for name, layer in adapted_layers(self.model).items()}

    def parameter_count(self) -> ParameterCount:
        """LoRA, bypasses and router."""
        count = trained_parameters(self.model)
        return ParameterCount(count, count)

    def deciders(self) -> Iterable[str]:
        """The blocks that may be skipped."""
        return self.peft.blocks or ()

    def static_pairs(self) -> dict[str, Pair]:
        """Its LoRA, at full depth."""
        return lora_pairs(self.model)

    def state_dict(self) -> dict[str, Tensor]:
        """See `DecidingMethod.state_dict`; with the spread of the logits and the patterns."""
        patterns = pattern_rows(self.peft.kept_patterns)
        return super().state_dict() | {
            "rankwise.spread": torch.tensor(self.spread, dtype=torch.float64),
            "rankwise.patterns": torch.empty(0) if patterns is None else patterns,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `DecidingMethod.load_state_dict`."""
        self.spread = float(state["rankwise.spread"])
        rows = ["".join(str(int(bit)) for bit in row) for row in state["rankwise.patterns"].tolist()]
        self.peft.kept_patterns = rows or None
        super().load_state_dict(state)

    def _gate_biases(self) -> Tensor:
        """What the router adds to every block's logit; with early exit the first output is in all of them."""
        return self.router.up_bias[: 1 if self.peft.exit else None]

    def _settled(self, pooled: Tensor) -> Tensor:
        return settled(self.router(pooled), exit_early=self.peft.exit)

    def _peft_config(self, model: nn.Module) -> RadBlockPeftConfig:
        settings = self.settings
        blocks = skippable_blocks(list(self.matrices), model, settings.router_after, settings.keep_last)
        width = hidden_width(model)
        overhead = len(blocks) * bypass_cost(width, settings.bypass_rank)
        overhead += router_cost(width, settings.router_hidden, len(blocks))
        advice = "lower block.bypass_rank or block.router_hidden"
        target = self.left_after(overhead, "router and bypasses", advice)
        plain = lora_config(self.config, self.uniform_ranks(target))
        return RadBlockPeftConfig(
            lora_dropout=plain.lora_dropout,
            r=plain.r,
            lora_alpha=plain.lora_alpha,
            rank_pattern=plain.rank_pattern,
            alpha_pattern=plain.alpha_pattern,
            router_hidden=settings.router_hidden,
            router_after=settings.router_after,
            keep_last=settings.keep_last,
            bypass_rank=settings.bypass_rank,
            exit=settings.patterns == "exit",
            blocks=blocks,
        )

    def _at(self, step: int) -> None:
        """Set what the blocks need to know of training step `step`."""
        first, last = self.settings.temperature
        running = self.measured is None
        self.context.all_open = step <= self.tracker.first and running
        self.context.temperature = self.spread * first * (last / first) ** self._progress(step)
        self.context.price = self.tracker.price
        self.distillation.phase = None if not running else "imitate" if self.context.all_open else "distil"
        if running:
            self.peft.threshold = 1 / (1 + math.exp(-self.tracker.price))


def merge_static(model: PeftModel) -> nn.Module:
    """Merge LoRA into the base weights for good, in place, for inference; blocks go on being skipped.

    Returns:
        The base model: no LoRA layers are left in it, router and bypasses have moved into its blocks.

    Raises:
        ValueError: the adapter decides on more than blocks, or there are several.
    """
    if not isinstance(model.base_model, RadBlockModel):
        raise ValueError(f"only adapters of type {RadBlockPeftConfig.TYPE} can be merged and go on deciding")
    return model.base_model.merge_static()


def _has_router(layer: nn.Module) -> bool:
    return ADAPTER in getattr(layer, ROUTER, {})
