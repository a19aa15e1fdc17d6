"""How a launch is cut into blocks. Chosen by sweeps on an H200; see results/gpu_experts.md."""

from dataclasses import dataclass

from wattbit.errors import WattbitError
from wattbit.tvm_schedules.gpu.packing import COLUMN_BLOCK, tiles

SHARED_MAX = 226 * 1024  # bytes of a Hopper multiprocessor's shared memory that blocks may have, less the driver's
DECLARED = 1300  # of these, what a kernel for one token declares itself for each warp
LARGE = 40_000_000  # codes of a launch for one token: sweeps were of 59 million and more, and of 17 million and less
SLOTS_DEALT = 32  # at most, where blocks are dealt to the slots by their widths: a lane a slot


@dataclass(frozen=True)
class Tiling:
    """warps: of a block that multiply. token_tiles: of 8 tokens. splits: blocks that share the depth of 64 rows of an
    expert.

    ring: bytes that a warp loads ahead. blocks: that a multiprocessor must have room for. each: tiles of 64 rows that
    a block takes in turn, or 0 for an equal share of all that the card has room for.

    At one token: early: stages of weights that down asks for before its inputs. spread: deal the blocks to the slots by
    their widths.
    """

    warps: int = 8
    token_tiles: int = 1
    splits: int = 1
    ring: int = 8192
    blocks: int = 2
    each: int = 1
    early: int = 2
    spread: bool = False

    def row_blocks(self, row_tiles: int, slots: int, multiprocessors: int) -> int:
        """Blocks that share the row tiles of a slot."""
        if self.each:
            return -(-row_tiles // self.each)
        return min(row_tiles, max(1, multiprocessors * self.blocks // (slots * self.splits)))

    def vector_bytes(self, depth: int, groups: bool) -> int:
        """Shared memory of a block with one token: rings, and the inputs of its share of the depth."""
        columns = -(-depth // COLUMN_BLOCK) // self.splits + 5
        return self.warps * self.ring + columns * (4 * COLUMN_BLOCK + (4 if groups else 0))


@dataclass(frozen=True)
class Work:
    """What a launch multiplies: `slots` experts' matrices of rows x depth with `tokens` tokens each, on average.

    widths: a mask with bit b set for b bits. groups: of codes with a scale each. is_one: the batch is a single token.
    """

    widths: int
    rows: int
    depth: int
    groups: bool
    slots: int
    tokens: float
    is_one: bool
    is_down: bool


def choose(work: Work, multiprocessors: int) -> Tiling:
    """The tiling of a launch. WattbitError for a depth that no block has room for."""
    splits, count = 1, tiles(work.rows) * work.slots
    if work.is_down and count < multiprocessors:
        splits = max(1, min(4, 2 * multiprocessors // count, work.depth // (64 * COLUMN_BLOCK)))
    if work.is_one:
        return _for_one(work, splits if work.groups else 1)
    if work.tokens <= 4:
        return Tiling(8, 1, splits, 8192, blocks=2)
    if work.tokens <= 8:
        return Tiling(4, 2, splits, 8192, blocks=4)
    if work.widths < 1 << 5:  # narrow weights: products take longer than reading some twice
        return Tiling(4, 2, splits, 12288, blocks=3)
    return Tiling(4, 4, splits, 20480, blocks=2)


def _for_one(work: Work, splits: int) -> Tiling:
    """Up: so small that the next launch's block has room beside it and reads its inputs. Down: short for small experts,
    whose blocks are many; else as much of the weights as has room, for they come while up still runs. Blocks are dealt
    by widths where there are several and enough row tiles to deal."""
    depth, is_mixed = work.depth, work.widths & (work.widths - 1) > 0
    is_large = work.rows * depth * work.slots >= LARGE
    spread = is_mixed and is_large and not work.groups and work.slots <= SLOTS_DEALT
    up = Tiling(8, ring=9216, blocks=1, each=0, spread=spread)
    wanted = up
    if work.is_down and splits > 1:
        wanted = Tiling(8, splits=splits, ring=9216, blocks=2, each=0, early=1)
    elif work.is_down and depth < 2048:
        wanted = Tiling(4, ring=9216, blocks=2, each=0)
    elif work.is_down:
        early = 3 if is_large and not is_mixed else 2
        wanted = Tiling(12, ring=12288, blocks=1, each=0, early=early, spread=spread)
    for tiling in (wanted, up, Tiling(2, ring=9216, blocks=1, each=0)):
        if tiling.vector_bytes(depth, groups=True) + DECLARED * tiling.warps <= SHARED_MAX // tiling.blocks:
            return tiling
    raise WattbitError(f"there is no GPU kernel for matrices of {depth} columns: their inputs fill the shared memory")
