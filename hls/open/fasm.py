"""FASM to configuration frames, by Project X-Ray's database of which bit means what.

A line of FASM names a feature of a tile; the database lists the bits that it sets and those that it needs clear.
Nothing is guessed: a feature that the database does not know and a bit that two features want both ways are errors.
Formats: https://fasm.readthedocs.io and https://f4pga.readthedocs.io/projects/prjxray (Database).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from wattbit.errors import WattbitError
from wattbit.files import read_json

FRAME_WORDS = 101
REQUIRED = "required_features.fasm"
FILES = {"ppips_{}.db": "", "segbits_{}.db": "CLB_IO_CLK", "segbits_{}.block_ram.db": "BLOCK_RAM"}  # and their bus
BASES = {"b": 2, "o": 8, "d": 10, "h": 16}
LINE = re.compile(
    r"(?P<tile>\w+)\.(?P<name>[\w.]+)(?:\[(?P<high>\d+)(?::(?P<low>\d+))?\])?"
    r"(?:\s*=\s*(?:(?P<width>\d+)?'(?P<base>[bodh]))?(?P<value>[\da-fA-F_]+))?"
)
SHOWN = 3  # unknown features that an error names

Frames = dict[int, list[int]]
"""Words of every frame of the device's fabric by its address."""


class Feature(NamedTuple):
    """One bit of a feature, as `LUT.INIT[5]`; number 0 where there is only one."""

    tile: str
    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.tile}.{self.name}[{self.number}]"


class Bit(NamedTuple):
    """A bit of a tile: the bus of its frame, frame and bit counted from the tile's first, what it has to be."""

    bus: str
    frame: int
    bit: int
    value: bool


class Database:
    """The tiles of a part and the bits of their features. folder: of a family, for instance .../database/zynq7."""

    def __init__(self, folder: Path, part: str) -> None:
        device = re.match(r"xc7z\d+", part)
        if device is None or not (folder / part / "part.yaml").is_file():
            raise WattbitError(f"Project X-Ray has no part {part}; use vivado or the virtual toolchain")
        self.folder = folder
        self.tiles: Mapping[str, Any] = read_json(folder / device[0] / "tilegrid.json")
        required = folder / part / REQUIRED
        self.required = required.read_text(encoding="utf-8").splitlines() if required.is_file() else []
        self._types: dict[str, dict[tuple[str, int], list[Bit]]] = {}

    def bits(self, feature: Feature) -> list[tuple[int, int, int, bool]] | None:
        """Frame address, word, bit and value of all bits of a feature; None for one that the database does not know."""
        tile = self.tiles.get(feature.tile)
        if tile is None:
            return None
        found = self._type(tile["type"]).get((feature.name, feature.number))
        if found is None:
            return None
        if any("alias" in place for place in tile["bits"].values()):
            return None  # a half of an input/output pair: designs without pins of their own have none
        result = []
        for bus, frame, bit, value in found:
            place = tile["bits"][bus]
            result.append((int(place["baseaddr"], 16) + frame, place["offset"] + bit // 32, bit % 32, value))
        return result

    def addresses(self) -> Iterator[int]:
        """Addresses of all frames that hold a tile's bits."""
        for tile in self.tiles.values():
            for place in tile["bits"].values():
                base = int(place["baseaddr"], 16)
                yield from range(base, base + place["frames"])

    def _type(self, kind: str) -> dict[tuple[str, int], list[Bit]]:
        """Features of a type of tile with their bits; those that are always there have none."""
        if kind not in self._types:
            features: dict[tuple[str, int], list[Bit]] = {}
            for file, bus in FILES.items():
                path = self.folder / file.format(kind.lower())
                if path.is_file():
                    features |= _features(path.read_text(encoding="utf-8"), bus)
            self._types[kind] = features
        return self._types[kind]


def _features(text: str, bus: str) -> dict[tuple[str, int], list[Bit]]:
    """Features of one database file; `bus` is empty for pips without bits."""
    features = {}
    for line in text.splitlines():
        name, *bits = line.split()
        _, _, feature = name.partition(".")  # without the tile's type
        match = re.fullmatch(r"(.*)\[(\d+)\]", feature)
        key = (match[1], int(match[2])) if match else (feature, 0)
        features[key] = [_bit(bit, bus) for bit in bits] if bus else []
    return features


def _bit(text: str, bus: str) -> Bit:
    frame, bit = text.removeprefix("!").split("_")
    return Bit(bus, int(frame), int(bit), not text.startswith("!"))


def parse(lines: Iterable[str]) -> Iterator[Feature]:
    """The features that FASM sets. Raises WattbitError for a line that is not FASM or a value wider than its field."""
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].partition("{")[0].strip()
        if not text:
            continue
        match = LINE.fullmatch(text)
        if match is None:
            raise WattbitError(f"line {number} is not FASM: {text[:80]!r}")
        low = int(match["low"] or match["high"] or 0)
        width = int(match["high"] or 0) - low + 1
        value = 1
        if match["value"] is not None:
            try:
                value = int(match["value"].replace("_", ""), BASES[match["base"] or "d"])
            except ValueError:
                raise WattbitError(f"line {number} is not FASM: {text[:80]!r}") from None
        if value >> max(width, 0):
            raise WattbitError(f"line {number} has a value wider than its {width} bits: {text[:80]!r}")
        for index in range(width):
            if value >> index & 1:
                yield Feature(match["tile"], match["name"], low + index)


def assemble(fasm: Iterable[str], database: Database) -> Frames:
    """The frames of a design, all of the fabric's, those without a feature zero.

    Raises WattbitError for features that the database does not know (their number and the first) and for a bit that
    one feature sets and another needs clear.
    """
    frames: Frames = {address: [0] * FRAME_WORDS for address in database.addresses()}
    owners: dict[tuple[int, int, int], tuple[bool, Feature]] = {}
    unknown = []
    for feature in (*parse(fasm), *parse(database.required)):
        bits = database.bits(feature)
        if bits is None:
            unknown.append(feature)
            continue
        for address, word, bit, value in bits:
            before, owner = owners.setdefault((address, word, bit), (value, feature))
            if before != value:
                raise WattbitError(
                    f"{owner} and {feature} want bit {bit} of word {word} of frame 0x{address:08x} both ways; "
                    "this is a bug of the place and route tool"
                )
            frames[address][word] |= value << bit
    if unknown:
        names = ", ".join(str(feature) for feature in unknown[:SHOWN])
        raise WattbitError(f"{len(unknown)} features are not in Project X-Ray's database, the first: {names}")
    return frames


def frames_text(frames: Frames) -> str:
    """The frames as `xc7frames2bit` reads them: a line each, its address and its words."""
    lines = (f"0x{address:08X} " + ",".join(f"0x{word:08X}" for word in frames[address]) for address in sorted(frames))
    return "\n".join(lines) + "\n"
