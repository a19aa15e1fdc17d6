"""FASM to frames: which bits a line sets, and that nothing is guessed."""

import json
from pathlib import Path

import pytest

from wattbit.errors import WattbitError
from wattbit.hls.open.fasm import FRAME_WORDS, Database, assemble, frames_text, parse

PART = "xc7z020clg400-1"
CLB, RAM = 0x00400100, 0x00C00000


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """Two tiles of logic, the second six words above the first in the same frames, and one of block RAM."""
    folder = tmp_path / "zynq7"
    (folder / "xc7z020").mkdir(parents=True)
    (folder / PART).mkdir()
    (folder / PART / "part.yaml").touch()
    (folder / PART / "required_features.fasm").write_text("CLB_X1Y1.ALWAYS\n")

    def place(base: int, offset: int) -> dict[str, object]:
        return {"baseaddr": f"0x{base:08X}", "frames": 4, "offset": offset, "words": 2}

    tiles = {
        "CLB_X0Y0": {"type": "CLB", "bits": {"CLB_IO_CLK": place(CLB, 0)}},
        "CLB_X1Y1": {"type": "CLB", "bits": {"CLB_IO_CLK": place(CLB, 6)}},
        "RAM_X0Y0": {"type": "RAM", "bits": {"CLB_IO_CLK": place(CLB, 20), "BLOCK_RAM": place(RAM, 20)}},
        "PAD_X0Y0": {"type": "CLB", "bits": {"CLB_IO_CLK": place(CLB, 30) | {"alias": {"type": "CLB"}}}},
    }
    (folder / "xc7z020" / "tilegrid.json").write_text(json.dumps(tiles))
    (folder / "segbits_clb.db").write_text(
        "CLB.LUT.INIT[00] 00_00\nCLB.LUT.INIT[01] 00_01\nCLB.LUT.INIT[02] 01_33\n"
        "CLB.MUX.A 02_05 !02_06\nCLB.MUX.B !02_05 02_06\nCLB.ALWAYS 03_31\n"
    )
    (folder / "ppips_clb.db").write_text("CLB.PIN.VCC default\n")
    (folder / "segbits_ram.block_ram.db").write_text("RAM.RAMB18_Y0.INIT_00[255] 03_63\n")
    return Database(folder, PART)


def ones(frames: dict[int, list[int]]) -> set[tuple[int, int, int]]:
    """Frame, word and bit of every bit that is set."""
    return {
        (frame, word, bit)
        for frame, words in frames.items()
        for word, value in enumerate(words)
        for bit in range(32)
        if value >> bit & 1
    }


ALWAYS = (CLB + 3, 6, 31)


def test_a_feature_sets_its_bits_at_its_tiles_place(database: Database) -> None:
    frames = assemble(["CLB_X0Y0.MUX.A", "CLB_X1Y1.MUX.B  # a comment", "RAM_X0Y0.RAMB18_Y0.INIT_00[255]"], database)
    assert ones(frames) == {(CLB + 2, 0, 5), (CLB + 2, 6, 6), (RAM + 3, 21, 31), ALWAYS}


def test_a_field_sets_the_bits_of_its_value(database: Database) -> None:
    frames = assemble(["CLB_X0Y0.LUT.INIT[2:0] = 3'b101", "CLB_X1Y1.LUT.INIT[2:1] = 2'h1"], database)
    assert ones(frames) == {(CLB, 0, 0), (CLB + 1, 1, 1), (CLB, 6, 1), ALWAYS}


def test_an_empty_design_has_every_frame_of_the_fabric_and_what_is_always_there(database: Database) -> None:
    frames = assemble(["# nothing", "", "CLB_X0Y0.PIN.VCC"], database)
    assert sorted(frames) == [*range(CLB, CLB + 4), *range(RAM, RAM + 4)]
    assert all(len(words) == FRAME_WORDS for words in frames.values())
    assert ones(frames) == {ALWAYS}
    first = frames_text(frames).splitlines()[0]
    assert first.startswith("0x00400100 0x00000000,") and first.count(",") == FRAME_WORDS - 1


def test_the_order_of_lines_does_not_matter(database: Database) -> None:
    lines = ["CLB_X0Y0.MUX.A", "CLB_X0Y0.LUT.INIT[2:0] = 3'b111", "CLB_X1Y1.MUX.B"]
    assert assemble(lines, database) == assemble(reversed(lines), database)


@pytest.mark.parametrize("line", ["CLB_X0Y0.MUX.C", "CLB_X9Y9.MUX.A", "CLB_X0Y0.LUT.INIT[3]", "PAD_X0Y0.MUX.A"])
def test_a_feature_that_is_not_in_the_database_is_an_error(database: Database, line: str) -> None:
    with pytest.raises(WattbitError, match=r"1 features are not in Project X-Ray's database, the first: \w+_X"):
        assemble(["CLB_X0Y0.MUX.A", line], database)


def test_a_bit_that_two_features_want_both_ways_is_an_error(database: Database) -> None:
    with pytest.raises(WattbitError, match=r"CLB_X0Y0\.MUX\.A\[0\] and CLB_X0Y0\.MUX\.B\[0\] want bit 5 of word 0"):
        assemble(["CLB_X0Y0.MUX.A", "CLB_X0Y0.MUX.B"], database)


@pytest.mark.parametrize(
    "line",
    ["CLB_X0Y0", "CLB_X0Y0.LUT.INIT[2:0] = 3'b10x", "CLB_X0Y0.MUX.A = ", "a b", "CLB_X0Y0.LUT.INIT[1:0] = 2'b12"],
)
def test_what_is_not_fasm_is_an_error(line: str) -> None:
    with pytest.raises(WattbitError, match="line 2 is not FASM"):
        list(parse(["", line]))


@pytest.mark.parametrize("line", ["A_X0.B[1:0] = 3'b111", "A_X0.B = 2", "A_X0.B[0:1] = 2'b11"])
def test_a_value_that_does_not_fit_its_field_is_an_error(line: str) -> None:
    with pytest.raises(WattbitError, match="line 1 has a value wider than its"):
        list(parse([line]))


def test_a_part_without_a_database_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WattbitError, match="Project X-Ray has no part xczu3eg"):
        Database(tmp_path, "xczu3eg-sbva484-1-e")
