"""How each kind of core multiplies a vector of codes with a vector of activations and sums the products.

Both vectors are chunks as in wattbit.tvm_schedules.layout: quads of bytes, one row each. Cores with a dot product sum a
quad into the int32 lane of its row. Others sum int16 products first, which must be widened into int32 sums before
they can overflow: `limit` says after how many chunks. Where the products of a quad stay apart, a row vector has two
sums, one for the quads in its lower half and one for those above, with two lanes a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattbit.tvm_schedules.cores import Multiply
from wattbit.tvm_schedules.layout import Layout

ACTIVATION_MAX = 128  # |x| of an int8
Vector = Any  # a TensorIR expression of vector type
Sums = list[Vector]  # one vector for each part of a Multiplier; None where nothing has been added


def intrinsic(name: str, dtype: str, *arguments: Any) -> Vector:
    """A call of an LLVM intrinsic."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *arguments, dtype=dtype)


@dataclass(frozen=True)
class Multiplier:
    """add(sums, codes, x) returns the sums plus the products of one chunk; both vectors are int8xV.

    parts: the vectors that sums consist of. With `widen` the sums of `add` are int16 (None to begin with) and
    widen(int32 sum, int16 sum) takes a part over. per_lane: the products of one chunk that meet in one int16 lane.
    in_place: whether codes may be bytes up to 255, that is, be multiplied where they lie, as multiples of themselves.
    """

    add: Callable[[Sums, Vector, Vector, bool], Sums]
    widen: Callable[[Vector, Vector], Vector] | None = None
    per_lane: int = 0
    parts: int = 1
    in_place: bool = False

    def limit(self, layout: Layout) -> int:
        """The chunks that int16 sums hold whatever the codes and activations."""
        code_max = 2**layout.weight_bits - 1 if layout.zero else 2 ** (layout.weight_bits - 1) - 1
        return 2**15 // (code_max * ACTIVATION_MAX * self.per_lane)


def plus(sums: Vector, products: Vector) -> Vector:
    return products if sums is None else sums + products


def _halves(vector: Vector, dtype: str) -> tuple[Vector, Vector]:
    return T.vectorlow(dtype, vector), T.vectorhigh(dtype, vector)


def _long_multiply(name: str) -> Callable[[Sums, Vector, Vector, bool], Sums]:
    """ARM's long multiply: 8 products of bytes as int16; LLVM joins it with the sum into one instruction."""

    def add(sums: Sums, codes: Vector, x: Vector, signed: bool) -> Sums:
        parts = zip(sums, _halves(codes, "int8x8"), _halves(x, "int8x8"), strict=True)
        return [plus(part, intrinsic(name, "int16x8", code, activation)) for part, code, activation in parts]

    return add


def _smull_widen(sums: Vector, partial: Vector) -> Vector:
    return sums + intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", partial)


def _vmull_widen(sums: Vector, partial: Vector) -> Vector:
    return intrinsic("llvm.arm.neon.vpadals.v4i32.v8i16", "int32x4", sums, partial)


def _sdot(sums: Sums, codes: Vector, x: Vector, signed: bool) -> Sums:
    return [intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", sums[0], codes, x)]


def _vpdpbusd(sums: Sums, codes: Vector, x: Vector, signed: bool) -> Sums:
    """AVX512-VNNI: unsigned codes times signed activations, four products a lane."""
    return [intrinsic("llvm.x86.avx512.vpdpbusd.512", "int32x16", sums[0], T.reinterpret("uint8x64", codes), x)]


def _maddubs(sums: Sums, codes: Vector, x: Vector, signed: bool) -> Sums:
    """AVX2: unsigned times signed bytes, pairs of products as int16. Signed codes lend their sign to |x|."""
    if signed:
        codes, x = (
            intrinsic("llvm.abs", "int8x32", x, T.bool(False)),
            intrinsic("llvm.x86.avx2.psign.b", "int8x32", codes, x),
        )
    return [plus(sums[0], intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16x16", T.reinterpret("uint8x32", codes), x))]


def _maddubs_widen(sums: Vector, partial: Vector) -> Vector:
    return sums + intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", partial, T.broadcast(T.int16(1), 16))


def _pmaddwd(sums: Sums, codes: Vector, x: Vector, signed: bool) -> Sums:
    """SSE2: bytes widened to int16, pairs of products summed as int32."""
    parts = zip(sums, _halves(codes, "int8x8"), _halves(x, "int8x8"), strict=True)
    return [
        part + intrinsic("llvm.x86.sse2.pmadd.wd", "int32x4", T.Cast("int16x8", code), T.Cast("int16x8", activation))
        for part, code, activation in parts
    ]


MULTIPLIERS: dict[Multiply, Multiplier] = {
    "smull": Multiplier(_long_multiply("llvm.aarch64.neon.smull.v8i16"), _smull_widen, per_lane=1, parts=2),
    "vmull": Multiplier(_long_multiply("llvm.arm.neon.vmulls.v8i16"), _vmull_widen, per_lane=1, parts=2),
    "sdot": Multiplier(_sdot),
    "vpdpbusd": Multiplier(_vpdpbusd, in_place=True),
    "maddubs": Multiplier(_maddubs, _maddubs_widen, per_lane=2),
    "pmaddwd": Multiplier(_pmaddwd, parts=2),
}
