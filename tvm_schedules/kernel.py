"""The one GEMV template in TensorIR: y = codes . x - zero_sum for packed weights, any width, any core.

The loops over row groups and runs of blocks are TensorIR loops; everything within a run is written out by ordinary
Python loops as single assignments, so that sums stay in registers.
"""

from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func

from wattbit.tvm_schedules.cores import Core
from wattbit.tvm_schedules.layout import Layout, padded
from wattbit.tvm_schedules.multiply import MULTIPLIERS, Vector, intrinsic

RUN_CHUNKS_MAX = 16  # chunks written out in a row; more only fills the instruction cache


def gemv(name: str, rows: int, depth: int, weight_bits: int, core: Core) -> Any:
    """A PrimFunc (x int8 [depth padded], weights uint8 [matrix bytes], zero_sum int32 [1], y int32 [rows padded]).

    zero_sum is the layout's zero times the sum of x: y is then exactly the product of the signed weights and x. All
    buffers must start at a multiple of 64 bytes, and x must be 0 beyond `depth`.
    """
    layout = core.layout(weight_bits)
    R, lanes = layout.group_rows, layout.vector_bytes // 4
    blocks = layout.blocks(depth)
    run = _run_blocks(core, layout)
    runs = blocks.count(layout.block_chunks) // run
    run_bytes = run * R * layout.vector_bytes * sum(layout.vectors(layout.block_chunks))
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        x = T.arg("x", T.Buffer((padded(depth, layout.vector_bytes),), "int8"))
        weights = T.arg("weights", T.Buffer((layout.matrix_bytes(rows, depth),), "uint8"))
        zero_sum = T.arg("zero_sum", T.Buffer((1,), "int32"))
        y = T.arg("y", T.Buffer((padded(rows, R),), "int32"))
        with T.serial(0, padded(rows, R) // R) as group:
            # the default scope would ask TVM's runtime for memory
            sums = T.alloc_buffer((R * lanes,), "int32", scope="global")
            for r in range(R):
                T.buffer_store(sums, T.broadcast(T.int32(0), lanes), [T.ramp(T.int32(r * lanes), 1, lanes)])
            start = group * layout.group_bytes(depth)
            with T.serial(0, runs) as i:
                first_chunk = i * (run * layout.block_chunks)
                _add_run(core, layout, blocks[:run], x, weights, sums, start + i * run_bytes, first_chunk)
            rest = blocks[runs * run :]
            if rest:
                first_chunk = T.int32(runs * run * layout.block_chunks)
                _add_run(core, layout, rest, x, weights, sums, start + runs * run_bytes, first_chunk)
            for r in range(R):
                total = intrinsic("llvm.vector.reduce.add", "int32", sums.vload([r * lanes], f"int32x{lanes}"))
                T.buffer_store(y, total - zero_sum[0], [group * R + r])
    return builder.get()


def _run_blocks(core: Core, layout: Layout) -> int:
    """How many full blocks are written out in a row: as many as int16 sums can hold, within reason."""
    multiply = MULTIPLIERS[core.multiply]
    chunks = min(multiply.limit(layout), RUN_CHUNKS_MAX) if multiply.widen else 1
    return max(1, chunks // layout.block_chunks)


def _add_run(
    core: Core, layout: Layout, blocks: tuple[int, ...], x: Any, weights: Any, sums: Any, start: Any, first_chunk: Any
) -> None:
    """Add consecutive blocks, from byte `start` of the weights and `first_chunk` of x, to the sums of a group."""
    multiply = MULTIPLIERS[core.multiply]
    R, V = layout.group_rows, layout.vector_bytes
    limit = multiply.limit(layout) if multiply.widen else 0
    row_sums = [sums.vload([r * V // 4], f"int32x{V // 4}") for r in range(R)]
    partial: list[Vector] = [None] * R  # int16 sums, of cores that need them
    added = 0  # chunks in the run before the block
    for chunks in blocks:
        for r in range(R):
            planes = []
            for vectors in layout.vectors(chunks):
                planes.append([weights.vload([start + v * V], f"uint8x{V}") for v in range(vectors)])
                start = start + vectors * V
            for c in range(chunks):
                codes = T.bind(T.reinterpret(f"int8x{V}", _unpack(core, layout, planes, c)))
                activations = x.vload([(first_chunk + added + c) * V], f"int8x{V}")
                if multiply.widen is None:
                    row_sums[r] = T.bind(multiply.add(row_sums[r], codes, activations))
                    continue
                partial[r] = T.bind(multiply.add(partial[r], codes, activations))
                if (added + c + 1) % limit == 0:
                    row_sums[r], partial[r] = T.bind(multiply.widen(row_sums[r], partial[r])), None
        added += chunks
    for r in range(R):
        if partial[r] is not None and multiply.widen:
            row_sums[r] = multiply.widen(row_sums[r], partial[r])
        T.buffer_store(sums, row_sums[r], [T.ramp(T.int32(r * V // 4), 1, V // 4)])


def _unpack(core: Core, layout: Layout, planes: list[list[Vector]], chunk: int) -> Vector:
    """The codes uint8xV of a block's `chunk`, put together from the vectors of each plane."""
    V = layout.vector_bytes
    codes: Vector = None
    shift = 0  # where the plane's bits go
    for plane, vectors in zip(layout.planes, planes, strict=True):
        vector, place = divmod(chunk, 8 // plane)
        bits = vectors[vector]
        if place:
            bits = bits >> T.broadcast(T.uint8(plane * place), V)
        inserts = core.arch != "x86_64"  # what lies above the bits is overwritten by the next plane's
        if place < 8 // plane - 1 and not (inserts and plane != layout.planes[-1]):
            bits = bits & T.broadcast(T.uint8(2**plane - 1), V)
        codes = bits if codes is None else _insert(core, codes, bits, shift, V)
        shift += plane
    return codes


def _insert(core: Core, codes: Vector, bits: Vector, shift: int, V: int) -> Vector:
    """The codes with all bits from `shift` on replaced by `bits`; x86 wants the others to be 0."""
    if core.arch == "aarch64":
        return intrinsic(f"llvm.aarch64.neon.vsli.v{V}i8", f"uint8x{V}", codes, bits, T.int32(shift))
    shifts = T.broadcast(T.uint8(shift), V)
    if core.arch == "armv7":
        return intrinsic(f"llvm.arm.neon.vshiftins.v{V}i8", f"uint8x{V}", codes, bits, shifts)
    return codes | (bits << shifts)
