"""How packed weights lie in memory: the contract between packing, kernels and the board. Standard library only.

A matrix [rows, depth] of b-bit codes is cut into chunks: the codes that one vector instruction multiplies, 4
consecutive codes of depth (a quad) for each of `vector_bytes` / 4 consecutive rows. Every 32-bit lane so belongs to
one row, and the activations are one quad, the same for all lanes.

8 / gcd(b, 8) consecutive chunks, the fewest whose bits fill whole vectors, are a block of b / gcd(b, 8) vectors. Byte
i of its vectors holds byte i of all its chunks: each vector holds as many whole codes as it can from its lowest bit
on, and the bits that are left, each vector's from its highest on, spell the remaining codes, highest bits first (so ARM
puts them together with one shift and insert for each part). So 3 bits are

    vector 0: chunk 0 | chunk 1 << 3 | high 2 bits of chunk 6 << 6
    vector 1: chunk 2 | chunk 3 << 3 | low bit of chunk 6 << 7 | high bit of chunk 7 << 6
    vector 2: chunk 4 | chunk 5 << 3 | low 2 bits of chunk 7 << 6

Order of the bytes, slowest first: group of `group_vectors` row vectors, block, row vector of the group, vector of the
block, row, code of the quad. A kernel reads one stream from start to end.

A code is weight + zero, with zero = 2^(b-1), so codes are unsigned; 8-bit codes are signed with zero = 0 where the
core multiplies signed by signed. Depth is padded to whole blocks and rows to whole groups with codes 0; the
activations of the padded depth must be 0, so that it adds nothing to any sum.
"""

from dataclasses import dataclass
from math import gcd

LAYOUT_VERSION = 3
QUAD = 4  # codes of one row in a chunk
DEPTH_UNIT = 64  # activations are padded to a multiple of it: it is one of every block's depth


def padded(count: int, unit: int) -> int:
    """The smallest multiple of `unit` that is at least `count`."""
    return -(-count // unit) * unit


@dataclass(frozen=True)
class Field:
    """Bits `shift` to `shift + bits` of the codes of chunk `chunk`: they lie from bit `at` on in vector `vector`."""

    vector: int
    at: int
    bits: int
    chunk: int
    shift: int

    @property
    def mask(self) -> int:
        """The field's bits where they lie."""
        return (2**self.bits - 1) << self.at


@dataclass(frozen=True)
class Layout:
    """The layout of one matrix's codes; see the module."""

    weight_bits: int
    vector_bytes: int
    group_vectors: int
    zero: int

    @property
    def vector_rows(self) -> int:
        return self.vector_bytes // QUAD

    @property
    def group_rows(self) -> int:
        return self.vector_rows * self.group_vectors

    @property
    def block_chunks(self) -> int:
        return 8 // gcd(self.weight_bits, 8)

    @property
    def block_vectors(self) -> int:
        return self.weight_bits // gcd(self.weight_bits, 8)

    @property
    def block_depth(self) -> int:
        return QUAD * self.block_chunks

    @property
    def block_bytes(self) -> int:
        """The bytes of a block of all the group's row vectors."""
        return self.group_vectors * self.block_vectors * self.vector_bytes

    @property
    def fields(self) -> tuple[Field, ...]:
        """Where the bits of a block's codes lie, each chunk's highest bits first."""
        b = self.weight_bits
        whole = 8 // b
        fields = [Field(v, b * i, b, v * whole + i, 0) for v in range(self.block_vectors) for i in range(whole)]
        chunk, missing = self.block_vectors * whole, b  # bits of the chunk that have no place yet
        for vector in range(self.block_vectors):
            end = 8
            while end > whole * b:
                bits = min(end - whole * b, missing)
                end, missing = end - bits, missing - bits
                fields.append(Field(vector, end, bits, chunk, missing))
                if missing == 0:
                    chunk, missing = chunk + 1, b
        return tuple(fields)

    def blocks(self, depth: int) -> int:
        return padded(depth, self.block_depth) // self.block_depth

    def groups(self, rows: int) -> int:
        return padded(rows, self.group_rows) // self.group_rows

    def matrix_bytes(self, rows: int, depth: int) -> int:
        return self.groups(rows) * self.blocks(depth) * self.block_bytes
