"""How a launch is cut into blocks. Chosen by sweeps on an H200; see results/gpu_experts.md."""

from dataclasses import dataclass

from wattbit.errors import WattbitError
from wattbit.tvm_schedules.gpu.packing import COLUMN_BLOCK, tiles

SHARED_MAX = 227 * 1024  # bytes of a Hopper multiprocessor's shared memory that blocks may have
DECLARED = 10 * 1024  # of these, what the kernels declare themselves, at most, and the driver's share


@dataclass(frozen=True)
class Tiling:
    """warps: of a block that multiply. token_tiles: of 8 tokens. splits: blocks that share the depth of 64 rows of one expert.

    ring: bytes that a warp loads ahead. blocks: that a multiprocessor must have room for. each: tiles of 64 rows that
    a block takes in turn, or 0 for an equal share of all that the card has room for.
    """

    warps: int = 8
    token_tiles: int = 1
    splits: int = 1
    ring: int = 8192
    blocks: int = 2
    each: int = 1

    def row_blocks(self, row_tiles: int, slots: int, multiprocessors: int) -> int:
        """Blocks that share the row tiles of a slot."""
        if self.each:
            return -(-row_tiles // self.each)
        return min(row_tiles, max(1, multiprocessors * self.blocks // (slots * self.splits)))

    def vector_bytes(self, depth: int, groups: bool) -> int:
        """Shared memory of a block with one token: rings, and the inputs of its share of the depth."""
        columns = -(-depth // COLUMN_BLOCK) // self.splits + 5
        return self.warps * self.ring + columns * (4 * COLUMN_BLOCK + (4 if groups else 0))


def choose(
    widths: int, one: bool, tokens: float, rows: int, depth: int, slots: int, may_split: bool, multiprocessors: int
) -> Tiling:
    """The tiling of a launch over `slots` experts of rows x depth at the widths of a mask.

    one: for a single token. tokens: of an expert, mean. WattbitError for a depth that no block has room for.
    """
    count = tiles(rows) * slots
    splits = 1
    if may_split and count < multiprocessors:
        splits = max(1, min(4, 2 * multiprocessors // count, depth // (64 * COLUMN_BLOCK)))
    if not one:
        token_tiles = 1 if tokens <= 4 else 2 if tokens <= 8 else 4
        ring, blocks = {1: (8192, 2), 2: (12288, 3), 4: (20480, 2)}[token_tiles]
        return Tiling(8 if token_tiles == 1 else 4, token_tiles, splits, ring, blocks)
    for warps, ring, blocks in ((8, 9216, 2), (16, 9216, 1), (8, 9216, 1)):
        tiling = Tiling(warps, 1, splits, ring, blocks, 0)
        if tiling.vector_bytes(depth, True) + DECLARED <= SHARED_MAX // tiling.blocks:
            return tiling
    raise WattbitError(f"there is no GPU kernel for matrices of {depth} columns: their inputs fill the shared memory")
