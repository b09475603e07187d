"""A small subclass of the Transformers `Trainer`: penalty, honest eval loss, length-grouped order, exact resume."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from peft import TaskType
from safetensors import SafetensorError
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from rankwise.adapters.attach import task_type
from rankwise.adapters.contract import Method
from rankwise.adapters.distributed import all_mean, world_size
from rankwise.errors import DivergedError, OutputError, RankwiseError
from rankwise.interrupts import check_interrupt
from rankwise.training.callback import RankwiseCallback
from rankwise.training.checkpoints import load_method, save_method, whole
from rankwise.training.data import LengthGroupedSampler, SharedBatches


class RankwiseTrainer(Trainer):
    """Trains `method.model`.

    - `method.penalty()` is added to the task loss in training, once per optimizer step and with a weight that depends
      neither on gradient accumulation nor on the number of processes.
    - In evaluation the loss is the task loss alone.
    - The task loss of every optimizer step (the mean over processes) is kept as a float in `losses`; NaN or infinity
      stops training. Losses and `elapsed()` of a resumed run include what came before the interruption.
    - Several processes (DDP) see the same batches as one process would, each its part of them.
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
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, RankwiseCallback):
                callback.adds_penalty = False

    def elapsed(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return time.perf_counter() - self._started

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """Leave what happens inside out of `elapsed()`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - begun

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401 - Trainer's signature: a loss, or a loss and outputs
        """The task loss; in training plus the penalty."""
        check_interrupt()
        if not model.training:
            return super().compute_loss(self.method.task_loss_model(), inputs, return_outputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        # `loss` is divided by `steps` afterwards, unless it is a share of the whole step's already.
        scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        steps = 1 if scaled else self.current_gradient_accumulation_steps
        weight = None if scaled else self._weight(len(inputs["labels"]))
        task_loss = self._task_loss(loss, outputs, inputs["labels"])
        if weight is not None:
            loss, task_loss = loss * weight, task_loss * weight
        self._note(task_loss / steps)
        penalty = self.method.penalty() if self._last_of_step() else None
        if penalty is not None:
            loss = loss + penalty * steps
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Any, Any]:
        """Loss, logits and labels; the loss is that of real examples, where a last batch was filled up with others."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        size = len(inputs["labels"])
        real = self._real_examples(size)
        if 0 < real < size:
            some = {name: value[:real] for name, value in inputs.items()}
            loss = super().prediction_step(model, some, True)[0]
        return loss, logits, labels

    def _real_examples(self, size: int) -> int:
        """How many of this process's `size` examples are not there only to give every process a batch of that size."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return size
        return int(min(max(state.remainder - self.args.process_index * size, 0), size))

    def _last_of_step(self) -> bool:
        return bool(self.accelerator.gradient_state.sync_gradients)

    def _weight(self, examples: int) -> Tensor | None:
        """What this process's mean loss counts in the mean over processes, where their parts of a batch are unequal."""
        whole = self.args.train_batch_size * self.args.world_size
        if self.args.world_size == 1 or len(self.train_dataset) % whole == 0:
            return None
        mine = torch.tensor(float(examples), device=self.args.device)
        mean = mine.clone()
        all_mean([mean])
        return mine / mean

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
        if not self._last_of_step():
            return
        value = torch.stack(self._micro_losses).sum()
        all_mean([value])
        total = float(value)
        self._micro_losses = []
        step = self.state.global_step + 1
        self.losses.append((step, total))
        self.state.log_history.append({"step": step, "task_loss": total, "seconds": self.elapsed()})
        if not math.isfinite(total):
            rate = self._get_learning_rate()
            raise DivergedError(
                f"{DivergedError.MARK}the loss is {total} at step {step} (learning rate {rate:.2g}); lower "
                "training.learning_rate, or set training.max_grad_norm"
            )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches that are the same for any number of processes; each process loads its part of them."""
        if self.args.world_size == 1:
            alone: DataLoader[Any] = super().get_train_dataloader()
            return alone
        size = self.args.train_batch_size * self.args.world_size
        batches = SharedBatches(self._get_train_sampler(), size, self.args.process_index, self.args.world_size)
        loader = DataLoader(
            self._remove_unused_columns(self.train_dataset, description="Training"),
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        # one process, as far as Accelerate is concerned: the batches are shared out already
        ready: DataLoader[Any] = prepare_data_loader(
            loader, device=self.args.device, num_processes=1, process_index=0, put_on_device=True
        )
        return ready

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:  # noqa: ANN401
        lengths = list(self.train_dataset["length"])  # the dataset handed in has lost the column
        size = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
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
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_method(self.method, folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if world_size() > 1:
            dist.barrier()  # process 0 declares a checkpoint complete when every process has written its part

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with whole(Path(checkpoint or "") / "optimizer.pt or scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with whole(Path(checkpoint or "") / "rng_state"):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_method(self.method, folder)
        with whole(folder / TRAINER_STATE_NAME):
            history = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).log_history
        noted = [entry for entry in history if "task_loss" in entry]
        self.losses = [(entry["step"], entry["task_loss"]) for entry in noted]
        self._started = time.perf_counter() - (noted[-1]["seconds"] if noted else 0.0)
