"""The `.bit` container and the configuration packets in it, written and read back.

Project X-Ray's xc7frames2bit makes the packets. Reading them back is a check of its own on that tool: it takes the
order of frames from the part's description and compares every one with what was assembled. Packets, registers and
frame addresses: Xilinx UG470.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json
from wattbit.hls.open.fasm import FRAME_WORDS, Frames, frames_text
from wattbit.hls.open.steps import once, run
from wattbit.hls.open.tools import Tools

MAGIC = bytes.fromhex("00090ff00ff00ff00ff0000001")
SYNC_WORD = 0xAA995566
FDRI, IDCODE = 2, 12  # configuration registers
PAD_FRAMES = 2  # after each row of a bus
ECC_WORD, ECC_BITS = 50, 0x1FFF  # of each frame: its error correcting code, not a design's
BUSES = ("CLB_IO_CLK", "BLOCK_RAM")  # in the order of their block type


@dataclass(frozen=True)
class BitFile:
    """Header fields a (design), b (part), c (date), d (time) of a `.bit` and its payload."""

    fields: Mapping[str, str]
    payload: bytes


def encode(design: str, part: str, payload: bytes) -> bytes:
    """A `.bit` file of configuration packets; its date is fixed, so that the same design gives the same file."""
    header = MAGIC
    fields = {"a": f"{design};UserID=0XFFFFFFFF;Version=wattbit", "b": part.removeprefix("xc"), "c": "2000/01/01"}
    for key, text in (fields | {"d": "00:00:00"}).items():
        value = text.encode() + b"\0"
        header += key.encode() + struct.pack(">H", len(value)) + value
    return header + b"e" + struct.pack(">I", len(payload)) + payload


def decode(data: bytes) -> BitFile:
    """Raises WattbitError when the container is broken or cut short."""
    if not data.startswith(MAGIC):
        raise WattbitError(f"not a .bit file: it starts with {data[:4].hex()}; build it again")
    at, fields = len(MAGIC), {}
    while data[at : at + 1] in (b"a", b"b", b"c", b"d"):
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        fields[data[at : at + 1].decode()] = data[at + 3 : at + 3 + length].rstrip(b"\0").decode("latin-1")
        at += 3 + length
    payload = data[at + 5 :]
    if data[at : at + 5] != b"e" + struct.pack(">I", len(payload)) or len(fields) != 4:
        raise WattbitError(f"a .bit file is broken or cut short after {at} bytes; build it again")
    return BitFile(fields, payload)


def packets(frames: Frames, part: str, tools: Tools, out: Path) -> bytes:
    """The configuration packets that bring a part these frames, by xc7frames2bit in a folder of `out`."""

    def make(folder: Path) -> None:
        (folder / "frames.txt").write_text(frames_text(frames), encoding="utf-8")
        options = {
            "--part_file": str(tools.database / part / "part.yaml"),
            "--part_name": part,
            "--frm_file": "frames.txt",
            "--output_file": "packets.bit",
        }
        arguments = [argument for option in options.items() for argument in option]
        run("xc7frames2bit", tools.command("xc7frames2bit", *arguments), folder, out / "xc7frames2bit.log")
        (folder / "frames.txt").unlink()

    inputs = [digest_json(sorted(frames.items())), part, tools.versions]
    return decode((once(out / "packets", inputs, make) / "packets.bit").read_bytes()).payload


def writes(payload: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Configuration registers in the order in which the packets write them, each with its words."""
    words = struct.unpack(f">{len(payload) // 4}I", payload[: len(payload) // 4 * 4])
    if SYNC_WORD not in words:
        raise WattbitError("a bitstream has no sync word; build it again")
    at = words.index(SYNC_WORD) + 1
    register = 0
    while at < len(words):
        header = words[at]
        kind, write = header >> 29, header >> 27 & 3 == 2
        count = header & (0x7FF if kind == 1 else 0x7FFFFFF)
        if kind == 1:
            register = header >> 13 & 0x1F
        if write and count:
            yield register, words[at + 1 : at + 1 + count]
            at += count
        at += 1


def addresses(part: Mapping[str, Any]) -> Iterator[int | None]:
    """Frame addresses in the order in which a full bitstream sends them; None for a pad frame. part: `part.json`."""
    for block, bus in enumerate(BUSES):
        for bottom, half in enumerate(("top", "bottom")):
            rows = part["global_clock_regions"][half]["rows"]
            for row in sorted(rows, key=int):
                columns = rows[row]["configuration_buses"][bus]["configuration_columns"]
                for column in sorted(columns, key=int):
                    first = block << 23 | bottom << 22 | int(row) << 17 | int(column) << 7
                    yield from range(first, first + columns[column]["frame_count"])
                yield from [None] * PAD_FRAMES


def check(path: Path, description: Path, frames: Frames) -> dict[str, Any]:
    """Hold a `.bit` file to the part's `part.json` and to the assembled frames.

    Returns payload_bytes, idcode and frames, their number. Raises WattbitError unless it names the part's IDCODE and
    carries every frame of the part, each with the assembled words (save its error correcting code).
    """
    part = read_json(description)
    payload = decode(path.read_bytes()).payload
    sent: list[int] = []
    idcode = 0
    for register, words in writes(payload):
        if register == IDCODE:
            idcode = words[0]
        elif register == FDRI:
            sent += words
    if idcode != part["idcode"]:
        raise WattbitError(f"{path} is for IDCODE 0x{idcode:08x}, the part has 0x{part['idcode']:08x}; build it again")
    order = list(addresses(part))
    if len(sent) != len(order) * FRAME_WORDS:
        raise WattbitError(
            f"{path} has {len(sent)} words of frames instead of {len(order) * FRAME_WORDS}; build it again"
        )
    if strange := frames.keys() - set(order):
        raise WattbitError(f"frame 0x{min(strange):08x} does not exist in the part; its database is broken")
    blank = [0] * FRAME_WORDS
    for i, address in enumerate(order):
        expected = list(blank if address is None else frames.get(address, blank))
        got = sent[i * FRAME_WORDS : (i + 1) * FRAME_WORDS]
        got[ECC_WORD] &= ~ECC_BITS
        expected[ECC_WORD] &= ~ECC_BITS
        if got != expected:
            where = "a pad frame" if address is None else f"frame 0x{address:08x}"
            raise WattbitError(f"{path}: {where} is not as assembled; build it again")
    return {"payload_bytes": len(payload), "idcode": f"0x{idcode:08x}", "frames": sum(a is not None for a in order)}
