"""The clock of a loaded design: never above what it was built for, whatever the board's own PLL makes of a handoff."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.board_stub import DIGEST, TARGET, StubBoard, make_parts
from wattbit.board.agent.logic import held_mhz, load_logic
from wattbit.board.agent.manifest import verify
from wattbit.board.bundle import pack
from wattbit.errors import WattbitError


@dataclass
class Clocks:
    """What `pynq.Clocks` does with PL clock 0: any two dividers up to 63, the nearest ones to a frequency."""

    source_mhz: float
    dividers: tuple[int, int] = (10, 1)

    @property
    def fclk0_mhz(self) -> float:
        return round(self.source_mhz / (self.dividers[0] * self.dividers[1]), 6)

    def set_pl_clk(self, number: int, div0: int, div1: int) -> None:
        assert number == 0
        self.dividers = div0, div1

    def follow(self, handoff_mhz: float) -> None:
        """As when an overlay is loaded."""
        wanted = self.source_mhz / handoff_mhz
        pairs = [(i, j) for i in range(1, 64) for j in range(1, 64)]
        self.dividers = min(pairs, key=lambda pair: abs(pair[0] * pair[1] - wanted))


@pytest.mark.parametrize("source_mhz", [999.99, 1000.0, 1333.32, 1499.985, 1600.0])
@pytest.mark.parametrize("most_mhz", [187.498125, 166.665, 149.9985, 100.0, 37.037])
def test_a_clock_is_the_highest_that_the_design_takes(source_mhz: float, most_mhz: float) -> None:
    clocks = Clocks(source_mhz)
    clocks.follow(most_mhz)
    found_mhz = held_mhz(clocks, most_mhz)
    best_mhz = max(f for f in (source_mhz / (i * j) for i in range(1, 64) for j in range(1, 64)) if f <= most_mhz)
    assert found_mhz == clocks.fclk0_mhz and best_mhz - 1e-6 <= found_mhz <= most_mhz * 1.001


def test_the_last_digits_of_an_oscillator_change_no_divider() -> None:
    """Vivado's handoff says 187.481 MHz of the dividers of which pynq reads 187.498."""
    clocks = Clocks(1499.985, (8, 1))
    assert held_mhz(clocks, 187.481262) == pytest.approx(187.498125) and clocks.dividers == (8, 1)


def test_a_clock_that_does_not_follow_is_refused() -> None:
    class Stuck(Clocks):
        def set_pl_clk(self, number: int, div0: int, div1: int) -> None:
            pass

    with pytest.raises(WattbitError, match=r"takes a clock of 80 MHz, and this board's stays at 100 MHz; see what"):
        held_mhz(Stuck(1000.0), 80.0)


def loaded(monkeypatch: pytest.MonkeyPatch, folder: Path, clocks: Clocks) -> Callable[[dict[str, Any]], float]:
    """Loads the stub's bundle onto a board whose pynq is this; gives the clock."""

    def overlay(path: str) -> SimpleNamespace:
        assert Path(path) == folder / "accel.bit"
        clocks.follow(187.5)
        return SimpleNamespace(wattbit_0=board)

    board = StubBoard(folder / f"accel-{DIGEST}.so")
    pynq = SimpleNamespace(Clocks=clocks, Overlay=overlay, allocate=board.allocate)
    monkeypatch.setitem(sys.modules, "pynq", pynq)  # type: ignore[arg-type]
    return lambda manifest: load_logic(folder, manifest | {"toolchain": "vivado"}).clock_mhz


def test_a_bundle_brings_its_clock_and_the_board_keeps_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(replace(make_parts(tmp_path), clock_mhz=187.5), TARGET, tmp_path / "bundle")
    manifest = verify(tmp_path / "bundle")
    assert manifest["clock_mhz"] == 187.5
    clocks = Clocks(999.99)
    assert loaded(monkeypatch, tmp_path / "bundle", clocks)(manifest) == pytest.approx(999.99 / 6)
    with pytest.raises(
        WattbitError, match=r"not known for which clock the design was built; run `wattbit board` again"
    ):
        pack(replace(make_parts(tmp_path), clock_mhz=None), TARGET, tmp_path / "other")
