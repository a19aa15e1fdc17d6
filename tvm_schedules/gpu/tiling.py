"""How a launch is cut into programs. Chosen by sweeps on an H200; see results/gpu_experts.md."""

from dataclasses import dataclass

import triton

PROGRAMS = 256  # an H200 has 132 multiprocessors


@dataclass(frozen=True)
class Tiling:
    """rows, tokens: a program's tile. columns: words of a row and plane in one step, at 2 and 4 bits; wide: at others.

    splits: programs that share one tile's depth. registers: the most a thread may take.
    """

    rows: int = 64
    tokens: int = 8
    columns: int = 64
    wide: int = 32
    warps: int = 4
    stages: int = 3
    splits: int = 1
    registers: int = 112


def padded(count: int, least: int = 1) -> int:
    """The next power of two, at least `least`."""
    return max(least, int(triton.next_power_of_2(count)))


def choose(widths: int, tokens: int, rows: int, slots: int, may_split: bool) -> Tiling:
    """The tiling of a launch over `slots` experts of `rows` rows at the widths of a mask, for so many tokens.

    More tokens take shared memory, so steps get shorter. Few rows are split by depth, where the launch can add parts,
    or else into smaller tiles, towards PROGRAMS programs. Where all experts are wide, tiles of 32 rows with full steps
    are best.
    """
    tile = min(padded(tokens, 8), 32)
    tiles = -(-rows // 64) * slots
    splits = min(4, max(1, PROGRAMS // tiles)) if may_split else 1
    if tile > 8:
        return Tiling(tokens=tile, columns=32, splits=splits, registers=168)
    if not widths & ((1 << 6) - 1):
        return Tiling(rows=32, wide=64, warps=2, splits=max(1, splits // 2), registers=128)
    if tiles * splits < PROGRAMS // 2:
        return Tiling(rows=32, warps=2, splits=splits)
    return Tiling(splits=splits)
