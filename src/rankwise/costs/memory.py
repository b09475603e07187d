"""Memory: bytes of weights, exactly, and the peak of a process or of a GPU, in inference and in training."""

import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

from rankwise.costs.flops import Batch
from rankwise.errors import ModelError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """Bytes: `highest` that were held at once, `idle` before the first pass; their difference is what passes take.

    On a GPU both are what tensors take. On a CPU they are the resident size of the process, libraries included;
    `idle` is None where the system cannot tell.
    """

    highest: int
    idle: int | None

    @property
    def passes(self) -> int | None:
        """Bytes that the forward passes added."""
        return None if self.idle is None else self.highest - self.idle


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers that are stored, those that are shared once."""
    tensors = [*model.parameters(), *model.buffers()]
    stores = {(t.device, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes() for t in tensors if t.numel()}
    return sum(stores.values())


def peak_on_gpu(model: nn.Module, batches: Sequence[Batch]) -> Peak:
    """Run a model that is alone on its GPU."""
    device = next(iter(batches[0].values())).device
    torch.cuda.synchronize(device)
    idle = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    _run(model, batches)
    torch.cuda.synchronize(device)
    return Peak(torch.cuda.max_memory_allocated(device), idle)


def peak_of_process(load: Callable[[], nn.Module], batches: Sequence[Batch]) -> Peak:
    """Load and run a model on the CPU in a process of its own.

    Args:
        load: makes the model; must be picklable (a function of a module, or a `functools.partial` of one).
        batches: keyword arguments of its forward pass.

    Raises:
        ModelError: the process died (of memory, most likely) or its model could not be run.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    plain = [{name: tensor.tolist() for name, tensor in batch.items()} for batch in batches]
    process = context.Process(target=_measured, args=(load, plain, torch.get_num_threads(), there))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        process.join()
        raise ModelError(f"the process that measures memory ended with exit code {process.exitcode}") from None
    process.join()
    if isinstance(found, str):
        raise ModelError(f"the process that measures memory failed: {found}")
    peak: Peak = found
    return peak


@dataclass
class Watched:
    """What `watch_memory` finds.

    Attributes:
        highest: most bytes that were held at once: by tensors on a GPU, by the process (libraries included) on a CPU.
            None where the system cannot tell: without a GPU, on anything but Linux.
    """

    highest: int | None = None


@contextmanager
def watch_memory() -> Iterator[Watched]:
    """The peak from here to the end of the block, whatever this process did before."""
    watched = Watched()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield watched
        watched.highest = torch.cuda.max_memory_allocated()
        return
    _give_back()
    idle = _forget_peak()
    yield watched
    watched.highest = None if idle is None else _peak()


def _give_back() -> None:
    """What earlier work has freed and the C library keeps would count as held. Linux with glibc only."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _measured(
    load: Callable[[], nn.Module], plain: list[dict[str, list[list[int]]]], threads: int, answer: Connection
) -> None:
    try:
        torch.set_num_threads(threads)
        model = load()
        batches = [{name: torch.tensor(rows) for name, rows in batch.items()} for batch in plain]
        idle = _forget_peak()
        _run(model, batches)
        answer.send(Peak(_peak(), idle))
    except Exception as error:
        answer.send((str(error).strip() or type(error).__name__).splitlines()[0])


def _run(model: nn.Module, batches: Sequence[Batch]) -> None:
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            model(**batch)


def _forget_peak() -> int | None:
    """What is resident now; the peak counts from here on. Linux only."""
    try:
        CLEAR.write_text("5")  # man 5 proc: reset the peak resident set size
        return _status("VmRSS")
    except OSError:
        return None


def _peak() -> int:
    """Linux: of this program alone (`ru_maxrss` starts at what the parent had when it was spawned)."""
    if STATUS.is_file():
        return _status("VmHWM")
    import resource  # Unix

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(field: str) -> int:
    """Bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
