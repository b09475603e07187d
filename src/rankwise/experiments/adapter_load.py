"""Putting a checkpoint's adapter on its base model, so that nothing in it is left random or is no number."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import nn

from rankwise.errors import DataError, ModelError
from rankwise.experiments.adapter_base import FAILURES, reason

_MISSING = ".*missing adapter keys.*"
"""What PEFT only warns of: what a file lacks stays random."""


def load_adapter(folder: Path, base: nn.Module, *, name: str | None = None, cache: bool = True) -> PeftModel:
    """The checkpoint on `base`, which is wrapped, in evaluation mode.

    Args:
        folder: of the checkpoint, of any PEFT type.
        base: its base model.
        name: of the base model, for messages.
        cache: whether an adapter that can remember its decisions does.

    Raises:
        ModelError: PEFT cannot load it, or some of its weights are not in it.
        DataError: some of its weights are not finite.
    """
    known = {id(p) for p in base.parameters()}
    with quiet():
        warnings.filterwarnings("error", message=_MISSING)
        try:
            config = PeftConfig.from_pretrained(str(folder))
            if not cache:
                config.cache = 0
            model: PeftModel = PeftModel.from_pretrained(base, str(folder), config=config)
        except (*FAILURES, SafetensorError, UserWarning) as error:
            on = f" on base model '{name}'" if name else ""
            raise ModelError(f"PEFT cannot load {folder}{on}: {reason(error)}") from error
    for key, value in model.named_parameters():
        if id(value) not in known and value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"{folder}: {key} holds numbers that are not finite; did its training diverge?")
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns about its own ways with other libraries; what is wrong, it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
