"""Ctrl-C is heeded even where a library swallows it; a long stage is heard of where there is no terminal."""

import os
import signal
import time
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


def test_an_interrupt_that_becomes_another_error_is_one() -> None:
    """As in an extension module that is interrupted while it is imported."""
    with pytest.raises(KeyboardInterrupt), Display():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error
    with pytest.raises(ImportError), Display():
        raise ImportError("without an interrupt an error stays what it is")


def test_without_a_terminal_a_long_stage_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("wattbit.display.time.monotonic", lambda: clock[0])
    with Display() as display:
        display.bar.stop()  # Rich, too, reads the clock
        display.begin("cotrain", "co-training")
        for step in range(100):
            display("uniform4: step", step, 100)
            clock[0] += 1.0
        display("uniform4: perplexity", 0, 0)
    assert capsys.readouterr().err.splitlines() == [
        "  cotrain  uniform4: step, 30 of 100",
        "  cotrain  uniform4: step, 60 of 100",
        "  cotrain  uniform4: step, 90 of 100",
    ]


def test_what_has_just_begun_is_not_long(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("wattbit.display.time.monotonic", lambda: 1e6)  # of a machine that has long been on
    with Display() as display:
        display("sparing fine-tuning", 1, 2)
    assert capsys.readouterr().err == ""


def test_a_long_line_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    text = "not vivado: it is not on PATH; " * 10
    with Display() as display:
        display.say(text)
    assert capsys.readouterr().err == text + "\n"
