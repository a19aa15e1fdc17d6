"""RTL of one engine: its module, its memories' contents and the sources that it needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattbit.arith import OUT_BITS, ExpertInts
from wattbit.errors import WattbitError
from wattbit.files import write_text
from wattbit.hls.engine_class import EngineClass
from wattbit.hls.finn_flow import lower, structure
from wattbit.hls.memory import requant_words, weight_words, write_memory
from wattbit.hls.rtllib import patched
from wattbit.plan import ExpertId, ExpertShape

RTL = Path(__file__).parent / "rtl"
OWN_SOURCES = ("engine_memory.sv", "engine_layer.sv", "engine_core.sv")
DSP_PORT_BITS = {1: 25, 2: 27}  # the widest multiplier operand of DSP48E1 and DSP48E2


@dataclass(frozen=True)
class EngineRtl:
    """An engine's files. Its ports are those of `rtl/engine_core.sv`.

    module: name of its top module.
    sources: SystemVerilog in compile order; the module itself is last, the others are shared by all engines.
    memories: $readmemh files, which the RTL names without a folder.
    spec, shape: what it was built from.
    dsp_version: 1 for DSP48E1 (Zynq-7000), 2 for DSP48E2 (Zynq UltraScale+).
    """

    module: str
    sources: tuple[Path, ...]
    memories: tuple[Path, ...]
    spec: EngineClass
    shape: ExpertShape
    dsp_version: int

    @property
    def simd(self) -> int:
        """Elements of a beat of `s_tdata`."""
        return self.spec.simd1

    @property
    def pe(self) -> int:
        """Elements of a beat of `m_tdata`."""
        return self.spec.pe2


@dataclass(frozen=True)
class LayerWidths:
    """Widths that hold for every expert of a class in one layer."""

    acc_bits: int
    shift_min: int
    shift_max: int


def dsp_version(part: str) -> int:
    """DSP48 generation of a part: 1 on 7 series, 2 on UltraScale+."""
    if part.startswith("xc7"):
        return 1
    if part.startswith(("xczu", "xck")):
        return 2
    raise WattbitError(f"part {part} is unknown; use a Zynq-7000 (xc7z...) or a Zynq UltraScale+ (xczu..., xck...)")


def layer_widths(acc_bits: int, shifts: list[int], out_bits: int, version: int) -> LayerWidths:
    """Widths of a layer whose sums need `acc_bits` and whose experts have `shifts`.

    The window has at least two shifts, and the accumulator is widened until the highest result bit of the largest
    shift lies inside the product, both of which `requant_decoupled` needs. Raises WattbitError when the accumulator
    exceeds the DSP's operand: `requant_decoupled` would drop its low bits.
    """
    shift_min = min(shifts)
    shift_max = max(*shifts, shift_min + 1)
    needed = acc_bits
    while needed + (25 if needed <= 18 else 18) <= shift_max + out_bits:
        needed += 1
    if needed > DSP_PORT_BITS[version]:
        raise WattbitError(
            f"the sums of a layer need {needed} bits, the DSP takes {DSP_PORT_BITS[version]}; "
            "use fewer bits or a narrower layer"
        )
    return LayerWidths(needed, shift_min, shift_max)


def widths(ints: list[ExpertInts], spec: EngineClass, version: int) -> tuple[LayerWidths, LayerWidths]:
    """Widths of fc1 and fc2 for the experts of a class."""
    first, second = spec.accumulators(ints[0].shape)
    return (
        layer_widths(first, [e.shift1 for e in ints], spec.precision.act_bits, version),
        layer_widths(second, [e.shift2 for e in ints], OUT_BITS, version),
    )


def build_engine(
    onnx: Mapping[ExpertId, Path], ints: Mapping[ExpertId, ExpertInts], spec: EngineClass, out: Path, part: str
) -> EngineRtl:
    """The engine of `spec`, its first expert taken through FINN, the others held to the same graph.

    onnx, ints: QONNX files and integers of at least the experts of `spec`. Writes to `out`/MODULE, and the patched
    library to `out`, where all engines share it. Raises WattbitError when FINN's layers are not what `engine_core`
    instantiates, or an expert's graph is another.
    """
    missing = [expert for expert in spec.experts if expert not in onnx or expert not in ints]
    if missing:
        raise WattbitError(f"{missing[0]} of {spec.name} is not exported; run `wattbit export` for this allocation")
    engine = write_engine([ints[expert] for expert in spec.experts], spec, out, part)
    first = spec.experts[0]
    expected = structure(onnx[first])
    for expert in spec.experts[1:]:
        if structure(onnx[expert]) != expected:
            raise WattbitError(f"{onnx[expert].name} is another graph than {onnx[first].name}; export both again")
    representative = ints[first]
    layers = lower(onnx[first], representative, spec, part)
    class_widths = widths([ints[expert] for expert in spec.experts], spec, engine.dsp_version)
    for name, layer, width, (weights, signed) in zip(
        ("fc1", "fc2"), layers, class_widths, ((representative.w1, 1), (representative.w2, 0)), strict=True
    ):
        pe, simd = (spec.pe1, spec.simd1) if signed else (spec.pe2, spec.simd2)
        bits = spec.precision.weight_bits
        own = {
            **{"MH": weights.shape[0], "MW": weights.shape[1], "PE": pe, "SIMD": simd, "WEIGHT_WIDTH": bits},
            **{"ACTIVATION_WIDTH": spec.precision.act_bits, "SIGNED_ACTIVATIONS": signed, "NARROW_WEIGHTS": 1},
            **{"VERSION": engine.dsp_version, "IS_MVU": 1, "PUMPED_COMPUTE": 0},
        }
        other = {key: layer.parameters.get(key) for key in own}
        if other != own or layer.parameters["ACCU_WIDTH"] > width.acc_bits:
            raise WattbitError(f"{spec.name} {name}: FINN's layer {layer.parameters} is not the engine's {own}")
        words = weight_words(weights, pe, simd, bits)
        if [int(word, 16) for word in words] != [int(word, 16) for word in layer.memory]:
            raise WattbitError(f"{spec.name} {name}: FINN packs the weights of {first} in another way")
    return engine


def write_engine(ints: list[ExpertInts], spec: EngineClass, out: Path, part: str) -> EngineRtl:
    """Write the engine of `spec` for its experts' integers, in the order of its sets, to `out`/MODULE."""
    _check(ints, spec)
    version = dsp_version(part)
    shape, bits = ints[0].shape, spec.precision.weight_bits
    first, second = widths(ints, spec, version)
    multiplier_bits = max(int(np.max([e.m1.max() for e in ints] + [e.m2.max() for e in ints])).bit_length(), 1)
    folder = out / spec.name
    memories = {name: folder / f"{spec.name}_{name}.hex" for name in ("weight1", "weight2", "requant1", "requant2")}
    write_memory(memories["weight1"], [weight_words(e.w1, spec.pe1, spec.simd1, bits) for e in ints])
    write_memory(memories["weight2"], [weight_words(e.w2, spec.pe2, spec.simd2, bits) for e in ints])
    for name, layer, pe, scales in (
        ("requant1", first, spec.pe1, [(e.m1, e.shift1) for e in ints]),
        ("requant2", second, spec.pe2, [(e.m2, e.shift2) for e in ints]),
    ):
        lane_bits = multiplier_bits + (layer.shift_max - layer.shift_min).bit_length()
        words = [requant_words(m, shift, layer.shift_min, pe, multiplier_bits, lane_bits) for m, shift in scales]
        write_memory(memories[name], words)

    parameters: dict[str, int | str] = {
        "VERSION": version,
        "SETS": len(ints),
        "D": shape.d_model,
        "H": shape.d_hidden,
        "WEIGHT_BITS": bits,
        "ACT_BITS": spec.precision.act_bits,
        "PE1": spec.pe1,
        "SIMD1": spec.simd1,
        "PE2": spec.pe2,
        "ACC1_BITS": first.acc_bits,
        "ACC2_BITS": second.acc_bits,
        "SHIFT1_MIN": first.shift_min,
        "SHIFT1_MAX": first.shift_max,
        "SHIFT2_MIN": second.shift_min,
        "SHIFT2_MAX": second.shift_max,
        "MULTIPLIER_BITS": multiplier_bits,
        **{f"{name.upper()}_FILE": f'"{path.name}"' for name, path in memories.items()},
    }
    module = folder / f"{spec.name}.sv"
    write_text(module, _module(spec, parameters))
    sources = (*patched(out), *(RTL / name for name in OWN_SOURCES), module)
    return EngineRtl(spec.name, sources, tuple(memories.values()), spec, shape, version)


