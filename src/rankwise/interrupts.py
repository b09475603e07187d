"""Ctrl-C that cannot get lost.

Python raises `KeyboardInterrupt` wherever the program happens to be. In a destructor it is printed and dropped, in a
library's bare `except` it vanishes, and a long job goes on as if nothing had been pressed. Inside `interruptible` the
wish is remembered as well, and `check_interrupt`, called between steps, raises it again.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked = False


@contextmanager
def interruptible() -> Iterator[None]:
    """Remember an interrupt until the block ends. Does nothing where somebody else handles the signal."""
    global _asked
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    _asked = False
    signal.signal(signal.SIGINT, _note)  # only the main thread has the default handler to replace
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _asked = False


def check_interrupt() -> None:
    """Raise an interrupt that was asked for.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed since `interruptible` began.
    """
    if _asked:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return
        frame = frame.f_back
    raise KeyboardInterrupt
