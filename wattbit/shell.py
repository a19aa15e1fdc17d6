"""The accelerator shell as software sees it: its identity, registers and packets. Simulator and board agree on it here.

NumPy only, for the board carries it.
"""

from collections.abc import Callable
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError

VLNV = "wattbit:wattbit:wattbit_shell:1.0"
INSTANCE = "wattbit_0"
IDENTITY = 0x57423031


class Register(IntEnum):
    """Byte offsets of the 32-bit registers; `wattbit.hls.shell` says what each does.

    WEIGHTS_...: of stream 0. ..._CYCLES: of engine 0.
    """

    CTRL = 0x00
    ID = 0x04
    DIGEST = 0x08
    COUNT = 0x0C
    IN_ADDR = 0x10
    OUT_ADDR = 0x14
    CYCLES_LO = 0x18
    CYCLES_HI = 0x1C
    D_MODEL = 0x20
    ENGINES = 0x24
    ERROR = 0x28
    STREAMS = 0x2C
    WEIGHTS_ADDR = 0x40
    WEIGHTS_STRIDE = 0x44
    VECTOR_CYCLES = 0x800
    LOAD_CYCLES = 0x804


STREAM_BYTES = 8  # from the WEIGHTS registers of one stream to those of the next
ENGINE_BYTES = 8  # from the CYCLES registers of one engine to those of the next

START, DONE = 1, 2
ERRORS = {
    1: "a packet names an engine that the design does not have",
    2: "the memory answered with an AXI error",
    3: "a packet names a set that its engine does not have",
}

WORD_BITS = 64  # that a memory port moves in a cycle
HEADER_BYTES = 8
COUNT_MAX = 2**20 - 1


def digest_word(digest: str) -> int:
    """What the DIGEST register holds: the low 32 bits of a design's 16-digit digest."""
    return int(digest, 16) & 0xFFFFFFFF


def packets(engine: NDArray[np.integer], index: NDArray[np.integer], x: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Packets [N, 8 + D] of inputs x [N, D]: a 64-bit header (engine, set), then the vector."""
    if x.ndim != 2 or x.dtype != np.int8 or not len(x) or len(engine) != len(x) or len(index) != len(x):
        raise WattbitError(f"a launch takes int8 inputs [N, D] with an engine and a set each, not {x.dtype} {x.shape}")
    if len(x) > COUNT_MAX:
        raise WattbitError(f"a launch takes up to {COUNT_MAX} vectors, not {len(x)}; send fewer at a time")
    if x.shape[1] % 8:
        raise WattbitError(f"the shell moves vectors of whole 64-bit words; {x.shape[1]} is not a multiple of 8")
    for name, values, most in (("engine", engine, 2**8), ("set", index, 2**16)):
        if values.min() < 0 or values.max() >= most:
            raise WattbitError(f"{name} must be below {most}, not {values.min()}..{values.max()}")
    result = np.zeros((len(x), HEADER_BYTES + x.shape[1]), np.uint8)
    result[:, 0] = engine
    result[:, 1] = index & 255
    result[:, 2] = index >> 8
    result[:, HEADER_BYTES:] = x.view(np.uint8)
    return result


def interleaved(
    engine: NDArray[np.integer], index: NDArray[np.integer], cycles: NDArray[np.integer]
) -> NDArray[np.int64]:
    """The order [N] in which to send packets for engines and sets [N]: each engine's by set, spread over the launch.

    cycles [E, 2]: of a vector, and of loading an expert, on each engine. The shell takes packets in order, and one for
    an engine whose queue is full holds up those behind it; so each is sent at the share of its engine's time at which
    it will be computed. Streamed weights are loaded once for all packets of a set in a row.
    """
    place = np.empty(len(engine))
    for one in np.unique(engine):
        mine = np.flatnonzero(engine == one)
        mine = mine[np.argsort(index[mine], kind="stable")]
        run = np.unique(index[mine], return_counts=True)[1]  # packets of each set
        vector, load = cycles[one] if one < len(cycles) else (1, 0)
        time = np.repeat(np.maximum(vector, load / run), run)
        place[mine] = (np.cumsum(time) - time / 2) / time.sum()
    return np.argsort(place, kind="stable")


def engine_cycles(read: Callable[[int], int], engines: int) -> NDArray[np.int64]:
    """Cycles of a vector and of loading an expert on each engine [E, 2], by reading the registers; at least 1, 0."""
    places = range(0, ENGINE_BYTES * engines, ENGINE_BYTES)
    times = [(read(Register.VECTOR_CYCLES + at), read(Register.LOAD_CYCLES + at)) for at in places]
    return np.maximum(np.array(times, np.int64), (1, 0))
