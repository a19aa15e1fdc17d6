"""Ctrl-C is heeded even where a library swallows it."""

import os
import signal
from contextlib import suppress

import pytest

from wattbit.display import Display


def test_a_swallowed_interrupt_comes_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Display() as display:
        display.begin("train", "float model")
        display("step", 1, 2)
        with suppress(KeyboardInterrupt):  # as a bare except around an import does
            os.kill(os.getpid(), signal.SIGINT)
        display("step", 2, 2)
    assert signal.getsignal(signal.SIGINT) is before
