"""Instruction counts repeat exactly and tell widths apart."""

import pytest

from tests.tvm_support import runnable
from wattbit.errors import WattbitError
from wattbit.tvm_schedules.cores import CORES
from wattbit.tvm_schedules.instructions import instructions


def test_counts_repeat_exactly_and_tell_widths_apart() -> None:
    core, rows, depth = CORES["cortex-a53"], 64, 128
    runnable(core)
    counts = instructions(core, (4, 7), [(rows, depth)])
    assert counts == instructions(core, (4, 7), [(rows, depth)])
    assert counts[7][0] > counts[4][0] > rows * depth / 8, "no instruction of this core multiplies more than 8 pairs"


def test_a_core_without_an_emulator_is_refused() -> None:
    with pytest.raises(WattbitError, match=r"x86-avx2 is not emulated"):
        instructions(CORES["x86-avx2"], (4,), [(16, 32)])
