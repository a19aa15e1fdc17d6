"""Tilings: every core has data for every width, the least cost is chosen, and what is written is what is read."""

import shutil
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.board_support import cache_or_skip
from tests.tvm_support import WIDTHS, runnable
from wattbit.board.virtual import VirtualBoard
from wattbit.commands import tune as command
from wattbit.errors import WattbitError
from wattbit.tvm_schedules import tuning
from wattbit.tvm_schedules.cores import CORES, Tiling, find_core, host_core
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
    costs = tune(
        core,
        lambda tried, progress: [
            {bits: [float(each.tiling(bits) != wanted) + 1] * 2 for bits in WIDTHS} for each in tried
        ],
    )
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


def test_a_boards_tilings_take_the_place_of_the_cores_own(tmp_path: Path) -> None:
    core, wanted = CORES["cortex-a53"], Tiling(1, 1)
    costs = {bits: {wanted: [1.0], Tiling(4, 16): [2.0]} for bits in WIDTHS}
    (tmp_path / "board.toml").write_text(as_toml(core, "made up", costs))
    tuned = find_core(core.name, tmp_path / "board.toml")
    assert {tuned.tiling(bits) for bits in WIDTHS} == {wanted} and tuned.layout_word != core.layout_word
    with pytest.raises(WattbitError, match=r"board.toml has the tilings of cortex-a53, not of cortex-a9"):
        find_core("cortex-a9", tmp_path / "board.toml")
    (tmp_path / "board.toml").write_text("core = 'cortex-a53'")
    with pytest.raises(WattbitError, match=r"board.toml holds no tilings \('widths'\); run `wattbit tune` again"):
        find_core(core.name, tmp_path / "board.toml")
    for vectors, chunks in (("16", "1"), ("0", "1"), ("1", "0"), ("3", "8"), ("2.0", "8"), ("2", "8.0"), ("true", "8")):
        (tmp_path / "board.toml").write_text(
            f"core = 'cortex-a53'\n[widths.2]\ngroup_vectors = {vectors}\nrun_chunks = {chunks}\n"
        )
        with pytest.raises(
            WattbitError, match=r"holds no tilings \(Tiling.* cannot be built\); run `wattbit tune` again"
        ):
            find_core(core.name, tmp_path / "board.toml")


def test_this_machine_is_tuned_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    (costs,) = tuning.time_products([host_core()], run=tuning.run_here)
    assert list(costs) == [2, 8] and all(len(found) == 3 and min(found) > 0 for found in costs.values())
    assert costs[8][1] > costs[8][0], "a larger product takes longer"


@pytest.mark.slow
def test_a_board_is_tuned_over_ssh_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    with VirtualBoard(cache_or_skip()) as board, board.connection() as connection:
        before = connection.run(["ls", "-a", "/tmp"])
        costs = tune(CORES["cortex-a53"], partial(tuning.time_products, run=command.over(connection)))
        assert connection.run(["ls", "-a", "/tmp"]) == before
    assert all(min(found) > 0 for tried in costs.values() for found in tried.values())
    assert set(costs[8]) == set(tuning.GRID)


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two widths, two tilings, few calls."""
    changes = {"WIDTHS": (2, 8), "GRID": GRID[:2], "CALLS": 5, "REPEATS": 2, "COLD_BYTES": 1 << 20}
    for name, value in changes.items():
        monkeypatch.setattr(tuning, name, value)
