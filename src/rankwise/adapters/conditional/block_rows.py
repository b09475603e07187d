"""Running a block for some rows of a batch: which of its arguments have a row per example, and what a cache holds then.

A block is handed masks, positions and a cache beside its hidden states. Arguments are known by name; where one is not
known and could have rows of examples, `take_rows` says so, and the caller runs all rows. A key-value cache holds the
kept rows alone, the same ones at every token, because decisions hold while text is generated; operations on a whole
cache (beams that change places) are translated to those rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

BY_ROW = frozenset(
    ("attention_mask", "position_ids", "position_embeddings", "encoder_hidden_states", "encoder_attention_mask")
)
"""Arguments with one row per example, or one row for all."""
SHARED = frozenset(("cache_position", "rel_embeddings", "relative_pos"))
"""Tensors that all examples share, whatever their first dimension is."""


class UnknownArgument(Exception):
    """An argument may have rows of examples, and nobody knows."""


def take_rows(given: Mapping[str, Any], rows: Tensor, batch: int) -> dict[str, Any]:
    """`given` for some rows.

    Args:
        given: a block's arguments by name, its hidden states left out.
        rows: indices.
        batch: how many rows there are.

    Raises:
        UnknownArgument: one of them cannot be told apart.
    """
    return {name: _take(name, value, rows, batch) for name, value in given.items()}


def _take(name: str, value: Any, rows: Tensor, batch: int) -> Any:  # noqa: ANN401 - whatever a block takes
    if isinstance(value, tuple | list):
        return type(value)(_take(name, part, rows, batch) for part in value)
    if not isinstance(value, Tensor):
        if value is None or isinstance(value, bool | int | float | str) or spares_rows(value):
            return value
        raise UnknownArgument(name)
    if name in SHARED or value.dim() == 0 or value.shape[0] == 1 != batch:
        return value
    if name in BY_ROW and value.shape[0] == batch:
        return value.index_select(0, rows)
    raise UnknownArgument(name)


def cache_among(values: Sequence[Any]) -> Cache | None:
    """The cache among a block's arguments."""
    return next((value for value in values if isinstance(value, Cache)), None)


def spares_rows(cache: Any) -> bool:  # noqa: ANN401 - a cache, or anything else
    """Whether a cache's layers know nothing of each other, so that each may hold rows of its own, or none at all.

    In a mixture of sliding and full attention the lengths of all are read off the first layer of a kind.
    """
    return type(cache) is DynamicCache and all(type(layer) in (DynamicLayer, SomeRows) for layer in cache.layers)


class SomeRows(DynamicLayer):
    """One layer of a cache that holds some rows of the batch.

    `rows` are their indices, of `batch`.
    """

    rows: Tensor
    batch: int

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beams of one example change places; they were all decided on alike.

        Raises:
            ValueError: rows that are held and rows that are not change places.
        """
        rows = self.rows.to(beam_idx.device)
        place = torch.full((self.batch,), -1, device=beam_idx.device)
        place[rows] = torch.arange(len(rows), device=beam_idx.device)
        wanted = place[beam_idx[rows]]
        if bool((wanted < 0).any()):
            raise ValueError("beams of different examples changed places, which do not skip the same blocks")
        super().reorder_cache(wanted)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        each = torch.arange(repeats, device=self.rows.device)
        self.rows, self.batch = (self.rows[:, None] * repeats + each).flatten(), self.batch * repeats

    def batch_select_indices(self, indices: Tensor) -> None:
        """Not possible.

        Raises:
            ValueError: always; says why.
        """
        raise ValueError("examples cannot be taken out of a cache whose examples skip different blocks")


def note_rows(cache: Cache | None, rows: Tensor, batch: int) -> None:
    """Tell the layer of `cache` that was just filled which rows it holds."""
    for layer in cache.layers if cache is not None else ():
        if type(layer) is DynamicLayer and layer.is_initialized and layer.keys.shape[0] == len(rows) != batch:
            layer.__class__ = SomeRows
            layer.rows, layer.batch = rows, batch
