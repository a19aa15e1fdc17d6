"""What engines take of a chip: a type for it, and a model of it for planning."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Self

from wattbit.hls.engine_class import EngineClass
from wattbit.plan import ExpertShape, Target

# Words by bits of one RAMB18 (Xilinx UG473).
BRAM18_ASPECTS = ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1))
LUTRAM_DEPTH_MAX = 256  # yosys builds shallower memories from LUTs
REQUANT_BITS = 18  # a channel's multiplier (up to 16) and its shift within the class's window

# LUTs and flip-flops of an engine are linear in the products a cycle, the bits of its accumulators a beat (both summed
# over its layers) and the bits of a weight word. Least relative squares over ten engines that yosys 0.70 synthesised
# for xc7 out of context: w2a8 1x1, 4x2 and 8x8, w3a8 8x4, w4a4 8x4, w4a8 4x8, w6a8 4x4 and 8x8, w8a8 2x2 and 8x8 (PE1 x
# SIMD1), 64 -> 128 -> 64, 4 to 8 sets. Largest error 10 % (LUT) and 5 % (FF), mean 3 % and 2 %; on two others, w4a4
# 4x4 and w8a8 4x4, at most 8 % and 3 %. Their multipliers took 13 to 16 bits; five engines of 32 exported experts, with
# multipliers of 5 to 10 bits, took 6 to 27 % fewer LUTs and 16 to 24 % fewer flip-flops than modelled.
LUT_FIT = (543.0, 25.4, 6.83, 0.0)
FF_FIT = (578.0, 32.7, 8.58, 1.23)


@dataclass(frozen=True)
class Resources:
    """Look-up tables, flip-flops, DSP slices and 18 Kb block RAMs; `tool` says what counted or modelled them."""

    lut: int
    ff: int
    dsp: int
    bram18: int
    tool: str

    def __add__(self, other: "Resources") -> "Resources":
        tool = self.tool if self.tool == other.tool else f"{self.tool} + {other.tool}"
        return Resources(
            self.lut + other.lut, self.ff + other.ff, self.dsp + other.dsp, self.bram18 + other.bram18, tool
        )

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.lut, self.ff, self.dsp, self.bram18

    def share(self, target: Target) -> float:
        """Largest share of any of the target's resources; above 1 it does not fit."""
        return max(used / there if there else math.inf for _, used, there in self._against(target) if used)

    def excess(self, target: Target) -> list[str]:
        """What is short and by how much, for instance `dsp: 300 of 220`."""
        return [f"{name}: {used} of {there}" for name, used, there in self._against(target) if used > there]

    def _against(self, target: Target) -> tuple[tuple[str, int, int], ...]:
        return (
            ("lut", self.lut, target.lut),
            ("ff", self.ff, target.ff),
            ("dsp", self.dsp, target.dsp),
            ("bram18", self.bram18, target.bram18),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(**record)


NOTHING = Resources(0, 0, 0, 0, "model")


def dsp_lanes(weight_bits: int, act_bits: int, version: int) -> int:
    """Products that finn-rtllib's MVU packs into one DSP48E1 (version 1) or DSP48E2 (2), narrow-range weights."""
    port = 25 if version == 1 else 27
    return 1 + (port - weight_bits) // (weight_bits + act_bits - 1)


def memory_bram18(depth: int, width: int) -> int:
    """RAMB18 of a memory of `depth` words of `width` bits; 0 where LUTs hold it."""
    return 0 if depth <= LUTRAM_DEPTH_MAX else _bram18(depth, width)


@cache
def _bram18(depth: int, width: int) -> int:
    """The cheapest mixture of columns of any aspect ratio, or the same for the highest power of two and the rest."""
    columns = [0]  # RAMB18 of the first bits
    for bits in range(1, width + 1):
        columns.append(
            min(math.ceil(depth / words) + columns[max(0, bits - column)] for words, column in BRAM18_ASPECTS)
        )
    power = 1 << (depth.bit_length() - 1)
    if power == depth:
        return columns[width]
    return min(columns[width], _bram18(power, width) + _bram18(depth - power, width))


def model(spec: EngineClass, shape: ExpertShape, version: int) -> Resources:
    """Modelled resources of an engine: DSP by the packing rule, BRAM by geometry, LUT and FF by a linear fit."""
    bits, sets = spec.precision.weight_bits, len(spec.experts)
    lanes = dsp_lanes(bits, spec.precision.act_bits, version)
    layers = ((spec.pe1, spec.simd1, shape.d_hidden), (spec.pe2, spec.simd2, shape.d_model))
    products = sum(pe * simd for pe, simd, _ in layers)
    accumulators = sum(pe * acc for (pe, _, _), acc in zip(layers, spec.accumulators(shape), strict=True))
    features = (1, products, accumulators, products * bits)
    return Resources(
        lut=round(sum(a * x for a, x in zip(LUT_FIT, features, strict=True))),
        ff=round(sum(a * x for a, x in zip(FF_FIT, features, strict=True))),
        dsp=sum(math.ceil(pe / lanes) * simd + pe for pe, simd, _ in layers),
        bram18=sum(
            memory_bram18(sets * shape.d_model * shape.d_hidden // (pe * simd), pe * simd * bits)
            + memory_bram18(sets * channels // pe, pe * REQUANT_BITS)
            for pe, simd, channels in layers
        ),
        tool="model",
    )
