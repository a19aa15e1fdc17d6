"""Instruction counts repeat exactly and tell widths apart."""

import pytest

from tests.tvm_support import runnable
from wattbit.errors import WattbitError
from wattbit.plan import ExpertShape
from wattbit.tvm_schedules.cores import CORES
from wattbit.tvm_schedules.instructions import instructions_per_token


def test_counts_repeat_exactly_and_tell_widths_apart() -> None:
    core, shape = CORES["cortex-a53"], ExpertShape(64, 128)
    runnable(core)
    counts = instructions_per_token(core, shape, (4, 7))
    assert counts == instructions_per_token(core, shape, (4, 7))
    assert counts[7] > counts[4] > shape.weights / 8, "no instruction of this core multiplies more than 8 pairs"


def test_a_core_without_an_emulator_is_refused() -> None:
    with pytest.raises(WattbitError, match=r"x86-avx2 is not emulated"):
        instructions_per_token(CORES["x86-avx2"], ExpertShape(16, 32), (4,))
