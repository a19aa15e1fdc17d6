"""The bitstream container and its packets: written, read back, and held to the part and the frames."""

import json
import struct
from pathlib import Path

import pytest

from wattbit.errors import WattbitError
from wattbit.hls.open import bitfile, tools
from wattbit.hls.open.fasm import FRAME_WORDS, Database, Frames, assemble
from wattbit.run import cache_folder

COLUMNS = {"CLB_IO_CLK": {"0": {"frame_count": 3}, "1": {"frame_count": 2}}, "BLOCK_RAM": {"0": {"frame_count": 2}}}
ROW = {"configuration_buses": {bus: {"configuration_columns": columns} for bus, columns in COLUMNS.items()}}
PART = {"idcode": 0x03727093, "global_clock_regions": {"top": {"rows": {"0": ROW}}, "bottom": {"rows": {"0": ROW}}}}
ORDER = list(bitfile.addresses(PART))


def packets(words: list[int], idcode: int = 0x03727093) -> bytes:
    """Configuration packets that write IDCODE and FDRI."""
    return struct.pack(
        f">{8 + len(words)}I",
        *(0xFFFFFFFF, 0xAA995566, 0x20000000),
        *(0x30018001, idcode),  # type 1, write IDCODE, one word
        *(0x30004000, 0x50000000 | len(words)),  # type 1, write FDRI; type 2 with the count
        *words,
        0x20000000,
    )


def frame_words(frames: Frames) -> list[int]:
    blank = [0] * FRAME_WORDS
    return [word for address in ORDER for word in (blank if address is None else frames.get(address, blank))]


@pytest.fixture
def frames() -> Frames:
    return {0x00000081: [7] * FRAME_WORDS, 0x00C00000: list(range(FRAME_WORDS))}


@pytest.fixture
def description(tmp_path: Path) -> Path:
    path = tmp_path / "part.json"
    path.write_text(json.dumps(PART))
    return path


def write(folder: Path, payload: bytes) -> Path:
    path = folder / "design.bit"
    path.write_bytes(bitfile.encode("design", "xc7z020clg400-1", payload))
    return path


def test_frames_are_sent_top_first_logic_before_block_ram_with_two_pads_a_row() -> None:
    clb, ram = [0x0, 0x1, 0x2, 0x80, 0x81], [0x800000, 0x800001]
    bottom = 1 << 22
    expected = [*clb, None, None, *(a + bottom for a in clb), None, None]
    expected += [*ram, None, None, *(a + bottom for a in ram), None, None]
    assert expected == ORDER


def test_what_is_encoded_is_decoded() -> None:
    data = bitfile.encode("design", "xc7z020clg400-1", b"payload!")
    decoded = bitfile.decode(data)
    assert decoded.payload == b"payload!"
    assert decoded.fields["b"] == "7z020clg400-1" and decoded.fields["a"].startswith("design;")
    assert data == bitfile.encode("design", "xc7z020clg400-1", b"payload!")


def test_a_container_that_is_cut_short_anywhere_is_an_error() -> None:
    data = bitfile.encode("design", "xc7z020clg400-1", b"payload!")
    for cut in range(len(data)):
        with pytest.raises(WattbitError, match=r"\.bit file"):
            bitfile.decode(data[:cut])


def test_a_bitstream_with_the_assembled_frames_passes(tmp_path: Path, description: Path, frames: Frames) -> None:
    words = frame_words(frames)
    words[1 * FRAME_WORDS + bitfile.ECC_WORD] |= 0x123  # the error correcting code is not the design's
    payload = packets(words)
    found = bitfile.check(write(tmp_path, payload), description, frames)
    assert found == {"payload_bytes": len(payload), "idcode": "0x03727093", "frames": 14}


def test_every_flipped_bit_is_found(tmp_path: Path, description: Path, frames: Frames) -> None:
    for place, message in (
        (4 * FRAME_WORDS + 3, "frame 0x00000081 is not"),
        (1, "frame 0x00000000"),
        (5 * FRAME_WORDS, "pad"),
    ):
        words = frame_words(frames)
        words[place] ^= 1
        with pytest.raises(WattbitError, match=message):
            bitfile.check(write(tmp_path, packets(words)), description, frames)


def test_another_part_missing_frames_and_strange_frames_are_errors(
    tmp_path: Path, description: Path, frames: Frames
) -> None:
    words = frame_words(frames)
    with pytest.raises(WattbitError, match="IDCODE 0x03722093, the part has 0x03727093"):
        bitfile.check(write(tmp_path, packets(words, 0x03722093)), description, frames)
    with pytest.raises(WattbitError, match=f"{len(words) - FRAME_WORDS} words of frames instead of {len(words)}"):
        bitfile.check(write(tmp_path, packets(words[:-FRAME_WORDS])), description, frames)
    with pytest.raises(WattbitError, match="frame 0x00000005 does not exist"):
        bitfile.check(write(tmp_path, packets(words)), description, frames | {5: [0] * FRAME_WORDS})
    with pytest.raises(WattbitError, match="no sync word"):
        bitfile.check(write(tmp_path, b"\0" * 64), description, frames)


def test_an_empty_design_is_a_whole_bitstream_of_the_real_part(tmp_path: Path) -> None:
    found = tools.find(cache_folder())
    if found is None:
        pytest.skip(
            "the open tools are not in the cache; `wattbit board --board pynq-z2 --toolchain open` fetches them"
        )
    part = "xc7z020clg400-1"
    blank = assemble([], Database(found.database, part))
    path = write(tmp_path, bitfile.packets(blank, part, found, tmp_path))
    checks = bitfile.check(path, found.database / part / "part.json", blank)
    assert checks == {"payload_bytes": 4045564, "idcode": "0x03727093", "frames": 9996}
    address = next(address for address, words in blank.items() if any(words))  # what the part always needs
    blank[address][next(i for i, word in enumerate(blank[address]) if word)] ^= 1 << 31
    with pytest.raises(WattbitError, match=f"frame 0x{address:08x} is not as assembled"):
        bitfile.check(path, found.database / part / "part.json", blank)
