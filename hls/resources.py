"""What engines and their shell take of a chip: a type for it, and a model of it for planning.

DSP slices follow from how finn-rtllib packs products, block RAM from how yosys maps memories (`hls.block_ram`): both
are exact. LUTs and flip-flops are linear in what the RTL instantiates: widths of adders, memory words and queues, LUT
RAM, constants in logic. The coefficients are least relative squares over single layers that yosys synthesised
(`hls.calibration`); `results/fpga_models.md` has whole engines that the fit has not seen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from wattbit.arith import OUT_BITS, ExpertInts
from wattbit.hls.block_ram import constant, lut_ram, writable
from wattbit.hls.engine_class import DSP_PORT_BITS, EngineClass, Products, accumulator_bits, requant_lanes
from wattbit.hls.memory import Part, image_beats, streamed_lane_bits
from wattbit.hls.shell import AHEAD_WORDS, BRAM_WORDS, LUTRAM_WORDS, queue_words
from wattbit.plan import ExpertShape, Precision, Target

SHIFT_SPAN = 2  # largest less smallest shift of a class's experts, as in exported ones


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


def dsp_lanes(weight_bits: int, act_bits: int, version: int) -> int:
    """Products that finn-rtllib's MVU packs into one DSP48E1 (version 1) or DSP48E2 (2), narrow-range weights."""
    return 1 + (DSP_PORT_BITS[version] - weight_bits) // (weight_bits + act_bits - 1)


@dataclass(frozen=True)
class Scales:
    """Widths of a class's requant words: bits of a multiplier, and by how much the shifts of each layer differ."""

    multiplier_bits: int
    span1: int = SHIFT_SPAN
    span2: int = SHIFT_SPAN

    @classmethod
    def expected(cls, precision: Precision, shape: ExpertShape) -> Self:
        """Before there are weights. Float32 holds fc1's sums exactly (`wattbit.arith`), which bounds
        multiplier * d_model * 2^(weight_bits + act_bits) up to a constant; 1 bit above what exported experts take at
        most, which is fc1's."""
        bits = 27 - round(math.log2(shape.d_model)) - precision.weight_bits - precision.act_bits
        return cls(min(max(bits, 2), 16))

    @classmethod
    def of(cls, ints: Sequence[ExpertInts]) -> Self:
        """Those of exported experts."""
        top = max(int(max(e.m1.max(), e.m2.max())) for e in ints)
        spans = ([e.shift1 for e in ints], [e.shift2 for e in ints])
        return cls(max(top.bit_length(), 1), *(max(max(s) - min(s), 1) for s in spans))

    @property
    def lane_bits(self) -> tuple[int, int]:
        """Bits of a lane of each layer's requant words."""
        return self.multiplier_bits + self.span1.bit_length(), self.multiplier_bits + self.span2.bit_length()


