"""How the integer codes of a weight matrix lie in GPU memory, and the packing into it. NumPy only.

A matrix is cut into blocks of 64 rows and 32 columns, padded with zero codes. In a block, lane 4 g + q of a warp holds
rows g, g + 8, .. g + 56 of columns 8 q .. 8 q + 7: just what it feeds to the tensor cores, so that no data has to move
between threads. The eight codes of a lane's column, each as code + 2^(bits - 1), share `bits` bytes:

| bits | code j of the eight lies in |
|---|---|
| 2, 4, 8 | byte j bits / 8, from bit j bits % 8 |
| 3 | j < 6: byte j % 3, from bit 0 or 3; 6: bits 6-7 of byte 0 over bit 6 of byte 1; 7: those of byte 2 over bit 7 |
| 6 | each four in three bytes: the first three in bits 0-5; the last in bits 6-7 of the three, highest first |

In that place a code is, times a power of two, a bfloat16 number as it stands (see `gemm.cu`), and in its byte an
unsigned integer (see `gemv.cu`). Columns are taken four at a time: a 32-bit word holds the j-th byte of columns 0, 2, 1
and 3.

Order of the 32-bit words, slowest first: 64 rows; block of 32 columns; four words of a lane; lane; word. Where a lane
has 2 words more (3 bits), these come last.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wattbit.arith import Int8
from wattbit.errors import WattbitError

GPU_WIDTHS = (2, 3, 4, 6, 8)
ROW_TILE = 64
COLUMN_BLOCK = 32

Words = NDArray[np.int32]
Bytes = NDArray[np.uint8]


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
        if self.group % COLUMN_BLOCK:
            raise WattbitError(f"a scale group must be a multiple of {COLUMN_BLOCK} codes, not {self.group}")

    @property
    def blocks(self) -> int:
        """Blocks of columns."""
        return -(-self.depth // COLUMN_BLOCK)

    @property
    def groups(self) -> int:
        """Scales a row."""
        return -(-self.depth // self.group) if self.group else 1

    def words(self, rows: int) -> int:
        """32-bit words of a matrix of so many rows."""
        return tiles(rows) * self.blocks * ROW_TILE * COLUMN_BLOCK * self.bits // 32

    def scales(self, rows: int) -> int:
        """Scales of a matrix of so many rows as they lie in memory."""
        return tiles(rows) * ROW_TILE * self.groups if self.group else rows


def tiles(rows: int) -> int:
    return -(-rows // ROW_TILE)


def pack(codes: Int8, layout: GpuLayout) -> Words:
    """The words, in order, of codes [rows, depth]. WattbitError for codes outside the narrow range."""
    rows, depth = codes.shape
    top = 2 ** (layout.bits - 1) - 1
    if depth != layout.depth or (codes.size and int(np.abs(codes.astype(np.int16)).max()) > top):
        raise WattbitError(f"codes [{rows}, {depth}] must have {layout.depth} columns and lie within -{top}..{top}")
    padded = np.zeros((tiles(rows) * ROW_TILE, layout.blocks * COLUMN_BLOCK), np.int16)
    padded[:rows, :depth] = codes
    positive = (padded + 2 ** (layout.bits - 1)).astype(np.uint8)
    # [tile, h, g, block, q, step, half, pair]
    parts = positive.reshape(-1, 8, 8, layout.blocks, 4, 2, 2, 2)
    spread = _split(np.moveaxis(parts, 1, -1), layout.bits)  # [tile, g, block, q, step, half, pair, byte]
    ordered = spread.transpose(0, 2, 1, 3, 4, 7, 6, 5)  # [tile, block, g, q, step, byte, pair, half]
    words = (
        np.ascontiguousarray(ordered).reshape(-1).view(np.int32).reshape(-1, 32, 2 * layout.bits)
    )  # [.., lane, word]
    full = 2 * layout.bits // 4 * 4
    fours = words[:, :, :full].reshape(len(words), 32, -1, 4).transpose(0, 2, 1, 3)
    return np.concatenate([fours.reshape(len(words), -1), words[:, :, full:].reshape(len(words), -1)], axis=1).ravel()


def unpack(words: Words, layout: GpuLayout, rows: int) -> Int8:
    """The codes [rows, depth] that `pack` made `words` of."""
    full = 2 * layout.bits // 4 * 4
    blocks = words.reshape(-1, 64 * layout.bits)
    fours = blocks[:, : 32 * full].reshape(len(blocks), -1, 32, 4).transpose(0, 2, 1, 3).reshape(len(blocks), 32, full)
    lanes = np.concatenate([fours, blocks[:, 32 * full :].reshape(len(blocks), 32, -1)], axis=2)
    ordered = (
        np.ascontiguousarray(lanes).reshape(-1).view(np.uint8).reshape(-1, layout.blocks, 8, 4, 2, layout.bits, 2, 2)
    )
    parts = _join(ordered.transpose(0, 2, 1, 3, 4, 7, 6, 5), layout.bits)
    codes = np.moveaxis(parts, -1, 1).reshape(-1, layout.blocks * COLUMN_BLOCK).astype(np.int16)
    return (codes[:rows, : layout.depth] - 2 ** (layout.bits - 1)).astype(np.int8)


def _split(codes: Bytes, bits: int) -> Bytes:
    """[.., bits] bytes of eight codes [.., 8]."""
    found = np.zeros((*codes.shape[:-1], bits), np.uint8)
    for j, byte, bit, code_bit, length in _places(bits):
        found[..., byte] |= ((codes[..., j] >> code_bit) & (2**length - 1)) << bit
    return found


def _join(parts: Bytes, bits: int) -> Bytes:
    """[.., 8] codes of the bytes [.., bits]."""
    found = np.zeros((*parts.shape[:-1], 8), np.uint8)
    for j, byte, bit, code_bit, length in _places(bits):
        found[..., j] |= ((parts[..., byte] >> bit) & (2**length - 1)) << code_bit
    return found


def _places(bits: int) -> list[tuple[int, int, int, int, int]]:
    """Where the parts of eight codes lie: (code, byte, lowest bit there, lowest bit of the code, bits)."""
    if bits == 3:
        return [(j, j % 3, j // 3 * 3, 0, 3) for j in range(6)] + [
            (6, 0, 6, 1, 2), (6, 1, 6, 0, 1), (7, 2, 6, 1, 2), (7, 1, 7, 0, 1)
        ]  # fmt: skip
    if bits == 6:
        first = [(4 * i + j, 3 * i + j, 0, 0, 6) for i in range(2) for j in range(3)]
        return first + [(4 * i + 3, 3 * i + j, 6, 4 - 2 * j, 2) for i in range(2) for j in range(3)]
    return [(j, j * bits // 8, j * bits % 8, 0, bits) for j in range(8)]
