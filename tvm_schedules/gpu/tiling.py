"""How a launch is cut into blocks. Chosen by sweeps on an H200; see results/gpu_experts.md."""

from dataclasses import dataclass

from wattbit.tvm_schedules.gpu.packing import COLUMN_BLOCK, tiles

BLOCKS = 256  # an H200 has 132 multiprocessors
MANY_TILES = 800


@dataclass(frozen=True)
class Tiling:
    """warps: of a block. token_tiles: of 8 tokens. splits: blocks that share the depth of 64 rows of one expert.

    ring: bytes that a warp loads ahead. blocks: that a multiprocessor must have room for. each: tiles of 64 rows that
    a block takes in turn.
    """

    warps: int = 8
    token_tiles: int = 1
    splits: int = 1
    ring: int = 8192
    blocks: int = 2
    each: int = 1


def padded(count: int, least: int = 1) -> int:
    """The next power of two, at least `least`."""
    return max(least, 1 << (count - 1).bit_length())


def choose(widths: int, tokens: float, rows: int, depth: int, slots: int, may_split: bool) -> Tiling:
    """The tiling of a launch over `slots` experts of rows x depth at the widths of a mask. tokens: of an expert, mean.

    Few row tiles are split by depth where the launch can add parts, and get more warps each. Where all weights are wide
    and tiles many, a block takes several in turn.
    """
    token_tiles = 2 if tokens > 8 else 1
    count = tiles(rows) * slots
    if may_split and count < BLOCKS:
        splits = max(1, min(4, BLOCKS // count, depth // (64 * COLUMN_BLOCK)))
        few = count * splits < 32
        return Tiling(16 if few else 8, token_tiles, splits, blocks=1 if few else 2)
    if tokens > 1 or count < BLOCKS // 2:
        return Tiling(token_tiles=token_tiles)
    narrow = widths & 0b1111  # 2 or 3 bits
    return Tiling(warps=4, blocks=4, each=1 if narrow or count < MANY_TILES else 4)
