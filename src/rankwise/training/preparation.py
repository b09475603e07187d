"""Training batches for a method's `prepare` and `conclude`, without a trace in the run around them."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from rankwise.adapters.contract import Batches, Method, Resize, generator_for

_SALT = 9_001  # keeps this order apart from other random streams of the same seed


def prepare(
    method: Method, dataset: Dataset[Any], collate: Callable[[list[Any]], Any], batch_size: int, seed: int
) -> Resize | None:
    """Call `method.prepare` with batches of the training data, if the method has such a step.

    Whatever it draws or leaves behind is undone: the global random states, gradients and training mode are what they
    were.

    Args:
        method: not yet trained.
        dataset: training examples as the trainer's data loader reads them.
        collate: makes a batch of a list of examples.
        batch_size: examples per batch; with several processes every process sees the same, global batches, so that
            all of them (and one process alone) come to the same decision.
        seed: decides the order.
    """
    if type(method).prepare is Method.prepare:
        return None
    model = method.model
    training = model.training
    with same_random_state():
        resize = method.prepare(batches_of(model, dataset, collate, batch_size, seed))
    model.train(training)
    model.zero_grad(set_to_none=True)
    return resize


def conclude(
    method: Method, dataset: Dataset[Any], collate: Callable[[list[Any]], Any], batch_size: int, seed: int
) -> None:
    """Call `method.conclude` in the same way, without gradients and with dropout off.

    Args:
        method: trained.
        dataset: see `prepare`.
        collate: see `prepare`.
        batch_size: see `prepare`.
        seed: see `prepare`.
    """
    if type(method).conclude is Method.conclude:
        return
    model = method.model
    training = model.training
    with same_random_state(), torch.no_grad():
        model.eval()
        method.conclude(batches_of(model, dataset, collate, batch_size, seed))
    model.train(training)


def batches_of(
    model: nn.Module,
    dataset: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    batch_size: int,
    seed: int,
) -> Batches:
    """Starts passes over `dataset` in one and the same random order (its own, if it has no length)."""
    device = next(model.parameters()).device

    def start() -> Iterable[dict[str, Tensor]]:
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=not isinstance(dataset, IterableDataset),
            collate_fn=collate,
            generator=generator_for(seed, _SALT),
        )
        for batch in loader:
            yield {name: value.to(device) for name, value in batch.items() if torch.is_tensor(value)}

    return start


@contextmanager
def same_random_state() -> Iterator[None]:
    """Put Python's, NumPy's and torch's random states (CPU and accelerators) back when the block ends."""
    python, numpy = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        with torch.random.fork_rng(device_type="cuda" if accelerator is None else accelerator.type):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
