"""Changing ranks under `DistributedDataParallel`.

DDP's reducer knows the parameters that were there when the model was wrapped. After a resize it would wait for
gradients of tensors that are gone and leave the new ones to drift apart. So the wrapper builds its reducer anew, in
place: the trainer's own references to the wrapper stay valid.
"""

import gc
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rankwise.adapters.contract import Resize
from rankwise.adapters.distributed import broadcast_object, broadcast_tensors, world_size
from rankwise.adapters.resize import OptimizerLike
from rankwise.errors import TrainingError


def wrappers_of(model: nn.Module) -> list[DistributedDataParallel]:
    """The DDP wrappers around `model`; empty with one process.

    A callback is not told of the wrapper, so the garbage collector is asked (once, a fraction of a second).

    Raises:
        TrainingError: several processes, but the model is not wrapped by DDP (FSDP, DeepSpeed, …).
    """
    if world_size() == 1:
        return []
    found: list[DistributedDataParallel] = [
        candidate
        for candidate in gc.get_objects()
        if issubclass(type(candidate), DistributedDataParallel)
        and candidate.__dict__["_modules"].get("module") is model
    ]
    if not found:
        raise TrainingError(
            "ranks can change on several processes only under DistributedDataParallel, which this trainer does not "
            "use for the model (FSDP or DeepSpeed?); use DDP, one process, or `lora`"
        )
    return found


def rebuild_reducer(wrapper: DistributedDataParallel) -> None:
    """Make `wrapper` reduce the gradients of the parameters that its module has now; its settings stay.

    This is what unpickling a DDP module does (`__setstate__`), after the old reducer's hooks are off: a parameter that
    lives on must not report to two reducers.
    """
    wrapper._remove_autograd_hooks()
    hooks = list(wrapper._comm_hooks)
    wrapper._module_parameters = list(wrapper.module.parameters())
    wrapper.__setstate__(wrapper.__getstate__())
    wrapper._has_rebuilt_buckets = False
    wrapper._comm_hooks = []
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)


def agreed(resize: Resize | None) -> Resize | None:
    """What process 0 decided. With several processes all of them must call this, whether they want a resize or not."""
    return resize if world_size() == 1 else broadcast_object(resize)


def align(model: nn.Module, optimizer: OptimizerLike) -> None:
    """Give every process the trainable weights and the optimizer state of process 0.

    Every process has computed the same resize; on unlike machines their results may differ in the last bit.
    """
    if world_size() == 1:
        return
    trainable = [p for p in model.parameters() if p.requires_grad]
    broadcast_tensors([*(p.data for p in trainable), *_states(optimizer, trainable)])


def _states(optimizer: OptimizerLike, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """State tensors in a fixed order; step counters are left out, they never differ and may live on the CPU."""
    entries = [optimizer.state.get(parameter, {}) for parameter in parameters]
    values = [entry[key] for entry in entries for key in sorted(entry)]
    return [value for value in values if torch.is_tensor(value) and value.dim() > 0]
