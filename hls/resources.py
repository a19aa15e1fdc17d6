"""What engines take of a chip: a type for it, and a model of it for planning."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from wattbit.hls.engine_class import EngineClass
from wattbit.plan import ExpertShape, Target

# Words by bits of one RAMB18 (Xilinx UG473); a RAMB36 holds two side by side.
BRAM18_ASPECTS = ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1))
LUTRAM_BITS_MAX = 2048  # below that yosys builds a memory from LUTs
REQUANT_BITS = 21  # a channel's multiplier (16) and its shift within a class's window (at most 5)


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
    """RAMB18 of a memory of `depth` words, in the aspect ratio that takes fewest; 0 where LUTs hold it."""
    if depth * width <= LUTRAM_BITS_MAX:
        return 0
    return min(math.ceil(depth / words) * math.ceil(width / bits) for words, bits in BRAM18_ASPECTS)


def model(spec: EngineClass, shape: ExpertShape, version: int) -> Resources:
    """Modelled resources of an engine: DSP by the packing rule, BRAM by geometry, LUT and FF by a linear fit."""
    bits, act_bits, sets = spec.precision.weight_bits, spec.precision.act_bits, len(spec.experts)
    lanes = dsp_lanes(bits, act_bits, version)
    layers = ((spec.pe1, spec.simd1, shape.d_hidden), (spec.pe2, spec.simd2, shape.d_model))
    return Resources(
        lut=0,
        ff=0,
        dsp=sum(math.ceil(pe / lanes) * simd + pe for pe, simd, _ in layers),
        bram18=sum(
            memory_bram18(sets * shape.d_model * shape.d_hidden // (pe * simd), pe * simd * bits)
            + memory_bram18(sets * channels // pe, pe * REQUANT_BITS)
            for pe, simd, channels in layers
        ),
        tool="model",
    )
