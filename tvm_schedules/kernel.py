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
from wattbit.tvm_schedules.multiply import Vector, intrinsic, multiplier

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
    multiply = multiplier(core.multiply)
    chunks = min(multiply.limit(layout), RUN_CHUNKS_MAX) if multiply.widen else 1
    return max(1, chunks // layout.block_chunks)


def _add_run(
    core: Core, layout: Layout, blocks: tuple[int, ...], x: Any, weights: Any, sums: Any, start: Any, first_chunk: Any
) -> None:
    """Add consecutive blocks, from byte `start` of the weights and `first_chunk` of x, to the sums of a group."""
    multiply = multiplier(core.multiply)
    R, V = layout.group_rows, layout.vector_bytes
    lanes = V // 4
    row_sums = [sums.vload([r * lanes], f"int32x{lanes}") for r in range(R)]
    partial: list[Vector | None] = [None] * R
    count = 0  # chunks in the int16 sums
    for chunks in blocks:
        counted = count
        for r in range(R):
            count = counted
            planes = []
            for vectors in layout.vectors(chunks):
                planes.append([weights.vload([start + v * V], f"uint8x{V}") for v in range(vectors)])
                start = start + vectors * V
            for c in range(chunks):
                codes = T.bind(T.reinterpret(f"int8x{V}", _unpack(core, layout, planes, c)))
                activations = x.vload([(first_chunk + c) * V], f"int8x{V}")
                if multiply.widen is None:
                    row_sums[r] = T.bind(multiply.add(row_sums[r], codes, activations))
                    continue
                partial[r] = T.bind(multiply.add(partial[r], codes, activations))
                count += 1
                if count == multiply.limit(layout):
                    row_sums[r], partial[r], count = T.bind(multiply.widen(row_sums[r], partial[r])), None, 0
        first_chunk = first_chunk + chunks
    for r in range(R):
        if multiply.widen and partial[r] is not None:
            row_sums[r] = multiply.widen(row_sums[r], partial[r])
        T.buffer_store(sums, row_sums[r], [T.ramp(T.int32(r * lanes), 1, lanes)])


def _unpack(core: Core, layout: Layout, planes: list[list[Vector]], chunk: int) -> Vector:
    """The codes uint8xV of a block's `chunk`, put together from the vectors of each plane."""
    V = layout.vector_bytes
    codes: Vector = None
    shift = 0  # where the plane's bits go
    for plane, vectors in zip(layout.planes, planes, strict=True):
        vector, place = divmod(chunk, 8 // plane)
        last_place = place == 8 // plane - 1
        bits = vectors[vector]
        if core.arch == "aarch64":
            # shift-left-and-insert keeps the bits below `shift` and overwrites all above: only the last plane is cut
            bits = bits >> T.broadcast(T.uint8(plane * place), V) if place else bits
            if plane == layout.planes[-1] and not last_place:
                bits = bits & T.broadcast(T.uint8(2**plane - 1), V)
            name = f"llvm.aarch64.neon.vsli.v{V}i8"
            codes = bits if codes is None else intrinsic(name, f"uint8x{V}", codes, bits, T.int32(shift))
        else:
            move = plane * place - shift
            if move > 0:
                bits = bits >> T.broadcast(T.uint8(move), V)
            elif move < 0:
                bits = bits << T.broadcast(T.uint8(-move), V)
            if plane < 8 and not (last_place and shift == 0):
                bits = bits & T.broadcast(T.uint8((2**plane - 1) << shift), V)
            codes = bits if codes is None else codes | bits
        shift += plane
    return codes
