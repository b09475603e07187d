"""A small subclass of the Transformers `Trainer`: penalty, honest eval loss, length-grouped order, exact resume."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from peft import TaskType
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from rankwise.adapters.attach import task_type
from rankwise.adapters.contract import Method
from rankwise.errors import OutputError, RankwiseError, TrainingError
from rankwise.training.callback import load_method, save_method
from rankwise.training.data import LengthGroupedSampler


class RankwiseTrainer(Trainer):
    """Trains `method.model`.

    - `method.penalty()` is added to the task loss in training, with a weight that depends neither on gradient
      accumulation nor on the number of processes.
    - In evaluation the loss is the task loss alone.
    - The task loss of every optimizer step is kept as a float in `losses`; NaN or infinity stops training. Losses and
      `elapsed()` of a resumed run include what came before the interruption.
    - Checkpoints hold the method's own state (live shapes included) instead of a PEFT folder.
    """

    def __init__(self, *, method: Method, **kwargs: Any) -> None:  # noqa: ANN401 - handed to Trainer as it is
        super().__init__(model=method.model, **kwargs)
        # Classifiers and regressors take the item count but average over the micro-batch all the same (BERT's do), so
        # the Trainer would forget to divide by the accumulation steps. Only the causal loss makes use of the count.
        self.model_accepts_loss_kwargs &= task_type(method.task_loss_model()) is TaskType.CAUSAL_LM
        self.method = method
        self.losses: list[tuple[int, float]] = []
        self._micro_losses: list[Tensor] = []
        self._started = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return time.perf_counter() - self._started

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401 - Trainer's signature: a loss, or a loss and outputs
        """The task loss; in training plus the penalty."""
        if not model.training:
            return super().compute_loss(self.method.task_loss_model(), inputs, return_outputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        steps = self.current_gradient_accumulation_steps
        task_loss = self._task_loss(loss, outputs, inputs["labels"])
        self._note(task_loss if scaled else task_loss / steps)
        penalty = self.method.penalty()
        if penalty is not None:
            loss = loss + (penalty / steps if scaled else penalty)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _task_loss(self, loss: Tensor, outputs: Any, labels: Tensor) -> Tensor:  # noqa: ANN401 - a ModelOutput
        """`loss` without what a wrapper added to it inside `forward` (in place, so it is computed anew from logits)."""
        inner: Any = self.method.task_loss_model()
        if inner is self.method.model:
            return loss.detach()
        task_loss: Tensor = inner.loss_function(labels=labels, pooled_logits=outputs.logits, config=inner.config)
        return task_loss

    def _note(self, loss: Tensor) -> None:
        """Collect micro-batch losses; read them off the device once per optimizer step."""
        self._micro_losses.append(loss)
        if not self.accelerator.gradient_state.sync_gradients:
            return
        total = float(torch.stack(self._micro_losses).sum())
        self._micro_losses = []
        step = self.state.global_step + 1
        self.losses.append((step, total))
        self.state.log_history.append({"step": step, "task_loss": total, "seconds": self.elapsed()})
        if not math.isfinite(total):
            rate = self._get_learning_rate()
            raise TrainingError(
                f"the loss is {total} at step {step} (learning rate {rate:.2g}); lower training.learning_rate, "
                "or set training.max_grad_norm"
            )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:  # noqa: ANN401
        lengths = list(self.train_dataset["length"])  # the dataset handed in has lost the column
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(lengths, size, self.args.seed)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401 - Trainer's signature
        if self.state.global_step < self.state.max_steps:  # resumed from its last step, Trainer would take one too many
            try:
                super()._save_checkpoint(model, trial)
            except RankwiseError:
                raise
            except (OSError, RuntimeError, SafetensorError) as error:  # torch.save turns a full disk into RuntimeError
                where = f"{self.args.output_dir} after step {self.state.global_step}"
                raise OutputError(f"cannot save the state of the run in {where}: {error}") from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_method(self.method, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_method(self.method, folder)
        history = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).log_history
        noted = [entry for entry in history if "task_loss" in entry]
        self.losses = [(entry["step"], entry["task_loss"]) for entry in noted]
        self._started = time.perf_counter() - (noted[-1]["seconds"] if noted else 0.0)
