"""Commands under `torchrun`: how the processes find each other, and which of them speaks."""

import io
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

GRACE_SECONDS = 10.0
"""How long a process that fails waits for the first one to say the same; torchrun ends it as soon as that has."""


def is_first() -> bool:
    """Whether this process is the only one, or the first that `torchrun` started. Needs no torch."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK") == "0"


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes, if `torchrun` started several, and part from them when the work is done.

    A process that fails does not say goodbye, since the others may be waiting for something else.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        distributed.init_process_group("gloo")
    yield
    distributed.barrier()  # the first process still writes the report
    distributed.destroy_process_group()


@contextmanager
def only_the_first_speaks() -> Iterator[None]:
    """Keep every process but the first silent, unless it fails and the first one does not; then leave at once.

    The first process's own error is the better one to show: it is the only one, or the same. Leaving at once lets
    `torchrun` end the others before they speak, and avoids the end of the interpreter, where one of ten processes that
    trained under DDP on a CPU (stock PEFT and Trainer too, torch 2.13) aborts with "terminate called without an active
    exception" after its work is done.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    said = io.StringIO()
    code: object = 0
    try:
        if is_first():
            yield
        else:
            with redirect_stdout(io.StringIO()), redirect_stderr(said):
                yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if code and not is_first():
            time.sleep(GRACE_SECONDS)
            print(said.getvalue(), end="", file=sys.stderr)
        if not isinstance(error, SystemExit):
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
