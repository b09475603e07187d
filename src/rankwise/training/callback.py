"""The callback that drives a method from a Transformers `Trainer`: ours or a user's own.

Gradients exist in `on_pre_optimizer_step` and `on_optimizer_step`, where `global_step` still has its old value;
they are gone in `on_step_end`. Methods count from 1, hence the `+ 1`.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.adapters.contract import Method, Resize
from rankwise.adapters.lora_method import LoraMethod
from rankwise.adapters.resize import OptimizerLike, apply_resize, check_optimizer
from rankwise.errors import AllocationError, TrainingError
from rankwise.training.checkpoints import HISTORY_KEY, STATE_FILE, adopt_checkpoints, load_method, save_method
from rankwise.training.ddp import agreed, align, rebuild_reducer, wrappers_of
from rankwise.training.preparation import conclude, prepare

__all__ = ["HISTORY_KEY", "STATE_FILE", "RankEvent", "RankwiseCallback", "load_method", "save_method"]


@dataclass(frozen=True)
class RankEvent:
    """A moment at which ranks were set. `event` is `start`, `resize`, `change` or `end`; `scores` is what decided."""

    step: int
    event: str
    ranks: Mapping[str, int]
    scores: Mapping[str, float] = field(default_factory=dict)


class RankwiseCallback(TrainerCallback):
    """Calls a method's hooks once per optimizer step, applies the resizes it asks for, and keeps the rank trace.

    Add it to any `Trainer` whose model is `method.model`. Its checkpoints carry the method's state, and
    `train(resume_from_checkpoint=…)` takes it up again. On several processes (DDP) process 0 decides and all follow.

    In a stock `Trainer` the gradient of a method's penalty is added right before the optimizer's step, after clipping;
    `RankwiseTrainer` adds the penalty to the loss.

    Args:
        method: what `MethodConfig.build` returned.
        total_steps: the `total_steps` it was built with; checked against the trainer's.
        seed: decides what new components start from.
        on_event: called with every `RankEvent` as it happens; on resuming, first with those of before.
    """

    def __init__(
        self,
        method: Method,
        *,
        total_steps: int,
        seed: int = 0,
        on_event: Callable[[RankEvent], None] | None = None,
    ) -> None:
        self.method, self.total_steps, self.seed = method, total_steps, seed
        self.trace: list[RankEvent] = []
        self.adds_penalty = True  # RankwiseTrainer takes this over
        self._on_event = on_event
        self._state = TrainerState()
        self._calls = 0
        self._kept_promise = False
        self._wrappers: list[DistributedDataParallel] = []
        # Masks of a method's own may change; ranks of LoRA layers do so by a resize alone, and asking costs 0.7 ms.
        self._changes_alone = type(method).rank_pattern is not LoraMethod.rank_pattern
        adopt_checkpoints(method, self._was_loaded)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Check that what is trained is what the method drives; let the method prepare a new run."""
        if state.max_steps != self.total_steps:
            raise TrainingError(
                f"the method was built for {self.total_steps} optimizer steps, the trainer will run {state.max_steps}; "
                "pass the same number to both"
            )
        if args.load_best_model_at_end and self.method.cuts_at_the_end:
            raise TrainingError(
                "load_best_model_at_end is set, and the method takes adapters off after the last step, so that an "
                "earlier checkpoint does not fit the model any more: leave out one of load_best_model_at_end and "
                "drop_below"
            )
        if kwargs.get("model") is not self.method.model:
            raise TrainingError("the trainer's model is not the method's: pass method.model to the trainer")
        if state.global_step == 0 and self._kept_promise:
            raise TrainingError(
                f"{self.method.config.name} has been trained to its end; build it anew on a fresh model to train again"
            )
        self._check_parameters(kwargs["optimizer"])
        self._calls, self._kept_promise = state.global_step, False
        self.trace = [RankEvent(**entry[HISTORY_KEY]) for entry in state.log_history if HISTORY_KEY in entry]
        self._state = state
        if self._can_resize():
            check_optimizer(kwargs["optimizer"])
            self._wrappers = wrappers_of(self.method.model)
        for entry in self.trace:  # a resumed run tells its whole story, also to a listener that starts from nothing
            self._report(entry)
        if not self.trace:
            self._record(state.global_step, "start", self.method.rank_pattern(), {})
        if state.global_step == 0:
            loader, size = kwargs["train_dataloader"], args.train_batch_size * args.world_size
            wanted = prepare(self.method, loader.dataset, loader.collate_fn, size, self.seed)
            if type(self.method).prepare is not Method.prepare:
                self._resize(agreed(wanted), kwargs["optimizer"], 0)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Gradients are ready, weights have not moved."""
        if self.adds_penalty:
            add_penalty_gradient(self.method)
        self.method.before_optimizer_step(state.global_step + 1)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Weights have moved; resize if the method asks for it."""
        step = state.global_step + 1
        self._calls += 1
        resize = self.method.after_optimizer_step(step)
        if type(self.method).after_optimizer_step is not Method.after_optimizer_step:  # the others never resize
            resize = agreed(resize)
        self._resize(resize, kwargs["optimizer"], step)
        if resize is None and self._changes_alone and (ranks := self.method.rank_pattern()) != self.trace[-1].ranks:
            self._record(step, "change", ranks, {})
        if step == self.total_steps:
            loader, size = kwargs["train_dataloader"], args.train_batch_size * args.world_size
            conclude(self.method, loader.dataset, loader.collate_fn, size, self.seed)
            # checked here, because a best model may be loaded before `on_train_end`
            self.method.check_finished()
            self._kept_promise = True

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Put the method's state into the trainer's checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir():
            save_method(self.method, folder)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Every step was seen, and the method kept its promise."""
        if self._calls != state.global_step:
            raise AllocationError(f"hooks were called {self._calls} times in {state.global_step} optimizer steps")
        if state.global_step == self.total_steps and not self._kept_promise:
            self.method.check_finished()
        self._record(state.global_step, "end", self.method.rank_pattern(), {})

    def _resize(self, resize: Resize | None, optimizer: OptimizerLike, step: int) -> None:
        """Apply what all processes agreed on; optimizer, reducer and trace follow."""
        if resize is None:
            return
        model = self.method.model
        apply_resize(model, resize.ranks, kept=resize.kept, optimizer=optimizer, seed=self.seed, step=step)
        if self._wrappers:
            align(model, optimizer)
        for wrapper in self._wrappers:
            rebuild_reducer(wrapper)
        self.method.parameter_count()  # takes note of the peak
        self._record(step, "resize", self.method.rank_pattern(), resize.scores)

    def _can_resize(self) -> bool:
        """Whether the method may ever ask for a resize: only adapters on LoRA layers of ours change their ranks."""
        kind = type(self.method)
        acts = kind.prepare is not Method.prepare or kind.after_optimizer_step is not Method.after_optimizer_step
        return acts and isinstance(self.method, LoraMethod)

    def _was_loaded(self) -> None:
        """A checkpoint was taken up: to go on from, or as the best one, after the last step."""
        if not self._kept_promise:
            return
        try:
            self.method.check_finished()
        except AllocationError as error:
            warnings.warn(
                f"the best checkpoint is from before the method was done ({error}); what is exported must meet its "
                "budget: select among later checkpoints, or export the last one",
                stacklevel=2,
            )

    def _record(self, step: int, event: str, ranks: Mapping[str, int], scores: Mapping[str, float]) -> None:
        entry = RankEvent(step, event, dict(ranks), dict(scores))
        self.trace.append(entry)
        self._state.log_history.append({"step": step, HISTORY_KEY: asdict(entry)})  # so that a resumed run has it
        self._report(entry)

    def _report(self, entry: RankEvent) -> None:
        if self._on_event is not None:
            self._on_event(entry)

    def _check_parameters(self, optimizer: OptimizerLike) -> None:
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [n for n, p in self.method.model.named_parameters() if p.requires_grad and id(p) not in known]
        if missing:
            raise TrainingError(f"{len(missing)} trainable parameters are not in the optimizer, first: {missing[0]}")


def add_penalty_gradient(method: Method) -> None:
    """Add the gradient of `method.penalty()` to the gradients that are there."""
    penalty = method.penalty()
    if penalty is None:
        return
    trainable = [p for p in method.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(penalty, trainable, allow_unused=True)
    for parameter, gradient in zip(trainable, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
