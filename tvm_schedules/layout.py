"""How packed weights lie in memory: the contract between packing, kernels and the board. Standard library only.

A matrix [rows, depth] of b-bit codes is cut along its depth into chunks of `vector_bytes` codes: the codes that one
vector instruction multiplies. A chunk's codes are stored as bit planes, one for each power of two in b, the widest
lowest: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1 bits. A vector of a p-bit plane holds that plane of 8/p
consecutive chunks: byte i of it holds code i of each of them, the first chunk in the lowest bits. A block is the
smallest number of chunks that fills every plane's vectors; the last block of a row may be shorter and then has
ceil(chunks * p / 8) vectors of each plane.

Order of the bytes, slowest first: group of `group_rows` rows, block, row of the group, plane, vector of the plane.
So a kernel reads one stream from start to end.

A code is weight + zero, with zero = 2^(b-1), so codes are unsigned; 8-bit codes are signed with zero = 0 where the
core multiplies signed by signed. Depth is padded to whole chunks and rows to whole groups with codes 0; the
activations of the padded depth must be 0 as well, so that it adds nothing to any sum.
"""

from dataclasses import dataclass

LAYOUT_VERSION = 1


def padded(count: int, unit: int) -> int:
    """The smallest multiple of `unit` that is at least `count`."""
    return -(-count // unit) * unit


@dataclass(frozen=True)
class Layout:
    """The layout of one matrix's codes; see the module."""

    weight_bits: int
    vector_bytes: int
    group_rows: int
    zero: int

    @property
    def planes(self) -> tuple[int, ...]:
        """The planes' widths in bits, lowest plane first."""
        return tuple(plane for plane in (8, 4, 2, 1) if self.weight_bits & plane)

    @property
    def block_chunks(self) -> int:
        return 8 // self.planes[-1]

    def vectors(self, chunks: int) -> tuple[int, ...]:
        """How many vectors of each plane hold a block of so many chunks."""
        return tuple(-(-chunks * plane // 8) for plane in self.planes)

    def blocks(self, depth: int) -> tuple[int, ...]:
        """The chunks of each block of a row."""
        full, rest = divmod(padded(depth, self.vector_bytes) // self.vector_bytes, self.block_chunks)
        return (self.block_chunks,) * full + (rest,) * (rest > 0)

    def group_bytes(self, depth: int) -> int:
        return self.group_rows * self.vector_bytes * sum(sum(self.vectors(chunks)) for chunks in self.blocks(depth))

    def matrix_bytes(self, rows: int, depth: int) -> int:
        return padded(rows, self.group_rows) // self.group_rows * self.group_bytes(depth)
