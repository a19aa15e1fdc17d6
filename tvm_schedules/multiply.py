"""How each kind of core multiplies a vector of codes with a vector of activations and sums the products.

The sums of a matrix row are int32 lanes. Cores without a dot product sum int16 products first, which must be widened
into the int32 sums before they can overflow: `limit` says after how many chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattbit.tvm_schedules.cores import Multiply
from wattbit.tvm_schedules.layout import Layout

ACTIVATION_MAX = 128  # |x| of an int8
Vector = Any  # a TensorIR expression of vector type


def intrinsic(name: str, dtype: str, *arguments: Any) -> Vector:
    """A call of an LLVM intrinsic."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *arguments, dtype=dtype)


@dataclass(frozen=True)
class Multiplier:
    """add(sums, codes, x) returns sums plus the products of one chunk; both vectors are int8xV.

    With `widen` the sums of `add` are int16 (None to begin with) and widen(int32 sums, int16 sums) takes them over.
    per_lane: the products of one chunk that meet in one int16 lane.
    """

    add: Callable[[Vector, Vector, Vector], Vector]
    widen: Callable[[Vector, Vector], Vector] | None = None
    per_lane: int = 0

    def limit(self, layout: Layout) -> int:
        """The chunks that int16 sums hold whatever the codes and activations."""
        code_max = 2**layout.weight_bits - 1 if layout.zero else 2 ** (layout.weight_bits - 1) - 1
        return 2**15 // (code_max * ACTIVATION_MAX * self.per_lane)


def _halves(vector: Vector, dtype: str) -> tuple[Vector, Vector]:
    return T.vectorlow(dtype, vector), T.vectorhigh(dtype, vector)


def _long_multiply(name: str) -> Callable[[Vector, Vector, Vector], Vector]:
    """ARM's long multiply: 8 products of bytes as int16; LLVM joins it with the sum into one instruction."""

    def add(sums: Vector, codes: Vector, x: Vector) -> Vector:
        for code, activation in zip(_halves(codes, "int8x8"), _halves(x, "int8x8"), strict=True):
            product = intrinsic(name, "int16x8", code, activation)
            sums = product if sums is None else sums + product
        return sums

    return add


def _smull_widen(sums: Vector, partial: Vector) -> Vector:
    return sums + intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", partial)


def _vmull_widen(sums: Vector, partial: Vector) -> Vector:
    return intrinsic("llvm.arm.neon.vpadals.v4i32.v8i16", "int32x4", sums, partial)


def _sdot(sums: Vector, codes: Vector, x: Vector) -> Vector:
    return intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", sums, codes, x)


def _vpdpbusd(sums: Vector, codes: Vector, x: Vector) -> Vector:
    """AVX512-VNNI: unsigned codes times signed activations, four products a lane."""
    return intrinsic("llvm.x86.avx512.vpdpbusd.512", "int32x16", sums, T.reinterpret("uint8x64", codes), x)


def _pmaddwd(name: str, lanes: int) -> Callable[[Vector, Vector, Vector], Vector]:
    """SSE2 and AVX2: bytes widened to int16, pairs of products summed as int32."""

    def add(sums: Vector, codes: Vector, x: Vector) -> Vector:
        half, wide = f"int8x{2 * lanes}", f"int16x{2 * lanes}"
        for code, activation in zip(_halves(codes, half), _halves(x, half), strict=True):
            sums = sums + intrinsic(name, f"int32x{lanes}", T.Cast(wide, code), T.Cast(wide, activation))
        return sums

    return add


MULTIPLIERS: dict[Multiply, Multiplier] = {
    "smull": Multiplier(_long_multiply("llvm.aarch64.neon.smull.v8i16"), _smull_widen, per_lane=2),
    "vmull": Multiplier(_long_multiply("llvm.arm.neon.vmulls.v8i16"), _vmull_widen, per_lane=2),
    "sdot": Multiplier(_sdot),
    "vpdpbusd": Multiplier(_vpdpbusd),
    "pmaddwd128": Multiplier(_pmaddwd("llvm.x86.sse2.pmadd.wd", 4)),
    "pmaddwd256": Multiplier(_pmaddwd("llvm.x86.avx2.pmadd.wd", 8)),
}
