"""Trackers that the Trainer knows (TensorBoard, MLflow, W&B, trackio, …), passed through.

A run logs its loss, gradient norm and learning rate every `EVERY` optimizer steps under its run id, and its evaluation
loss at the end. Nothing here depends on what a tracker does, and nothing that is measured comes from one.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import Trainer
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from rankwise.errors import ConfigError, Finding, MissingPackageError
from rankwise.registry import did_you_mean

EVERY = 10


@dataclass(frozen=True)
class Tracking:
    """Where a run is reported to.

    Args:
        to: names of trackers, as in the Trainer's `report_to`; none: nothing is logged.
        name: of the run there.
        folder: for trackers that write files, unless their own settings say otherwise.
    """

    to: tuple[str, ...] = ()
    name: str = ""
    folder: Path = Path("tracking")


NOWHERE = Tracking()


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse a tracker that the installed Transformers does not know.

    Raises:
        ConfigError: with every unknown name.
    """
    known = sorted(INTEGRATION_TO_CALLBACK)
    findings = [
        Finding(
            "training.report_to", f"no tracker '{name}'{did_you_mean(name, known) or '.'} Known: {', '.join(known)}"
        )
        for name in names
        if name not in known
    ]
    if findings:
        raise ConfigError("training", findings)


@contextmanager
def explained() -> Iterator[None]:
    """What a tracker raises when its package is missing, as ours.

    Raises:
        MissingPackageError: it is missing.
    """
    try:
        yield
    except (RuntimeError, ImportError) as error:
        if "install" not in str(error):
            raise
        raise MissingPackageError(f"training.report_to: {error}") from error


def settle_folder(trainer: Trainer, tracking: Tracking) -> None:
    """Keep TensorBoard's files out of the folder of saved states, which goes when the run is done."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(tracking.folder / tracking.name)


def conclude(trainer: Trainer, tracking: Tracking, eval_losses: Mapping[str, float]) -> None:
    """Log evaluation losses, and end what would otherwise go on into the next run of this process."""
    if not tracking.to:
        return
    trainer.log({f"eval_{name}_loss": value for name, value in eval_losses.items()})
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.close()
    if "wandb" in tracking.to and (wandb := sys.modules.get("wandb")) is not None:
        wandb.finish()
