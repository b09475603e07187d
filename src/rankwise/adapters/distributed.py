"""The few questions a method asks about processes. One process without `torch.distributed` is a world of size 1."""

from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _running() else 1


def is_main() -> bool:
    """Whether this process decides, writes and prints."""
    return not _running() or dist.get_rank() == 0


@torch.no_grad()
def all_mean(tensors: list[Tensor]) -> None:
    """Replace every tensor by its mean over the processes, in place, bit for bit the same on all of them.

    All values travel in one all-reduce (float32, or float64 if any of them is); every process must pass tensors of
    the same shapes in the same order.
    """
    if world_size() == 1 or not tensors:
        return
    widest = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    flat = torch.cat([t.detach().reshape(-1).to(widest) for t in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def broadcast_tensors(tensors: list[Tensor]) -> None:
    """Give every process the values that process 0 holds, in place; one transfer per dtype and device.

    Every process must pass tensors of the same shapes and dtypes in the same order.
    """
    if world_size() == 1:
        return
    kinds = list(dict.fromkeys((t.dtype, t.device) for t in tensors))
    for kind in kinds:
        group = [t for t in tensors if (t.dtype, t.device) == kind]
        flat = torch.cat([t.detach().reshape(-1) for t in group])
        dist.broadcast(flat, src=0)
        for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def broadcast_object(value: T) -> T:
    """What process 0 passed (pickled); the others' values are ignored. All processes must call it."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
