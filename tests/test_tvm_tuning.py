"""Tilings: every core has data for every width, the least cost is chosen, and what is written is what is read."""

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tvm_support import WIDTHS, runnable
from wattbit.tvm_schedules.cores import CORES, Tiling
from wattbit.tvm_schedules.cycles import cycles_per_mac
from wattbit.tvm_schedules.toolchain import Kernel, emit_objects
from wattbit.tvm_schedules.tuning import GRID, as_toml, best, tune


@pytest.mark.parametrize("name", CORES)
def test_every_core_has_a_tiling_of_the_grid_for_every_width(name: str) -> None:
    assert {CORES[name].tiling(bits) for bits in WIDTHS} <= set(GRID)


def test_the_least_cost_over_all_shapes_is_chosen() -> None:
    small, even, large = GRID[:3]
    assert best({small: [1.0, 9.0], even: [1.5, 4.0], large: [4.0, 3.0]}) == even
    assert best({small: [2.0, 2.0], even: [2.0, 2.0]}) == small


def test_tuning_tries_the_grid_and_writes_what_cores_read(tmp_path: Path) -> None:
    core = CORES["cortex-a53"]
    wanted = Tiling(2, 8)
    costs = tune(core, lambda tried: {bits: [float(tried.tiling(bits) != wanted) + 1] * 2 for bits in WIDTHS})
    assert all(set(found) == set(GRID) for found in costs.values())
    entries = tomllib.loads(as_toml(core, "made up", costs))["widths"]
    assert {Tiling(**entry) for entry in entries.values()} == {wanted}
    assert list(entries) == [str(bits) for bits in WIDTHS]


def test_the_layout_word_tells_cores_and_tilings_apart() -> None:
    words = {core.name: core.layout_word for core in CORES.values()}
    assert words["cortex-a53"] != words["cortex-a76"] != words["x86-vnni512"]
    core = CORES["cortex-a53"]
    other = Tiling(3 - core.tiling(3).group_vectors % 2, 8)
    assert replace(core, tilings=((3, other),)).layout_word != core.layout_word


@pytest.mark.skipif(shutil.which("llvm-mca") is None, reason="llvm-mca is not installed: apt-get install llvm")
def test_cycles_are_modelled(tmp_path: Path) -> None:
    core, kernel = CORES["cortex-a76"], Kernel(8, 1, False)
    runnable(core)
    emit_objects((kernel,), core, tmp_path)
    cycles, instructions = cycles_per_mac(core, tmp_path, kernel.name)
    assert 1 / 32 <= cycles < 1 and 1 / 16 < instructions < 1, "a core with two pipes of sdot, 16 products each"
