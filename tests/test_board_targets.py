"""The boards' files: every one loads, and what is wrong in one is said."""

import tomllib
from pathlib import Path

import pytest

from tests.board_stub import MINE
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


@pytest.mark.parametrize("name", targets.known())
def test_a_boards_file_has_the_clock_that_the_ps_delivers(name: str) -> None:
    written = tomllib.loads((targets.FOLDER / f"{name}.toml").read_text()).get("clock_mhz")
    assert targets.load(name).target.clock_mhz == written


@pytest.mark.parametrize(
    ("part", "asked_mhz", "given_mhz"),
    [
        ("xck26-sfvc784-2LV-c", 200.0, 187.5),
        ("xczu3eg-sbva484-1-i", 214.0, 187.5),
        ("xczu3eg-sbva484-1-i", 150.0, 150.0),
        ("xc7z020clg400-1", 150.0, 1000 / 7),
    ],
)
def test_a_board_gets_the_clock_that_the_ps_delivers(
    part: str, asked_mhz: float, given_mhz: float, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'{MINE}part = "{part}"\nclock_mhz = {asked_mhz}\n[ssh]\nhost = "mine"\n')
    assert targets.load(str(path)).target.clock_mhz == pytest.approx(given_mhz)


def test_an_unknown_board_lists_the_known_ones() -> None:
    with pytest.raises(WattbitError, match=r"no board 'pynq'; known are .*pynq-z2.*virtual-z2"):
        targets.load("pynq")


HWMON = "[ssh]\nhost = 'x'\n[power]\nsource = 'hwmon'\nrail = 'a'\n"


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
        ("[ssh]\nuser = 'me'\n", r"the table \[ssh\] needs the field host"),
        ("[ssh]\nhost = 'x'\npassword = 'y'\n", r"no field 'password'"),
        (
            "[ssh]\nhost = 'x'\n[power]\nsource = 'guess'\n",
            r"must be one of hwmon, pynq, rapl, nvml, simulated, external, none, not 'guess'",
        ),
        ("[ssh]\nhost = 'x'\n[power]\nsource = 'hwmon'\n", r"every source but external and none has one"),
        ("", r"a board needs a table \[ssh\], or \[virtual\]"),
        ("colour = 'red'\n", r"no field 'colour'"),
        ("[ssh\n", r"is not TOML"),
        ("ssh = 'pynq'\n", r"ssh must be a table, \[ssh\], not 'pynq'"),
        ("virtual = 5\n", r"virtual must be a table, \[virtual\], not 5"),
        ("power = 3\n[ssh]\nhost = 'x'\n", r"power must be a table, \[power\], not 3"),
        ("[ssh]\nhost = 5\n", r"host in the table \[ssh\] must be a string, not 5"),
        ("[ssh]\nhost = ''\n", r"host in the table \[ssh\] is empty"),
        ("[ssh]\nhost = 'x'\nport = '22'\n", r"port in the table \[ssh\] must be a whole number, not '22'"),
        ("[ssh]\nhost = 'x'\nport = true\n", r"port in the table \[ssh\] must be a whole number, not True"),
        ("[ssh]\nhost = 'x'\nport = 0\n", r"port in the table \[ssh\] must be from 1 to 65535, not 0"),
        ("[ssh]\nhost = 'x'\nlaunch = 'sudo'\n", r"launch in the table \[ssh\] must be a list of strings, not 'sudo'"),
        ("[ssh]\nhost = 'x'\nlaunch = ['a', 1]\n", r"launch in the table \[ssh\] must be a list of strings, not "),
        ("[ssh]\nhost = 'x'\nidentity = 1\n", r"identity in the table \[ssh\] must be a string, not 1"),
        ("[ssh]\nhost = 'x'\n[power]\nrail = 'a'\n", r"the table \[power\] needs the field source"),
        (f"{HWMON}settle_s = '10'\n", r"settle_s in the table \[power\] must be a number, not '10'"),
        (f"{HWMON}settle_s = inf\n", r"settle_s in the table \[power\] must be a number, not inf"),
        (f"{HWMON}settle_s = -3.0\n", r"settle_s in the table \[power\] must not be negative, as -3 is"),
        (f"{HWMON}rails = ['a', 'b']\n", r"rails in the table \[power\] must be a table of strings, not \['a', 'b'\]"),
        (f"{HWMON}rails = {{a = 1}}\n", r"rails in the table \[power\] must be a table of strings, not {'a': 1}"),
        (
            "[virtual]\ntier = ['light']\n",
            r"tier in the table \[virtual\] must be one of light, system, not \['light'\]",
        ),
        ("[virtual]\nteir = 'light'\n", r"the table \[virtual\] has no field 'teir'"),
        ("[virtual]\n", r"the table \[virtual\] needs the field tier"),
        ("lut = 1.5\n", r"lut in the board must be a whole number, not 1.5"),
        ("part = 7\n", r"part in the board must be a string, not 7"),
        ("part = 'xc7z020'\nclock_mhz = 0\n", r"no divider makes a clock of 0 MHz from 1000 MHz"),
        ("part = 'xc7z020'\nclock_mhz = -5.0\n", r"no divider makes a clock of -5 MHz from 1000 MHz"),
        ("part = 'xcvc1902'\nclock_mhz = 100\n", r"part xcvc1902 is neither Zynq-7000"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(tmp_path: Path, tables: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE + tables)
    with pytest.raises(WattbitError, match=rf"mine\.toml.*{message}"):
        targets.load(str(path))


def test_a_board_without_what_it_needs_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE.replace("ddr_bytes_per_s = 1e9\n", "") + '[ssh]\nhost = "x"\n')
    with pytest.raises(WattbitError, match=r"mine\.toml: the board needs the field ddr_bytes_per_s"):
        targets.load(str(path))


def test_whole_numbers_are_numbers_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE.replace("1200.0", "1200") + HWMON + "settle_s = 10\nrails = {b = 'c'}\n")
    board = targets.load(str(path))
    assert (board.target.core_mhz, board.power.settle_s, board.power.rails) == (1200, 10, {"b": "c"})


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(WattbitError, match=r"none\.toml does not exist"):
        targets.load(str(tmp_path / "none.toml"))
