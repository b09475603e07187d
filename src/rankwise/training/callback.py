"""The callback that drives a method from a Transformers `Trainer`: ours or a user's own.

Gradients exist in `on_pre_optimizer_step` and `on_optimizer_step`, where `global_step` still has its old value;
they are gone in `on_step_end`. Methods count from 1, hence the `+ 1`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.adapters.contract import Method
from rankwise.adapters.resize import apply_resize
from rankwise.errors import AllocationError, TrainingError

STATE_FILE = "rankwise.safetensors"
HISTORY_KEY = "rank_event"
"""Key of a rank event in the trainer's log history, which travels with its checkpoints."""


@dataclass(frozen=True)
class RankEvent:
    """A moment at which ranks were set. `event` is `start`, `resize`, `change` or `end`; `scores` is what decided."""

    step: int
    event: str
    ranks: Mapping[str, int]
    scores: Mapping[str, float] = field(default_factory=dict)


class RankwiseCallback(TrainerCallback):
    """Calls a method's hooks once per optimizer step, applies the resizes it asks for, and keeps the rank trace.

    Add it to any `Trainer` whose model is `method.model`. A penalty needs `RankwiseTrainer`, since a callback cannot
    add to the loss.

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
        self._on_event = on_event
        self._state = TrainerState()
        self._calls = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Check that what is trained is what the method drives."""
        if state.max_steps != self.total_steps:
            raise TrainingError(
                f"the method was built for {self.total_steps} optimizer steps, the trainer will run {state.max_steps}; "
                "pass the same number to both"
            )
        if kwargs.get("model") is not self.method.model:
            raise TrainingError("the trainer's model is not the method's: pass method.model to the trainer")
        self._check_optimizer(kwargs["optimizer"])
        self._calls = state.global_step
        self.trace = [RankEvent(**entry[HISTORY_KEY]) for entry in state.log_history if HISTORY_KEY in entry]
        self._state = state
        for entry in self.trace:  # a resumed run tells its whole story, also to a listener that starts from nothing
            self._report(entry)
        if not self.trace:
            self._record(state.global_step, "start", self.method.rank_pattern(), {})

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Gradients are ready, weights have not moved."""
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
        if resize is not None:
            if args.world_size > 1:
                raise TrainingError("ranks cannot be changed while training on several processes; use one, or `lora`")
            apply_resize(self.method.model, resize.ranks, optimizer=kwargs["optimizer"], seed=self.seed, step=step)
            self.method.parameter_count()  # takes note of the peak
            self._record(step, "resize", self.method.rank_pattern(), resize.scores)
        elif (ranks := self.method.rank_pattern()) != self.trace[-1].ranks:
            self._record(step, "change", ranks, {})

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Put the method's state into the trainer's checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
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
        if state.global_step == self.total_steps:
            self.method.check_finished()
        self._record(state.global_step, "end", self.method.rank_pattern(), {})

    def _record(self, step: int, event: str, ranks: Mapping[str, int], scores: Mapping[str, float]) -> None:
        entry = RankEvent(step, event, dict(ranks), dict(scores))
        self.trace.append(entry)
        self._state.log_history.append({"step": step, HISTORY_KEY: asdict(entry)})  # so that a resumed run has it
        self._report(entry)

    def _report(self, entry: RankEvent) -> None:
        if self._on_event is not None:
            self._on_event(entry)

    def _check_optimizer(self, optimizer: Any) -> None:  # noqa: ANN401 - torch's, or Accelerate's wrapper
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [n for n, p in self.method.model.named_parameters() if p.requires_grad and id(p) not in known]
        if missing:
            raise TrainingError(f"{len(missing)} trainable parameters are not in the optimizer, first: {missing[0]}")


def save_method(method: Method, folder: Path) -> None:
    """Write a method's state into a checkpoint folder (safetensors)."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}
    save_file(state, str(folder / STATE_FILE))


def load_method(method: Method, folder: Path) -> None:
    """Take up a state written by `save_method`, before the optimizer exists.

    Raises:
        TrainingError: the folder holds none.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise TrainingError(f"cannot resume: {folder} holds no {STATE_FILE}")
    method.load_state_dict(load_file(str(path)))
