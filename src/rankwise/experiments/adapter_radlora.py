"""Plain LoRA factors out of a RAD-LoRA checkpoint, without its model: windows into banks, generators at their centre.

See `adapters.conditional.rad_bank` and `rad_hyper` for what is stored.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rankwise.adapters.attach import Matrix
from rankwise.adapters.conditional.rad_bank import BANKS
from rankwise.adapters.conditional.rad_hyper import HYPER
from rankwise.errors import DataError

Parts = Mapping[str, Mapping[str, Tensor]]
"""Module -> (`lora_bank_A.weight`, `lora_router.down` …) -> tensor."""


def bank_factors(
    parts: Parts, config: Mapping[str, Any], matrices: Mapping[str, Matrix]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> A (rank, in) and B (out, rank), as its windows show them.

    Args:
        parts: of the file.
        config: `windows` and `r` are used.
        matrices: the base model's linear layers, which say which banks a module uses.

    Raises:
        DataError: a window is missing or outside of its bank, or the base model has other modules than the checkpoint.
    """
    banks = {
        (side, value.shape[1]): value
        for tensors in parts.values()
        for side, container in BANKS.items()
        if (value := tensors.get(f"{container}.weight")) is not None
    }
    windows, rank = config.get("windows") or {}, int(config["r"])
    found = {}
    for name in parts:
        matrix, window = matrices.get(name), windows.get(name)
        if matrix is None or window is None:
            raise DataError(f"{name} is {'no module of the base model' if matrix is None else 'without a window'}")
        keys = ("in", matrix.in_features), ("out", matrix.out_features)
        if missing := next((key for key in keys if key not in banks), None):
            raise DataError(f"{name} needs a bank of {missing[0]}puts of width {missing[1]}, which is not in the file")
        rows = [_window(banks[key], first, rank, name) for key, first in zip(keys, window, strict=True)]
        found[name] = (rows[0], rows[1].t())
    return found


def generated_factors(parts: Parts, config: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> A (rank, in) and B (out, rank) that its generator G c + g writes for the average input c."""
    rank, found = int(config["r"]), {}
    for name, tensors in parts.items():
        weight, bias, seen = (tensors[f"{HYPER}.{part}"] for part in ("weight", "bias", "centre"))
        if (down := tensors.get(f"{HYPER}.down")) is not None:
            seen = down @ seen
        made = (weight @ seen + bias).view(rank, -1)
        width = len(tensors[f"{HYPER}.centre"])
        found[name] = (made[:, :width], made[:, width:].t())
    return found


def _window(bank: Tensor, first: object, rank: int, name: str) -> Tensor:
    """`rank` neighbouring rows of a ring."""
    if not isinstance(first, int) or not 0 <= first < len(bank):
        raise DataError(f"the window of {name} begins at {first!r}; its bank has components 0 to {len(bank) - 1}")
    return bank[(first + torch.arange(rank)) % len(bank)]