@dataclass(frozen=True)
class Layer:
    """One layer of an engine as the models see it. version: DSP48 generation; sets: 0 where weights are streamed."""

    version: int
    sets: int
    inputs: int
    outputs: int
    simd: int
    pe: int
    weight_bits: int
    act_bits: int
    signed: bool
    """Signed inputs, those of fc1."""
    multiplier_bits: int
    span: int
    products: Products

    @property
    def accumulator_bits(self) -> int:
        top = 2 ** (self.act_bits - 1) if self.signed else 2**self.act_bits - 1
        return min(accumulator_bits(self.inputs, top, self.weight_bits), DSP_PORT_BITS[self.version])

    @property
    def dsp(self) -> int:
        """Of the products and, one a lane, of the requantisation."""
        return (self.pipes * self.simd if self.products == "dsp" else 0) + self.lanes

    @property
    def lanes(self) -> int:
        """Of requantisation."""
        return requant_lanes(self.pe, self.inputs // self.simd)

    @property
    def pipes(self) -> int:
        """DSP columns: PE in groups of as many as a DSP packs."""
        return math.ceil(self.pe / dsp_lanes(self.weight_bits, self.act_bits, self.version))

    @property
    def memories(self) -> tuple[Part, Part]:
        """Requant words and weights of one set."""
        lane = self.multiplier_bits + self.span.bit_length()
        if not self.sets:
            lane = streamed_lane_bits(lane)
        fold = self.inputs // self.simd * (self.outputs // self.pe)
        return (
            Part(self.outputs // self.lanes, self.lanes * lane),
            Part(fold, self.pe * self.simd * self.weight_bits),
        )

    def features(self) -> dict[str, float]:
        """What LUTs and flip-flops are linear in, and bram18."""
        pe, simd, bits = self.pe, self.simd, self.weight_bits + self.act_bits
        folds = self.inputs // simd
        found: dict[str, float] = {
            "queue": int(self.sets > 1),
            "products": 0,
            "adders": 0,
            "lanes": self.lanes,
            "shifters": self.lanes * self.span,
            "turns": pe * self.accumulator_bits if self.lanes < pe else 0,  # sums that take turns
            "selections": 0,
            "logic_adders": 0,
        }
        if self.products == "dsp":
            found |= {"products": pe * simd, "adders": pe * (simd - 1) * bits}
        else:  # as `engine_products` has them
            digits = (self.weight_bits + 1) // 2
            term = self.act_bits + (not self.signed)
            product = term + (self.weight_bits - 1 if digits > 1 else 0)
            adders = simd * sum(product - 2 * digit for digit in range(1, digits))
            adders += sum((simd >> level) * (product + level) for level in range(1, simd.bit_length()))
            found |= {"selections": pe * simd * digits * (term + (digits > 1)), "logic_adders": pe * adders}
        out_bits = self.act_bits if self.signed else OUT_BITS
        in_flight = 4 + (simd.bit_length() if simd > 1 else 2)
        lutram = lut_ram(in_flight, pe * self.accumulator_bits, self.version)
        lutram += lut_ram(6, self.lanes * out_bits, self.version)
        if self.outputs > pe and folds <= 256:
            lutram += lut_ram(folds, simd * self.act_bits, self.version)
        bram18 = mux = rows = words = 0
        logic = 0.0
        for part in self.memories:
            if self.sets:
                mapping = constant(self.sets * part.depth, part.width)
                lutram += lut_ram(7, part.width, self.version)
                lutram += lut_ram(8, (self.sets - 1).bit_length(), self.version) if self.sets > 1 else 0
                words += part.width
                if mapping.logic:
                    logic += part.width * max(1.0, self.sets * part.depth / 64)
            else:
                depth, width = part.memory
                lutram += lut_ram(8, 1, self.version)
                mapping = writable(depth, width, self.version)
                rows += width
                mux += part.width * (part.row_words - 1)
            bram18 += mapping.bram18
            lutram += mapping.lutram
            mux += mapping.mux
        found |= {"lutram": lutram, "logic": logic, "mux": mux, "words": words}
        return found | {"streamed": int(not self.sets), "rows": rows, "bram18": bram18}


# Coefficients of the features of one layer, see `hls.calibration`.
LUT_FIT = {
    **{"queue": 127.582, "products": 9.906, "adders": 0.872, "shifters": 36.466, "turns": 1.124, "selections": 1.02},
    **{"logic_adders": 0.587, "lutram": 0.926, "logic": 1.132, "mux": 0.47, "streamed": 105.145},
}
FF_FIT = {
    **{"products": 8.558, "adders": 1.42, "lanes": 243.367, "turns": 1.535, "selections": 1.498, "lutram": 1.332},
    **{"words": 0.511, "rows": 0.626},
}
# The shell: alone, for each engine, for each stream, for each word of a vector; flip-flops for each narrow output.
SHELL_LUT_FIT = (545.0, 142.6, 239.2, 2.0)
SHELL_FF_FIT = (593.0, 225.8, 254.8, 84.3)


def layers(spec: EngineClass, shape: ExpertShape, version: int, scales: Scales) -> tuple[Layer, Layer]:
    """fc1 and fc2."""
    bits, sets = spec.precision, 0 if spec.streamed else len(spec.experts)
    widths = (bits.weight_bits, bits.act_bits)
    d, h = shape.d_model, shape.d_hidden
    return (
        Layer(
            version,
            sets,
            d,
            h,
            spec.simd1,
            spec.pe1,
            *widths,
            True,
            scales.multiplier_bits,
            scales.span1,
            spec.products,
        ),
        Layer(
            version,
            sets,
            h,
            d,
            spec.simd2,
            spec.pe2,
            *widths,
            False,
            scales.multiplier_bits,
            scales.span2,
            spec.products,
        ),
    )


def model(spec: EngineClass, shape: ExpertShape, version: int, scales: Scales | None = None) -> Resources:
    """Modelled resources of an engine. scales: those of its experts, else what is expected of them."""
    both = layers(spec, shape, version, scales or Scales.expected(spec.precision, shape))
    features = [layer.features() for layer in both]
    width = spec.pe1 * spec.precision.act_bits  # of the hidden vector's queue
    return Resources(
        lut=round(sum(_linear(LUT_FIT, f) for f in features) + lut_ram(shape.d_hidden // spec.pe1, width, version)),
        ff=round(sum(_linear(FF_FIT, f) for f in features) + width),
        dsp=sum(layer.dsp for layer in both),
        bram18=sum(int(f["bram18"]) for f in features),
        tool="model",
    )


def _linear(fit: Mapping[str, float], features: Mapping[str, float]) -> float:
    return sum(coefficient * features[name] for name, coefficient in fit.items())


def shell(engines: Sequence[EngineClass], shape: ExpertShape, version: int) -> Resources:
    """Modelled resources of everything around the engines: the frame and each engine's lane."""
    return sum((lane(spec, shape, version) for spec in engines), frame(shape, version))


def frame(shape: ExpertShape, version: int) -> Resources:
    """What the shell has once, for any engines."""
    lut = SHELL_LUT_FIT[0] + SHELL_LUT_FIT[3] * (shape.d_model // 8) + fifo(64, version)[0]
    return Resources(lut=round(lut), ff=round(SHELL_FF_FIT[0]), dsp=0, bram18=0, tool="model")


def lane(spec: EngineClass, shape: ExpertShape, version: int) -> Resources:
    """What the shell has for an engine: the queues of its vectors and results and, where it streams, of weights."""
    words, load, streamed = shape.d_model // 8, 0, int(spec.streamed)
    small = lut_ram(16, 8, version) + lut_ram(16, 29, version)
    fifos = [fifo(2 ** (2 * words - 1).bit_length(), version)]
    if streamed:
        load = image_beats(spec, shape, Scales.expected(spec.precision, shape).lane_bits)
        small += lut_ram(16, 8, version)
        fifos.append(fifo(AHEAD_WORDS, version))
    fifos.append(fifo(queue_words(words, spec.cycles_per_vector(shape), load), version))
    return Resources(
        lut=round(small + sum(lut for lut, _ in fifos) + SHELL_LUT_FIT[1] + SHELL_LUT_FIT[2] * streamed),
        ff=round(SHELL_FF_FIT[1] + SHELL_FF_FIT[2] * streamed + SHELL_FF_FIT[3] * (spec.pe2 < 8)),
        dsp=0,
        bram18=sum(bram18 for _, bram18 in fifos),
        tool="model",
    )


def fifo(words: int, version: int) -> tuple[int, int]:
    """LUTs and RAMB18 of a wattbit_fifo of 64-bit words, which asks for block RAM beyond LUTRAM_WORDS."""
    if words > LUTRAM_WORDS:
        return 0, 2 * math.ceil(words / BRAM_WORDS)
    return lut_ram(words, 64, version), 0
