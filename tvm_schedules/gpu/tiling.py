"""How a launch is cut into blocks. Chosen by sweeps on an H200; see results/gpu_experts.md."""

from dataclasses import dataclass

from wattbit.tvm_schedules.gpu.packing import tiles

BLOCKS = 256  # an H200 has 132 multiprocessors


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


def choose(tokens: int, rows: int, slots: int, may_split: bool) -> Tiling:
    """The tiling of a launch over `slots` experts of `rows` rows for so many tokens.

    Few rows are split by depth where the launch can add parts, towards BLOCKS blocks.
    """
    splits = min(4, max(1, BLOCKS // (tiles(rows) * slots))) if may_split else 1
    return Tiling(token_tiles=min(padded(-(-tokens // 8)), 4), splits=splits, blocks=2 if tokens <= 8 else 1)
