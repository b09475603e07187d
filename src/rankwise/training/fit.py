"""One training run: a method, encoded data and settings in; timings, losses and predictions out."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from transformers import DataCollatorWithPadding, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rankwise.adapters.contract import Method
from rankwise.adapters.distributed import broadcast_object
from rankwise.allocation.schedules import in_steps
from rankwise.errors import ConfigError, Finding
from rankwise.training.callback import RankEvent, RankwiseCallback
from rankwise.training.checkpoints import STATE_FILE
from rankwise.training.tracking import EVERY, NOWHERE, Tracking, check_trackers, conclude, explained, settle_folder
from rankwise.training.trainer import RankwiseTrainer
from rankwise.training.watch import Watch, Watcher, predicted

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class FitSettings:
    """How a run is trained; every number is final (steps, not fractions of unknown data).

    Batch sizes are those of one forward pass over all processes together, each of which takes its part.
    """

    total_steps: int
    batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    weight_decay: float
    warmup: int | float
    schedule: Literal["linear", "cosine", "constant"]
    max_grad_norm: float
    gradient_checkpointing: bool
    precision: Literal["fp32", "bf16"]
    evaluation_batch_size: int
    seed: int
    save_every: int | None = None
    tracking: Tracking = NOWHERE


@dataclass(frozen=True)
class Fitted:
    """What training and evaluation gave. Logits are (examples, labels); `eval_losses` are task losses per split."""

    train_seconds: float
    losses: list[tuple[int, float]]
    trace: list[RankEvent]
    logits: dict[str, np.ndarray]
    references: dict[str, np.ndarray]
    eval_losses: dict[str, float]


class _StepReport(TrainerCallback):
    """Tells a progress display about every optimizer step."""

    def __init__(self, report: Callable[[int, float | None], None], trainer: RankwiseTrainer) -> None:
        self._report, self._trainer = report, trainer

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """One more step is done."""
        losses = self._trainer.losses
        self._report(state.global_step, losses[-1][1] if losses else None)


def fit(
    method: Method,
    tokenizer: "PreTrainedTokenizerBase",
    train: "Dataset",
    validation: "Mapping[str, Dataset]",
    settings: FitSettings,
    *,
    work_dir: Path,
    on_step: Callable[[int, float | None], None] | None = None,
    on_event: Callable[[RankEvent], None] | None = None,
    watch: Watch | None = None,
) -> Fitted:
    """Train, then predict every validation split once. Resumes from a checkpoint in `work_dir` if there is one.

    With `watch` the first split is also measured on the way, which changes nothing about the result.
    Under `torchrun` all processes call this together, and all of them get the same result.

    Raises:
        TrainingError: the loss is not finite, or trainer and method disagree.
        ConfigError, MissingPackageError: a tracker that is none, or whose package is missing.
        AllocationError: the method did not do what it promised.
    """
    check_trackers(settings.tracking.to)
    driver = RankwiseCallback(method, total_steps=settings.total_steps, seed=settings.seed, on_event=on_event)
    with explained():
        trainer = RankwiseTrainer(
            method=method,
            args=training_arguments(settings, work_dir),
            train_dataset=train,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[driver],
        )
    settle_folder(trainer, settings.tracking)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if on_step is not None:
        trainer.add_callback(_StepReport(on_step, trainer))
    if watch is not None:
        first = next(iter(validation.values()))
        trainer.add_callback(Watcher(watch, trainer, first, settings.total_steps))
    checkpoint = broadcast_object(last_checkpoint(work_dir)) if settings.save_every else None
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = trainer.elapsed()
    logits, references, eval_losses = {}, {}, {}
    for name, data in validation.items():
        logits[name], references[name], eval_losses[name] = predicted(trainer, data)
    conclude(trainer, settings.tracking, eval_losses)
    return Fitted(seconds, trainer.losses, driver.trace, logits, references, eval_losses)


def last_checkpoint(work_dir: Path) -> str | None:
    """The newest complete checkpoint in `work_dir`, past any that was being written when the run was killed."""
    numbered = [folder for folder in work_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", folder.name)]
    newest_first = sorted(numbered, key=lambda folder: int(folder.name.rsplit("-", 1)[1]), reverse=True)
    return next((str(folder) for folder in newest_first if _complete(folder)), None)


def _complete(folder: Path) -> bool:
    """Whether every part is there, and the trainer's state, which is written last, to its end."""
    parts = (STATE_FILE, "optimizer.pt", "scheduler.pt", "rng_state*.pth")
    if not all(any(folder.glob(part)) for part in parts):
        return False
    try:
        TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError):
        return False
    return True


def training_arguments(settings: FitSettings, work_dir: Path) -> TrainingArguments:
    """The Trainer's arguments for `settings`; the Trainer itself evaluates nothing, and only logs to trackers.

    Raises:
        ConfigError: the batch cannot be split evenly over the processes.
    """
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        max_steps=settings.total_steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.evaluation_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=0 if settings.warmup == 0 else in_steps(settings.warmup, settings.total_steps),
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),  # said aloud, because Trainer refuses bf16 on a CPU otherwise
        seed=settings.seed,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or 500,
        save_total_limit=2,
        logging_strategy="steps" if settings.tracking.to else "no",
        logging_steps=EVERY,
        run_name=settings.tracking.name or None,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        report_to=list(settings.tracking.to) or "none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
        **_checkpointing(settings.gradient_checkpointing),
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs need several processes; DataParallel would copy adapters
    split_evenly(settings.batch_size, arguments.world_size)
    arguments.per_device_train_batch_size //= arguments.world_size
    arguments.per_device_eval_batch_size = -(-settings.evaluation_batch_size // arguments.world_size)
    return arguments


def split_evenly(batch_size: int, processes: int) -> None:
    """Refuse a batch that does not split evenly over the processes.

    Raises:
        ConfigError: it does not; says which sizes would.
    """
    if batch_size % processes:
        near = max(processes, batch_size - batch_size % processes)
        message = (
            f"{batch_size} examples per forward pass cannot be split evenly over {processes} processes; use a multiple "
            f"of {processes}, such as {near} or {near + processes}"
        )
        raise ConfigError("training", [Finding("training.batch_size", message)])


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """The arguments for gradient checkpointing; a late Transformers 5 renamed them and warns of the old names."""
    known = TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: wanted, f"{name}_kwargs": {"use_reentrant": False} if wanted else None}
