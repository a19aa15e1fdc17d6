"""How codes come out of packed vectors: the operations for each kind of core."""

from tvm.script import tirx as T

from wattbit.tvm_schedules.layout import Layout
from wattbit.tvm_schedules.multiply import Vector, intrinsic


def codes_in_place(layout: Layout, vectors: list[Vector], chunk: int) -> list[tuple[int, Vector]]:
    """The fields of a chunk's codes where they lie, with the power of two by which they are too large there."""
    masks = {f: T.broadcast(T.uint8(f.mask), layout.vector_bytes) for f in layout.fields if f.chunk == chunk}
    return [
        (f.at - f.shift, vectors[f.vector] & mask if f.bits < 8 else vectors[f.vector]) for f, mask in masks.items()
    ]


def codes_joined(arch: str, layout: Layout, vectors: list[Vector], chunk: int) -> Vector:
    """The codes uint8xV of a block's chunk, put together from its fields."""
    return (_or_fields if arch == "x86_64" else _insert_fields)(arch, layout, vectors, chunk)


def _or_fields(arch: str, layout: Layout, vectors: list[Vector], chunk: int) -> Vector:
    """Each field is shifted to its place and cleared around, then all are or-ed."""
    codes: Vector = None
    for field in (field for field in layout.fields if field.chunk == chunk):
        bits, shift = vectors[field.vector], field.at - field.shift
        if shift:
            bits = bits >> T.broadcast(T.uint8(shift), layout.vector_bytes)
        if field.bits < 8:
            bits = bits & T.broadcast(T.uint8(field.mask >> shift), layout.vector_bytes)
        codes = bits if codes is None else codes | bits
    return codes


def _insert_fields(arch: str, layout: Layout, vectors: list[Vector], chunk: int) -> Vector:
    """ARM's shift and insert: every field goes, from the top of the byte on, below the one before."""
    V = layout.vector_bytes
    fields = [field for field in layout.fields if field.chunk == chunk]
    if len(fields) == 1:
        return _or_fields(arch, layout, vectors, chunk)
    codes: Vector = None
    for field in reversed(fields):
        bits, below = vectors[field.vector], 8 - field.at - field.bits
        if below:
            bits = bits << T.broadcast(T.uint8(below), V)
        codes = bits if codes is None else _insert_right(arch, V, bits, codes, field.bits)
    return codes >> T.broadcast(T.uint8(8 - layout.weight_bits), V)


def _insert_right(arch: str, V: int, high: Vector, low: Vector, count: int) -> Vector:
    """The highest `count` bits of `high`, and below them those of `low`."""
    if arch == "aarch64":
        return intrinsic(f"llvm.aarch64.neon.vsri.v{V}i8", f"uint8x{V}", high, low, T.int32(count))
    shifts = T.broadcast(T.uint8(256 - count), V)  # to the right
    return intrinsic(f"llvm.arm.neon.vshiftins.v{V}i8", f"uint8x{V}", high, low, shifts)
