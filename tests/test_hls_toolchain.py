"""One interface for all toolchains: the choice among them says why, and a bitstream survives JSON."""

from dataclasses import replace
from pathlib import Path

import pytest

from wattbit.board.targets import load
from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json
from wattbit.hls.shell import ShellRtl
from wattbit.hls.toolchain import Bitstream, ToolchainName, choose
from wattbit.hls.virtual import VirtualToolchain
from wattbit.plan import Target
from wattbit.progress import Progress

Z2 = load("pynq-z2").target


class Fake:
    """A toolchain that is or is not usable; it builds nothing."""

    chip_share = 1.0

    def __init__(self, name: ToolchainName, reason: str | None) -> None:
        self.name = name
        self.reason = reason

    def available(self, target: Target) -> str | None:
        return self.reason

    def build(self, shell: ShellRtl, target: Target, out: Path, progress: Progress) -> Bitstream:
        raise NotImplementedError


VIVADO, OPEN, VIRTUAL = Fake("vivado", "it is not on PATH"), Fake("open", None), Fake("virtual", None)


def test_the_best_usable_one_is_taken_and_says_what_was_passed_over() -> None:
    taken, why = choose(Z2, None, (VIVADO, OPEN, VIRTUAL))
    assert taken is OPEN
    assert "open" in why and "not vivado: it is not on PATH" in why
    assert choose(Z2, None, (Fake("vivado", None), OPEN, VIRTUAL))[0].name == "vivado"


def test_the_wanted_one_is_taken() -> None:
    taken, why = choose(Z2, "virtual", (VIVADO, OPEN, VIRTUAL))
    assert taken is VIRTUAL and "asked" in why


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("quartus", "toolchain must be one of vivado, open, virtual, not 'quartus'"),
        ("vivado", "toolchain vivado cannot build for pynq-z2: it is not on PATH"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(wanted: str, message: str) -> None:
    with pytest.raises(WattbitError, match=f"^{message}$"):
        choose(Z2, wanted, (VIVADO, OPEN, VIRTUAL))


def test_without_any_usable_toolchain_every_reason_is_said() -> None:
    with pytest.raises(WattbitError, match="not vivado: it is not on PATH; not virtual: no compiler"):
        choose(Z2, None, (VIVADO, Fake("virtual", "no compiler")))


def test_a_board_without_logic_is_refused() -> None:
    with pytest.raises(WattbitError, match="rpi4 has no programmable logic"):
        choose(load("rpi4").target, None, (VIVADO, OPEN, VIRTUAL))


def test_a_bitstream_survives_json_and_its_paths_follow_the_folder(tmp_path: Path) -> None:
    there = tmp_path / "there"
    stream = Bitstream(
        toolchain="open",
        part="xc7z020clg400-1",
        bit=there / "design.bit",
        hwh=None,
        libraries={"aarch64": there / "aarch64.so"},
        clock_mhz=50.0,
        fmax_mhz=71.5,
        utilisation={"lut": 1234},
        tool_versions={"yosys": "0.70"},
        seed=1,
        checks={"gate_level": {"packets": 16, "bit_exact": True}},
    )
    write_json(tmp_path / "record.json", stream.to_json(there))
    record = read_json(tmp_path / "record.json")
    assert Bitstream.from_json(record, there) == stream
    elsewhere = Bitstream.from_json(record, tmp_path)
    assert elsewhere.bit == tmp_path / "design.bit"
    assert not elsewhere.hardware_tested
    with pytest.raises(ValueError, match="not in the subpath"):
        replace(stream, bit=tmp_path / "outside.bit").to_json(there)


def test_virtual_names_the_compiler_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert VirtualToolchain().available(Z2) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install g++-x86-64-linux-gnu g++-aarch64-linux-gnu" in (VirtualToolchain().available(Z2) or "")
