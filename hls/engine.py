"""RTL of one engine: its module, its memories' contents or its experts' images, and the sources that it needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattbit.arith import OUT_BITS, ExpertInts, Int8
from wattbit.errors import WattbitError
from wattbit.files import write_text
from wattbit.hls.engine_class import DSP_PORT_BITS, EngineClass
from wattbit.hls.finn_flow import lower, structure
from wattbit.hls.memory import (
    RequantFormat,
    expert_image,
    hexadecimal,
    image_beats,
    image_stride,
    requant_fields,
    weight_words,
    write_images,
    write_memory,
)
from wattbit.hls.rtllib import patched
from wattbit.plan import ExpertId, ExpertShape

RTL = Path(__file__).parent / "rtl"
OWN_SOURCES = (
    "wattbit_unpack.sv",
    "wattbit_pack.sv",
    "engine_products.sv",
    "engine_slots.sv",
    "engine_memory.sv",
    "engine_layer.sv",
    "engine_core.sv",
)


@dataclass(frozen=True)
class EngineRtl:
    """An engine's files. Its ports are those of `rtl/engine_core.sv`.

    module: name of its top module.
    sources: SystemVerilog in compile order; the module itself is last, the others are shared by all engines.
    memories: $readmemh files, which the RTL names without a folder. memory_bits: width of each, in the same order.
    spec, shape: what it was built from.
    dsp_version: 1 for DSP48E1 (Zynq-7000), 2 for DSP48E2 (Zynq UltraScale+).
    images: of a streamed engine, the file of its experts' images, set i at i * `stride` bytes. beats: 64-bit words of
    an image.
    """

    module: str
    sources: tuple[Path, ...]
    memories: tuple[Path, ...]
    spec: EngineClass
    shape: ExpertShape
    dsp_version: int
    images: Path | None = None
    beats: int = 0
    memory_bits: tuple[int, ...] = ()

    @property
    def stride(self) -> int:
        return image_stride(self.beats)

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

    def requant_format(self, multiplier_bits: int) -> RequantFormat:
        return RequantFormat(self.shift_min, multiplier_bits, (self.shift_max - self.shift_min).bit_length())


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
    """Widths of fc1 and fc2 for the experts of a class.

    The accumulators hold the sums of any weights of the class's shape, or where the DSP has not that many bits, those
    of its experts.
    """
    act_bits = spec.precision.act_bits
    first, second = spec.accumulators(ints[0].shape)
    if first > DSP_PORT_BITS[version]:
        first = sum_bits([e.w1 for e in ints], 2 ** (act_bits - 1))
    if second > DSP_PORT_BITS[version]:
        second = sum_bits([e.w2 for e in ints], 2**act_bits - 1)
    return (
        layer_widths(first, [e.shift1 for e in ints], act_bits, version),
        layer_widths(second, [e.shift2 for e in ints], OUT_BITS, version),
    )


def sum_bits(weights: list[Int8], input_max: int) -> int:
    """Bits of the largest sum that these very weights can reach; exported experts need 24 (`arith.float32_exact`)."""
    return int(max(np.abs(w.astype(np.int64)).sum(axis=1).max() for w in weights) * input_max).bit_length() + 1


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
    formats = (first.requant_format(multiplier_bits), second.requant_format(multiplier_bits))
    folder = out / spec.name
    images, beats = None, 0
    memories: dict[str, tuple[Path, int]] = {}
    if spec.streamed:
        images = folder / f"{spec.name}.images"
        beats = image_beats(spec, shape, (formats[0].bits, formats[1].bits))
        write_images(images, [expert_image(e, spec, formats) for e in ints], image_stride(beats))
    else:
        memories = _write_memories(ints, spec, formats, folder)

    parameters: dict[str, int | str] = {
        "VERSION": version,
        "STREAMED": int(spec.streamed),
        "SETS": 1 if spec.streamed else len(ints),
        "D": shape.d_model,
        "H": shape.d_hidden,
        "WEIGHT_BITS": bits,
        "ACT_BITS": spec.precision.act_bits,
        "PE1": spec.pe1,
        "SIMD1": spec.simd1,
        "PE2": spec.pe2,
        **dict(zip(("LANES1", "LANES2"), spec.requant_lanes(shape), strict=True)),
        "LOGIC": int(spec.products == "logic"),
        "ACC1_BITS": first.acc_bits,
        "ACC2_BITS": second.acc_bits,
        "SHIFT1_MIN": first.shift_min,
        "SHIFT1_MAX": first.shift_max,
        "SHIFT2_MIN": second.shift_min,
        "SHIFT2_MAX": second.shift_max,
        "MULTIPLIER_BITS": multiplier_bits,
        **{f"{name.upper()}_FILE": f'"{path.name}"' for name, (path, _) in memories.items()},
    }
    module = folder / f"{spec.name}.sv"
    write_text(module, _module(spec, parameters))
    sources = (*patched(out), *(RTL / name for name in OWN_SOURCES), module)
    paths, memory_bits = tuple(path for path, _ in memories.values()), tuple(width for _, width in memories.values())
    return EngineRtl(spec.name, sources, paths, spec, shape, version, images, beats, memory_bits)


def _write_memories(
    ints: list[ExpertInts], spec: EngineClass, formats: tuple[RequantFormat, RequantFormat], folder: Path
) -> dict[str, tuple[Path, int]]:
    """Write the $readmemh files of an engine whose weights are on the chip; each with the bits of its words."""
    bits = spec.precision.weight_bits
    first, second = formats
    lanes1, lanes2 = spec.requant_lanes(ints[0].shape)
    words = {
        "weight1": [weight_words(e.w1, spec.pe1, spec.simd1, bits) for e in ints],
        "weight2": [weight_words(e.w2, spec.pe2, spec.simd2, bits) for e in ints],
        "requant1": [hexadecimal(requant_fields(e.m1, e.shift1, first, lanes1), first.bits) for e in ints],
        "requant2": [hexadecimal(requant_fields(e.m2, e.shift2, second, lanes2), second.bits) for e in ints],
    }
    widths = (spec.pe1 * spec.simd1 * bits, spec.pe2 * spec.simd2 * bits, lanes1 * first.bits, lanes2 * second.bits)
    memories = {name: (folder / f"{spec.name}_{name}.hex", width) for name, width in zip(words, widths, strict=True)}
    for name, (path, _) in memories.items():
        write_memory(path, words[name])
    return memories


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
    ports, weights = "", ".w_tdata(64'd0), .w_tvalid(1'b0), .w_tready()"
    if spec.streamed:
        ports = "\n\tinput\tlogic [63:0]  w_tdata,\n\tinput\tlogic  w_tvalid,\n\toutput\tlogic  w_tready,"
        weights = ".w_tdata, .w_tvalid, .w_tready"
    return f"""// Generated by wattbit. Sets: {", ".join(f"{i} {expert}" for i, expert in enumerate(spec.experts))}.
module {spec.name} (
	input	logic  clk,
	input	logic  rst_n,
	input	logic [15:0]  s_set,
	input	logic  s_set_valid,
	output	logic  s_set_ready,{ports}
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
		{weights}, .m_tdata, .m_tvalid, .m_tready
	);
endmodule : {spec.name}
"""
