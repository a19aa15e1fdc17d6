"""Instruction counts repeat exactly, tell widths apart and do not grow unnoticed."""

import json
from pathlib import Path

import pytest

from tests.tvm_support import WIDTHS, runnable
from wattbit.errors import WattbitError
from wattbit.tvm_schedules.cores import CORES
from wattbit.tvm_schedules.instructions import EMULATORS, instructions

TABLES = Path(__file__).parents[1] / "results" / "arm_cost.tables.json"  # written by benchmarks/arm_cost.py
COUNTED = (256, 1024)  # rows and depth of the counts in it
TOLERANCE = 0.02
EMULATED = [name for name, core in CORES.items() if core.arch in EMULATORS]
QUICK = "cortex-a53"


def test_counts_repeat_exactly_and_tell_widths_apart() -> None:
    core, rows, depth = CORES["cortex-a53"], 64, 128
    runnable(core)
    counts = instructions(core, (4, 7), [(rows, depth)])
    assert counts == instructions(core, (4, 7), [(rows, depth)])
    assert counts[7][0] > counts[4][0] > rows * depth / 8, "no instruction of this core multiplies more than 8 pairs"


def test_a_core_without_an_emulator_is_refused() -> None:
    with pytest.raises(WattbitError, match=r"x86-avx2 is not emulated"):
        instructions(CORES["x86-avx2"], (4,), [(16, 32)])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in EMULATED]
)
def test_counts_are_those_of_the_results(name: str) -> None:
    """More is a regression; less is a gain that belongs in the results."""
    runnable(CORES[name])
    widths = json.loads(TABLES.read_text())[name]["widths"]
    for bits, (count,) in instructions(CORES[name], WIDTHS, [COUNTED]).items():
        recorded = widths[str(bits)]["instructions_per_mac_counted"]
        assert count / (COUNTED[0] * COUNTED[1]) == pytest.approx(recorded, rel=TOLERANCE), f"{name} at {bits} bits"
