"""The boards' files: every one loads, and what is wrong in one is said."""

from pathlib import Path

import pytest

from wattbit.board import targets
from wattbit.errors import WattbitError
from wattbit.plan import Target
from wattbit.tvm_schedules.cores import CORES


@pytest.mark.parametrize("name", targets.known())
def test_every_board_loads_and_its_kernels_can_be_built(name: str) -> None:
    board = targets.load(name)
    assert board.target.name == name
    assert Target.from_json(board.target.to_json()) == board.target
    assert CORES[board.target.core].arch == board.target.arch
    assert board.power.rail is None or board.power.rail in board.target.rails


def test_a_board_with_an_fpga_has_resources_and_a_clock() -> None:
    for name in targets.known():
        target = targets.load(name).target
        figures = (target.clock_mhz or 0, target.lut, target.ff, target.dsp, target.bram18)
        assert all(figures) if target.part else not any(figures)


# LUTs, flip-flops, DSP slices and 18 Kb block RAMs by AMD's product tables (DS190, DS891, DS987).
CHIPS = {
    "xc7z020": (53200, 106400, 220, 280),
    "xczu3eg": (70560, 141120, 360, 432),
    "xczu7ev": (230400, 460800, 1728, 624),
    "xck26": (117120, 234240, 1248, 288),
}


@pytest.mark.parametrize("name", targets.known())
def test_a_board_has_what_its_chip_has(name: str) -> None:
    target = targets.load(name).target
    if target.part is not None:
        chip = next(chip for chip in CHIPS if target.part.startswith(chip))
        assert (target.lut, target.ff, target.dsp, target.bram18) == CHIPS[chip]
        assert target.memory_ports == 4, "HP ports of Zynq-7000 and of Zynq UltraScale+"


def test_an_unknown_board_lists_the_known_ones() -> None:
    with pytest.raises(WattbitError, match=r"no board 'pynq'; known are .*pynq-z2.*virtual-z2"):
        targets.load("pynq")


MINE = """
title = "mine"
arch = "aarch64"
core = "cortex-a53"
cores = 4
core_mhz = 1200.0
ddr_bytes_per_s = 1e9
"""


def test_a_file_of_ones_own_describes_a_board(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE + '[ssh]\nhost = "mine.local"\nport = 2222\nidentity = "~/key"\nlaunch = ["sudo", "-n"]\n')
    board = targets.load(str(path))
    assert board.target.name == "mine" and board.power.source == "external"
    assert board.ssh is not None
    connection = board.ssh.connection()
    assert (connection.host, connection.port, connection.launch) == ("mine.local", 2222, ("sudo", "-n"))
    assert connection.identity == Path.home() / "key"
    assert board.ssh.connection("10.0.0.2").host == "10.0.0.2"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("[ssh]\nuser = 'me'\n", r"the table \[ssh\] of a board needs host"),
        ("[ssh]\nhost = 'x'\npassword = 'y'\n", r"no field 'password'"),
        (
            "[ssh]\nhost = 'x'\n[power]\nsource = 'guess'\n",
            r"must be one of hwmon, pynq, rapl, nvml, simulated, external, none, not 'guess'",
        ),
        ("[ssh]\nhost = 'x'\n[power]\nsource = 'hwmon'\n", r"every source but external and none has one"),
        ("", r"a board needs a table \[ssh\], or \[virtual\]"),
        ("colour = 'red'\n", r"no field 'colour'"),
        ("[ssh\n", r"is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(tmp_path: Path, tables: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE + tables)
    with pytest.raises(WattbitError, match=rf"mine\.toml.*{message}"):
        targets.load(str(path))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(WattbitError, match=r"none\.toml does not exist"):
        targets.load(str(tmp_path / "none.toml"))
