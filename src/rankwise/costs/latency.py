"""How long inference takes: variants of a model measured in turn, in one process.

In every round each variant runs the same batch, in a random order; so whatever else the machine does hits all of them.
A call that is timed follows one that is not, because the weights of the variant before are what the caches hold. Ratios
are taken within a round; the median over rounds is what is said, with its quartiles.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from rankwise.costs.flops import Batch

WARM_UP = 2
"""Rounds that are not counted."""


@dataclass(frozen=True)
class Variant:
    """A way to run a model; `prepare` is called before its turn, outside the clock."""

    model: nn.Module
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Times:
    """Seconds of every variant, one per round, in the order of the rounds."""

    seconds: dict[str, list[float]]

    def percentile(self, name: str, percent: int) -> float:
        """Seconds; the smallest value that at least `percent` of the rounds do not exceed (nearest rank)."""
        ordered = sorted(self.seconds[name])
        return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]

    def ratio(self, name: str, reference: str) -> Spread:
        """Of `name` over `reference` in the same round."""
        ratios = [own / other for own, other in zip(self.seconds[name], self.seconds[reference], strict=True)]
        if len(ratios) == 1:
            return Spread(ratios[0], ratios[0], ratios[0])
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return Spread(median, low, high)


def measure(
    variants: Mapping[str, Variant],
    batches: Sequence[Batch],
    rounds: int,
    *,
    seed: int = 0,
    step: Callable[[], None] = lambda: None,
) -> Times:
    """Time `variants` on `batches`, one batch per round, in turn.

    Args:
        variants: by name; put into evaluation mode.
        batches: keyword arguments of the forward passes, on the models' device.
        rounds: that count; `WARM_UP` more come first.
        seed: of the orders.
        step: called after every round, the first ones too.
    """
    order = random.Random(seed)
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for variant in variants.values():
        variant.model.eval()
    with torch.inference_mode(), _no_collections():
        for number in range(rounds + WARM_UP):
            for name in order.sample(names, len(names)):
                spent = _timed(variants[name], batches[number % len(batches)])
                if number >= WARM_UP:
                    seconds[name].append(spent)
            step()
    return Times(seconds)


def _timed(variant: Variant, batch: Batch) -> float:
    variant.prepare()
    variant.model(**batch)
    _wait(batch)
    start = time.perf_counter()
    variant.model(**batch)
    _wait(batch)
    return time.perf_counter() - start


def _wait(batch: Batch) -> None:
    """A GPU works on after the call has returned."""
    device = next(iter(batch.values())).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Python's garbage collector waits."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
