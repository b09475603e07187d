"""Decisions remembered for inputs that come again, in inference.

An input is known by everything that its decisions depend on: its mask and integer tensors (token ids, token types, …)
at the places of its real tokens, those places, and the adapters that work on it. Where other tensors of real numbers
are given, or gradients are enabled, nothing is remembered or looked up. At most `size` examples are remembered, the
longest unused go first. A pass in training forgets all, and so does a change of a config's decision rule, or of a
weight if autograd counts it; changes through `.data` it does not count: call `DecisionCache.clear` after one.
"""

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.conditional.rad_config import RadloraPeftConfig

Entry = dict[str, Any]
"""Module -> what it decided for one example."""


@dataclass(frozen=True)
class CacheReport:
    """What a cache has done since it was made.

    Args:
        hits: examples whose decisions were known.
        lookups: examples that were asked for.
        entries: examples that are remembered now.
        size: the most that can be.
    """

    hits: int
    lookups: int
    entries: int
    size: int

    @property
    def rate(self) -> float:
        """Share of hits; 0 where nothing was asked."""
        return self.hits / self.lookups if self.lookups else 0.0


class DecisionCache:
    """Of one adapter on one base model.

    Args:
        model: the base model; a forward pre-hook notes its arguments.
        config: of the adapter.
    """

    def __init__(self, model: nn.Module, config: RadloraPeftConfig) -> None:
        self.config, self.hits, self.lookups = config, 0, 0
        self._model = (model,)
        self._signature = inspect.signature(model.forward)
        self._store: OrderedDict[tuple[Any, ...], Entry] = OrderedDict()
        self._given: dict[str, Tensor] = {}
        self._found: list[Entry] | None = None
        self._made_by: tuple[Any, ...] = ()
        self.hook = model.register_forward_pre_hook(self.begin, with_kwargs=True)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the base model."""
        self._found, self._given = None, {}
        if module.training:
            self.clear()
            return
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        mask = given.pop("attention_mask", None)
        tensors = {name: t for name, t in given.items() if torch.is_tensor(t)}
        if not any(t.is_floating_point() for t in tensors.values()):
            self._given = tensors if mask is None else tensors | {"attention_mask": mask}

    def clear(self) -> None:
        """Forget all decisions; needed after weights were changed through `.data`, which nothing here can see."""
        self._store.clear()

    def entries(self, adapters: tuple[str, ...], rows: Tensor | None) -> list[Entry] | None:
        """One entry per example of the pass that goes on, to be read and filled in; None where inputs have no ids.

        Args:
            adapters: that work on these examples.
            rows: which examples of the batch they are; None for all.
        """
        if self._found is None:
            keys = _keys(self._given, adapters)
            if keys is None:
                return None
            self._found = self._look_up(keys if rows is None else [keys[i] for i in rows.tolist()])
        return self._found

    def report(self) -> CacheReport:
        """Hits, lookups and entries."""
        return CacheReport(self.hits, self.lookups, len(self._store), self.config.cache)

    def _look_up(self, keys: list[tuple[Any, ...]]) -> list[Entry]:
        config, model = self.config, self._model[0]
        rule = (config.threshold, config.rank_price, config.temperature)
        made_by = (rule, *((p.data_ptr(), p._version) for p in model.parameters()))
        if made_by != self._made_by:
            self.clear()
            self._made_by = made_by
        self.lookups += len(keys)
        self.hits += sum(key in self._store for key in keys)
        found = []
        for key in keys:
            entry = self._store.setdefault(key, {})
            self._store.move_to_end(key)
            found.append(entry)
            if len(self._store) > config.cache:
                self._store.popitem(last=False)
        return found


def _keys(given: Mapping[str, Tensor], adapters: tuple[str, ...]) -> list[tuple[Any, ...]] | None:
    """One per example, whatever padding follows it; None without ids, or with a mask that is not per token."""
    ids = given.get("input_ids")
    if ids is None:
        return None
    mask = given.get("attention_mask", torch.ones_like(ids))
    if not torch.is_tensor(mask) or mask.shape != ids.shape:
        return None
    places = torch.arange(ids.shape[1])[None]
    known = {"position_ids": places} | {name: t.cpu() for name, t in given.items()} | {"attention_mask": mask.cpu()}
    real, tensors = known["attention_mask"].bool(), sorted(known.items())
    return [
        (adapters, *((name, tuple(_of_row(t, i, real).flatten().tolist())) for name, t in tensors))
        for i in range(len(ids))
    ]


def _of_row(given: Tensor, row: int, real: Tensor) -> Tensor:
    """What `given` says of one example (what has one row, or none, holds for all), of its real tokens if per token."""
    if given.dim() and len(given) in (1, len(real)):
        given = given[row if len(given) > 1 else 0]
    return given[real[row]] if given.shape == real.shape[1:] else given
