"""A method's state in a trainer's checkpoint: written, taken up, and found by a stock `Trainer` too."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from rankwise.adapters.attach import ADAPTER
from rankwise.adapters.contract import Method
from rankwise.errors import OutputError, TrainingError

STATE_FILE = "rankwise.safetensors"
SETTINGS_KEY = "rankwise.settings"
"""Under which a state's metadata says what method, with which settings, wrote it."""
HISTORY_KEY = "rank_event"
"""Key of a rank event in the trainer's log history, which travels with its checkpoints."""


def save_method(method: Method, folder: Path) -> None:
    """Write a method's state into a checkpoint folder (safetensors), complete or not at all.

    Raises:
        OutputError: it cannot be written (the reason is given).
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}
    temporary = folder / f".{STATE_FILE}.{os.getpid()}"
    try:
        save_file(state, str(temporary), metadata={SETTINGS_KEY: method.config.model_dump_json()})
        temporary.replace(folder / STATE_FILE)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot save the state of the run in {folder}: {reason}") from error


def load_method(method: Method, folder: Path) -> None:
    """Take up a state written by `save_method`, before the optimizer exists.

    Raises:
        TrainingError: the folder holds none, it is damaged, or it is another method's or one with other settings.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise TrainingError(f"cannot resume: {folder} holds no {STATE_FILE}")
    with whole(path):
        with safe_open(str(path), framework="pt") as file:
            written = (file.metadata() or {}).get(SETTINGS_KEY)
        state = load_file(str(path))
    if written is not None:
        _check_same(json.loads(written), method, folder)
    method.load_state_dict(state)


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Reading part of a checkpoint.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        yield
    except Exception as error:  # torch, safetensors and json each raise their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(
            f"cannot resume: {path} is damaged ({reason}); remove the folder {path.parent.name} to go on from an older "
            "checkpoint, or from the start"
        ) from error


def _check_same(written: dict[str, Any], method: Method, folder: Path) -> None:
    """A state makes sense to the method that wrote it, with the settings it had."""
    own = json.loads(method.config.model_dump_json())
    other = {key for key in own.keys() | written.keys() if own.get(key) != written.get(key)}
    if "name" in other:
        other = {"name"}
    if other:
        listed = "; ".join(f"{key} was {written.get(key)!r}, is {own.get(key)!r}" for key in sorted(other))
        raise TrainingError(
            f"cannot resume: {folder} was written by another method or with other settings ({listed}); use the "
            "same ones, or start anew"
        )


def adopt_checkpoints(method: Method, on_load: Callable[[], None]) -> None:
    """Let `method.model.load_adapter`, through which a stock `Trainer` resumes, take up states of `method`.

    PEFT's own loading fails on checkpoints whose ranks differ from the model's, and knows nothing of a method's
    memory. Folders without a `STATE_FILE`, and other adapters' names, go to PEFT as before.

    Args:
        method: whose model is watched; full fine-tuning needs no help.
        on_load: called after a state was taken up.
    """
    if isinstance(method.model, PeftModel):
        method.model.load_adapter = _LoadAdapter(method, method.model, on_load)


class _LoadAdapter:
    """Stands in for a model's `load_adapter`. A copy of the model gets PEFT's own back."""

    def __init__(self, method: Method, model: PeftModel, on_load: Callable[[], None]) -> None:
        self._method, self._model, self._on_load = method, model, on_load

    def __call__(self, model_id: str, adapter_name: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - PEFT's
        folder = Path(model_id)
        if adapter_name != ADAPTER or not _is_ours(folder):
            return type(self._model).load_adapter(self._model, model_id, adapter_name, *args, **kwargs)
        load_method(self._method, folder)
        self._on_load()
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> object:
        return MethodType(type(self._model).load_adapter, memo[id(self._model)])


def _is_ours(folder: Path) -> bool:
    """Whether a `RankwiseCallback` was there when it was written; if its state is missing, `load_method` says so."""
    if (folder / STATE_FILE).is_file():
        return True
    trainer_state = folder / TRAINER_STATE_NAME
    if not trainer_state.is_file():
        return False
    return any(HISTORY_KEY in entry for entry in TrainerState.load_from_json(str(trainer_state)).log_history)
