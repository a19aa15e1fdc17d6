"""Which memories yosys builds from block RAM, LUT RAM or logic, and of how many primitives, for Xilinx parts.

yosys' `memory_libmap` gives every mapping a cost and takes the cheapest; the costs below are those of its library
(`brams_xc4v.txt`, `lutrams_xc5v.txt`, `lutrams_xcu.txt`) and of `synth_xilinx`. A memory deeper than a primitive is
`banks` of its depth side by side, whose bits are packed without regard to their borders, and a multiplexer.
"""

import math
from dataclasses import dataclass
from functools import cache

# Words by bits of a RAMB18 and a RAMB36 (Xilinx UG473, UG573), with yosys' cost.
BLOCKS = (
    (1, 129, ((16384, 1), (8192, 2), (4096, 4), (2048, 9), (1024, 18), (512, 36))),
    (2, 257, ((32768, 1), (16384, 2), (8192, 4), (4096, 9), (2048, 18), (1024, 36), (512, 72))),
)
ROM_BIT_COST = 1 / 64  # of a constant that becomes logic
MUX_BIT_COST = 0.5
# LUT RAM with one write and one read port: words, bits, LUTs, cost; by DSP48 generation (7 series, UltraScale+).
LUT_RAMS = {1: ((32, 6, 4, 8), (64, 3, 4, 8)), 2: ((32, 14, 8, 16), (64, 7, 8, 16))}


@dataclass(frozen=True)
class Mapping:
    """bram18: RAMB18, a RAMB36 counting as two. lutram: LUTs used as RAM. logic: bits of a constant in LUTs.

    mux: two-to-one multiplexers between banks, in bits.
    """

    bram18: int = 0
    lutram: int = 0
    logic: int = 0
    mux: int = 0


@cache
def constant(depth: int, width: int) -> Mapping:
    """A memory of constants with a registered read."""
    cost, block = _block(depth, width)
    return Mapping(logic=depth * width) if depth * width * ROM_BIT_COST <= cost else block


@cache
def writable(depth: int, width: int, version: int) -> Mapping:
    """A memory with one write port and one registered read port, on DSP48 generation `version`."""
    cost, block = _block(depth, width)
    lut_cost, luts = min(
        (
            math.ceil(depth / words) * math.ceil(width / bits) * price,
            math.ceil(depth / words) * math.ceil(width / bits) * n,
        )
        for words, bits, n, price in LUT_RAMS[version]
    )
    return Mapping(lutram=luts) if lut_cost < cost else block


def lut_ram(depth: int, width: int, version: int) -> int:
    """LUTs of a queue that finn-rtllib asks to be LUT RAM."""
    words, bits, luts, _ = LUT_RAMS[version][depth > LUT_RAMS[version][0][0]]
    return math.ceil(depth / words) * math.ceil(width / bits) * luts


def _block(depth: int, width: int) -> tuple[float, Mapping]:
    found = []
    for size, price, aspects in BLOCKS:
        for words, bits in aspects:
            banks = math.ceil(depth / words)
            number = math.ceil(banks * width / bits)
            mux = (banks - 1) * width
            found.append((number * price + mux * MUX_BIT_COST, Mapping(bram18=number * size, mux=mux)))
    return min(found, key=lambda pair: pair[0])
