"""How the integer codes of a weight matrix lie in GPU memory, and the packing into it. NumPy only.

A row of `depth` codes is cut into F fields of C consecutive codes (the last fields padded with zeros): code f*C + c is
field f of column c. F is 16 for 3-bit weights and 8 for all others, so that a row is `bits * F / 16` planes of C 16-bit
words. One word holds the same fields of one column, so a kernel that has a tile of words in registers peels one field
at a time off all of them, without moving data between threads, and multiplies it by C consecutive activations.

| bits | planes | a word of plane j holds |
|---|---|---|
| 2 | 1 | field f: sign at bit 15 - 2f, magnitude at bit 14 - 2f: in place it is the bfloat16 number -2, 0 or 2 |
| 3 | 3 | fields 5j .. 5j+4 at bits 0, 3, .. 12, and bit j of field 15 at bit 15; code + 4 |
| 4 | 2 | fields 4j .. 4j+3 at bits 0, 4, 8, 12; code + 8 |
| 6 | 3 | j < 2: the low four bits of fields 4j .. 4j+3; j = 2: the high two bits of field f at bit 2f; code + 32 |
| 8 | 4 | fields 2j and 2j+1 at bits 0 and 8, two's complement |

C is a multiple of 16, so that rows are 32-byte aligned, and of the scale group where weights have group scales, so that
no group crosses a field. Codes are narrow-range, |code| <= 2^(bits-1) - 1, as everywhere in wattbit.

Order of the words, slowest first: tile of 16 rows, block of 64 columns, row of the tile, plane, column of the block; so
what a kernel reads together lies together, 2 to 8 kB. Where C is no multiple of 64 there is one block of C columns.
Rows are padded to whole tiles.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wattbit.arith import Int8
from wattbit.errors import WattbitError

GPU_WIDTHS = (2, 3, 4, 6, 8)
ROW_TILE = 16
COLUMN_BLOCK = 64

Words = NDArray[np.int16]


@dataclass(frozen=True)
class GpuLayout:
    """The layout of one matrix; see the module. group: codes a scale, 0 for one scale a row."""

    bits: int
    depth: int
    group: int = 0

    def __post_init__(self) -> None:
        if self.bits not in GPU_WIDTHS:
            known = ", ".join(map(str, GPU_WIDTHS))
            raise WattbitError(f"there is no GPU kernel for {self.bits}-bit weights; choose among {known}")
        if self.depth < 1:
            raise WattbitError(f"a matrix needs at least one column, not {self.depth}")
        if self.group % 32:
            raise WattbitError(f"a scale group must be a multiple of 32 codes, not {self.group}")

    @property
    def fields(self) -> int:
        return 16 if self.bits == 3 else 8

    @property
    def planes(self) -> int:
        return self.bits * self.fields // 16

    @property
    def columns(self) -> int:
        """C."""
        unit = self.group or 16
        return -(-self.depth // (self.fields * unit)) * unit

    @property
    def block(self) -> int:
        """Columns of a block."""
        return self.columns if self.columns % COLUMN_BLOCK else COLUMN_BLOCK

    def words(self, rows: int) -> int:
        """Words of a matrix of so many rows."""
        return -(-rows // ROW_TILE) * ROW_TILE * self.planes * self.columns

    @property
    def groups(self) -> int:
        """Scales a row, those of padding included."""
        return self.fields * self.columns // self.group if self.group else 1


def pack(codes: Int8, layout: GpuLayout) -> Words:
    """The words, in order, of codes [rows, depth]. WattbitError for codes outside the narrow range."""
    rows, depth = codes.shape
    top = 2 ** (layout.bits - 1) - 1
    if depth != layout.depth or (codes.size and int(np.abs(codes.astype(np.int16)).max()) > top):
        raise WattbitError(f"codes [{rows}, {depth}] must have {layout.depth} columns and lie within -{top}..{top}")
    tiles = -(-rows // ROW_TILE)
    padded = np.zeros((tiles * ROW_TILE, layout.fields * layout.columns), np.int32)
    padded[:rows, :depth] = codes
    fields = padded.reshape(len(padded), layout.fields, layout.columns).transpose(1, 0, 2)  # [F, rows, C]
    words = np.zeros((layout.planes, len(padded), layout.columns), np.uint32)
    for f, field in enumerate(fields):
        for plane, bit, part in _split(field, f, layout.bits):
            words[plane] |= part.astype(np.uint32) << np.uint32(bit)
    ordered = words.astype(np.uint16).view(np.int16).reshape(layout.planes, tiles, ROW_TILE, -1, layout.block)
    return ordered.transpose(1, 3, 2, 0, 4).ravel()  # [tile, block, row, plane, column]


def _split(field: NDArray[np.int32], f: int, bits: int) -> list[tuple[int, int, NDArray[np.int32]]]:
    """Where field f goes: (plane, lowest bit, value) of each of its parts."""
    code = field + 2 ** (bits - 1)
    if bits == 2:
        return [(0, 14 - 2 * f, (field < 0) * 2 + (field != 0))]
    if bits == 3 and f == 15:
        return [(j, 15, code >> j & 1) for j in range(3)]
    if bits == 3:
        return [(f // 5, 3 * (f % 5), code)]
    if bits == 4:
        return [(f // 4, 4 * (f % 4), code)]
    if bits == 6:
        return [(f // 4, 4 * (f % 4), code & 15), (2, 2 * f, code >> 4)]
    return [(f // 2, 8 * (f % 2), field & 255)]


def unpack(words: Words, layout: GpuLayout, rows: int) -> Int8:
    """The codes [rows, depth] that `pack` made `words` of."""
    ordered = words.view(np.uint16).astype(np.int32)
    ordered = ordered.reshape(-1, layout.columns // layout.block, ROW_TILE, layout.planes, layout.block)
    planes = ordered.transpose(3, 0, 2, 1, 4).reshape(layout.planes, -1, layout.columns)  # [planes, rows, C]
    fields = np.stack([_join(planes, f, layout.bits) for f in range(layout.fields)], axis=1)  # [rows, F, C]
    return np.ascontiguousarray(fields.reshape(planes.shape[1], -1)[:rows, : layout.depth].astype(np.int8))


def _join(planes: NDArray[np.int32], f: int, bits: int) -> NDArray[np.int32]:
    """Field f [rows, C] of planes [planes, rows, C]."""
    if bits == 2:
        part = planes[0] >> (14 - 2 * f) & 3
        return (part & 1) * (1 - (part & 2))
    if bits == 3:
        code = sum((planes[j] >> 15) << j for j in range(3)) if f == 15 else planes[f // 5] >> 3 * (f % 5) & 7
        return np.asarray(code) - 4
    if bits == 8:
        return (planes[f // 2] >> 8 * (f % 2) & 255 ^ 128) - 128
    code = planes[f // 4] >> 4 * (f % 4) & 15
    if bits == 6:
        code = code | (planes[2] >> 2 * f & 3) << 4
    return code - 2 ** (bits - 1)
