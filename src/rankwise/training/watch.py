"""Measurements while a run trains, that leave the run as it would have been without them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.training.trainer import RankwiseTrainer

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Watch:
    """Predict the first evaluation split at regular shares of training, and hand over what came out.

    `every` is the share of training between two measurements. `report` gets the number of the measurement (1, 2, …),
    logits (examples, labels) and references (examples,); what it raises ends training.
    """

    every: float
    report: Callable[[int, np.ndarray, np.ndarray], None]


def moments(every: float, total_steps: int) -> dict[int, int]:
    """Step after which a measurement is due -> its number; the last step is left to the evaluation proper."""
    found: dict[int, int] = {}
    for number in range(1, int(1 / every) + 1):
        step = round(number * every * total_steps)
        if 0 < step < total_steps:
            found.setdefault(step, number)
    return found


class Watcher(TrainerCallback):
    """Measures when it is due. Neither random numbers nor the time counted as training take notice."""

    def __init__(self, watch: Watch, trainer: RankwiseTrainer, data: "Dataset", total_steps: int) -> None:
        self._watch, self._trainer, self._data = watch, trainer, data
        self._due = moments(watch.every, total_steps)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """One more step is done; perhaps a measurement is due."""
        number = self._due.get(state.global_step)
        if number is None:
            return
        with self._trainer.not_counted(), _own_random_numbers():
            logits, references, _ = predicted(self._trainer, self._data)
        self._watch.report(number, logits, references)


def predicted(trainer: RankwiseTrainer, data: "Dataset") -> tuple[np.ndarray, np.ndarray, float]:
    """Logits (examples, labels) and references (examples,) in the order of `data`, and the mean task loss."""
    by_length = np.argsort(data["length"][:], kind="stable")  # batches of one length need no padding
    output = trainer.predict(data.select(by_length), metric_key_prefix="eval")
    back = np.argsort(by_length)
    logits, references = np.asarray(output.predictions)[back], np.asarray(output.label_ids)[back]
    return logits, references, float(output.metrics["eval_loss"])


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """A data loader draws from the global generator even where nothing is shuffled, which would move every dropout."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
