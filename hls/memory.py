"""What an engine's memories hold: words of $readmemh files on the chip, or the image of an expert in DDR.

An image is what a streamed engine reads for one expert, 64 bits a beat: the requant words of fc1, its weights, then the
same of fc2. Each part is its memory's words packed without gaps, word 0 in the low bits of beat 0, and padded with
zero words to whole rows of the memory; a row is the fewest words that fill whole beats.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wattbit.arith import ExpertInts, Int8, Int32
from wattbit.files import write_bytes, write_text
from wattbit.hls.engine_class import SLOTS, EngineClass
from wattbit.plan import ExpertShape

BEAT_BITS = 64
BURST_BYTES = 128  # images start at multiples of the longest burst, 16 beats
LANE_UNIT_BITS = 4  # lanes of a streamed requant word are a multiple, so that few words fill whole beats

Fields = NDArray[np.int64]
"""Words [N, L] of L fields each, field 0 lowest."""


@dataclass(frozen=True)
class RequantFormat:
    """Lanes of a layer's requant words: {shift - shift_min, multiplier}, `bits` used of them."""

    shift_min: int
    multiplier_bits: int
    shift_bits: int

    @property
    def bits(self) -> int:
        return self.multiplier_bits + self.shift_bits

    @property
    def streamed_bits(self) -> int:
        """Bits of a lane in an image."""
        return streamed_lane_bits(self.bits)


@dataclass(frozen=True)
class Part:
    """One memory's share of an image: `depth` words of `width` bits.

    A memory of a streamed engine has SLOTS * `rows` rows of `row_words` * `width` bits, `row_beats` beats.
    """

    depth: int
    width: int

    @property
    def row_words(self) -> int:
        return BEAT_BITS // math.gcd(BEAT_BITS, self.width)

    @property
    def row_beats(self) -> int:
        return self.row_words * self.width // BEAT_BITS

    @property
    def rows(self) -> int:
        return -(-self.depth // self.row_words)

    @property
    def beats(self) -> int:
        return self.rows * self.row_beats

    @property
    def memory(self) -> tuple[int, int]:
        """Depth and width of the memory that holds the slots."""
        return SLOTS * self.rows, self.row_beats * BEAT_BITS


def streamed_lane_bits(bits: int) -> int:
    """Bits of a requant lane in an image that uses `bits` of them."""
    return -(-bits // LANE_UNIT_BITS) * LANE_UNIT_BITS


def image_parts(spec: EngineClass, shape: ExpertShape, lane_bits: tuple[int, int]) -> tuple[Part, Part, Part, Part]:
    """Requant words and weights of fc1, then of fc2, given the bits that a requant lane of each layer uses."""
    weights, bits = shape.d_model * shape.d_hidden, spec.precision.weight_bits
    bits1, bits2 = (streamed_lane_bits(lane) for lane in lane_bits)
    lanes1, lanes2 = spec.requant_lanes(shape)
    return (
        Part(shape.d_hidden // lanes1, lanes1 * bits1),
        Part(weights // (spec.pe1 * spec.simd1), spec.pe1 * spec.simd1 * bits),
        Part(shape.d_model // lanes2, lanes2 * bits2),
        Part(weights // (spec.pe2 * spec.simd2), spec.pe2 * spec.simd2 * bits),
    )


def image_beats(spec: EngineClass, shape: ExpertShape, lane_bits: tuple[int, int]) -> int:
    """64-bit words of an expert's image: the clock cycles of loading it over a port that never waits."""
    return sum(part.beats for part in image_parts(spec, shape, lane_bits))


def image_stride(beats: int) -> int:
    """Bytes from the start of one image to the next."""
    return -(-beats * BEAT_BITS // 8 // BURST_BYTES) * BURST_BYTES


def weight_fields(weights: Int8, pe: int, simd: int) -> Fields:
    """Words [MH/PE * MW/SIMD] of a matrix [MH, MW] in the order in which FINN's MVAU reads them.

    A word holds PE rows of SIMD weights each, row 0 and weight 0 in the low bits; the words run over the columns first.
    """
    rows, columns = weights.shape
    folded = weights.reshape(rows // pe, pe, columns // simd, simd).transpose(0, 2, 1, 3)  # [NF, SF, PE, SIMD]
    return folded.reshape(-1, pe * simd).astype(np.int64)


def requant_fields(multiplier: Int32, shift: int, form: RequantFormat, lanes: int) -> Fields:
    """Words [C/lanes] of multipliers [C], lane 0 lowest."""
    values = multiplier.astype(np.int64) + ((shift - form.shift_min) << form.multiplier_bits)  # [C]
    return values.reshape(-1, lanes)


def hexadecimal(fields: Fields, bits: int) -> list[str]:
    """Words of fields of `bits` bits, two's complement."""
    packed = np.packbits(_bits(fields, bits).reshape(len(fields), -1), axis=1, bitorder="little")
    digits = -(-fields.shape[1] * bits // 4)
    return [row[::-1].tobytes().hex()[-digits:] for row in packed]


def weight_words(weights: Int8, pe: int, simd: int, bits: int) -> list[str]:
    """`weight_fields` as words of a $readmemh file."""
    return hexadecimal(weight_fields(weights, pe, simd), bits)


def write_memory(path: Path, sets: list[list[str]]) -> None:
    write_text(path, "\n".join(word for words in sets for word in words) + "\n")


def expert_image(ints: ExpertInts, spec: EngineClass, formats: tuple[RequantFormat, RequantFormat]) -> bytes:
    """The image of one expert, to be read by an engine of `spec` whose requant words have `formats`."""
    first, second = formats
    bits = spec.precision.weight_bits
    lanes1, lanes2 = spec.requant_lanes(ints.shape)
    fields = (
        (requant_fields(ints.m1, ints.shift1, first, lanes1), first.streamed_bits),
        (weight_fields(ints.w1, spec.pe1, spec.simd1), bits),
        (requant_fields(ints.m2, ints.shift2, second, lanes2), second.streamed_bits),
        (weight_fields(ints.w2, spec.pe2, spec.simd2), bits),
    )
    parts = image_parts(spec, ints.shape, (first.bits, second.bits))
    return b"".join(
        np.packbits(_bits(words, width).ravel(), bitorder="little").tobytes().ljust(part.beats * BEAT_BITS // 8, b"\0")
        for (words, width), part in zip(fields, parts, strict=True)
    )


def write_images(path: Path, images: list[bytes], stride: int) -> None:
    """Experts' images one after the other, each at a multiple of `stride` bytes."""
    write_bytes(path, b"".join(image.ljust(stride, b"\0") for image in images))


def _bits(fields: Fields, bits: int) -> NDArray[np.uint8]:
    """The low `bits` bits of every field, lowest first: [N, L, bits]."""
    return ((fields[:, :, None] >> np.arange(bits)) & 1).astype(np.uint8)