def _check(ints: list[ExpertInts], spec: EngineClass) -> None:
    for expected, expert in zip(spec.experts, ints, strict=True):
        if expert.expert != expected or expert.precision != spec.precision or expert.shape != ints[0].shape:
            raise WattbitError(
                f"{spec.name} expects {expected} at {spec.precision}, got {expert.expert} at {expert.precision}; "
                "run `wattbit export` for this allocation"
            )
    for name, value in (("pe1", spec.pe1), ("simd1", spec.simd1), ("pe2", spec.pe2)):
        width = ints[0].shape.d_hidden if name == "pe1" else ints[0].shape.d_model
        if width % value:
            raise WattbitError(f"{spec.name}: {name} {value} does not divide the width {width}")


def _module(spec: EngineClass, parameters: dict[str, int | str]) -> str:
    values = ",\n".join(f"\t\t.{name}({value})" for name, value in parameters.items())
    return f"""// Generated by wattbit. Sets: {", ".join(f"{i} {expert}" for i, expert in enumerate(spec.experts))}.
module {spec.name} (
	input	logic  clk,
	input	logic  rst_n,
	input	logic [7:0]  s_set,
	input	logic  s_set_valid,
	output	logic  s_set_ready,
	input	logic [{spec.simd1 * 8 - 1}:0]  s_tdata,
	input	logic  s_tvalid,
	output	logic  s_tready,
	output	logic [{spec.pe2 * 8 - 1}:0]  m_tdata,
	output	logic  m_tvalid,
	input	logic  m_tready
);
	engine_core #(
{values}
	) core (
		.clk, .rst_n, .s_set, .s_set_valid, .s_set_ready, .s_tdata, .s_tvalid, .s_tready,
		.m_tdata, .m_tvalid, .m_tready
	);
endmodule : {spec.name}
"""
