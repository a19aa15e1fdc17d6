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
    """ARM's shift and insert: each field goes above the one before; what lies above the last is cleared."""
    V = layout.vector_bytes
    fields = [field for field in layout.fields if field.chunk == chunk]
    codes: Vector = None
    for field in fields:
        bits = vectors[field.vector]
        if field.at:
            bits = bits >> T.broadcast(T.uint8(field.at), V)
        if codes is None:
            codes = bits
        elif arch == "aarch64":
            codes = intrinsic(f"llvm.aarch64.neon.vsli.v{V}i8", f"uint8x{V}", codes, bits, T.int32(field.shift))
        else:
            shifts = T.broadcast(T.uint8(field.shift), V)
            codes = intrinsic(f"llvm.arm.neon.vshiftins.v{V}i8", f"uint8x{V}", codes, bits, shifts)
    if fields[-1].at + fields[-1].bits == 8:  # nothing lies above it
        return codes
    return codes & T.broadcast(T.uint8(2**layout.weight_bits - 1), V)
