"""An interrupt is never lost, and the signal's handler is what it was before."""

import os
import signal

import pytest
from tiny import build, trainer_for

from rankwise.interrupts import check_interrupt, interruptible


@pytest.fixture(autouse=True)
def _default_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # the handler runs between two instructions of ours
        pass


def test_raises_at_once():
    with pytest.raises(KeyboardInterrupt), interruptible():
        press()
    check_interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def swallow():
    """What a destructor or a bare `except` makes of Ctrl-C."""
    try:
        press()
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("no interrupt")


def test_swallowed_by_a_library_it_comes_back():
    with interruptible():
        swallow()
        with pytest.raises(KeyboardInterrupt):
            check_interrupt()


def test_training_stops_although_a_library_swallowed_it(tmp_path):
    trainer = trainer_for(build("lora"), tmp_path)
    with interruptible():
        swallow()
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    assert not trainer.losses


def test_a_new_block_starts_without_old_wishes():
    with interruptible():
        swallow()
    with interruptible():
        check_interrupt()


def test_somebody_elses_handler_stays():
    heard = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    with interruptible():
        press()
        check_interrupt()
    assert heard == [signal.SIGINT]


class Pressed:
    """Is interrupted while it is destroyed."""

    def __del__(self):
        press()


def test_in_a_destructor_nothing_is_printed_and_nothing_lost(capsys):
    with interruptible():
        Pressed()
        with pytest.raises(KeyboardInterrupt):
            check_interrupt()
    assert capsys.readouterr().err == ""
