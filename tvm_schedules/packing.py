"""Packs weight matrices, and whole experts into the file that the runner maps. NumPy only."""

import struct

import numpy as np
from numpy.typing import NDArray

from wattbit.arith import ExpertInts, Int8, Int32
from wattbit.errors import WattbitError
from wattbit.tvm_schedules.layout import LAYOUT_VERSION, QUAD, Layout, padded

MAGIC = b"wattbitW"
SECTION_ALIGN = 64
HIDDEN_OFFSET = 128  # the kernels multiply signed bytes: unsigned hidden activations are passed less 128
DEPTH_MAX = 2**15  # 8-bit codes times 8-bit activations then sum within int32

# wb_header of runner/expert.c, little-endian
HEADER = struct.Struct("<8s10I3i4I52x")

Bytes = NDArray[np.uint8]


def pack(weights: Int8, layout: Layout) -> Bytes:
    """The bytes of narrow-range weights [rows, depth] in `layout`; see wattbit.tvm_schedules.layout for their order."""
    rows, depth = weights.shape
    top = 2 ** (layout.weight_bits - 1) - 1
    if np.abs(weights.astype(np.int16)).max(initial=0) > top:
        raise WattbitError(f"weights must lie in the narrow range -{top}..{top} of {layout.weight_bits} bits")
    codes = np.zeros((layout.groups(rows) * layout.group_rows, layout.blocks(depth) * layout.block_depth), np.uint8)
    codes[:rows, :depth] = (weights.astype(np.int16) + layout.zero).astype(np.uint8)
    chunks = codes.reshape(_chunk_shape(layout, rows, depth)).transpose(0, 3, 1, 4, 2, 5)
    vectors = np.zeros((*chunks.shape[:3], layout.block_vectors, *chunks.shape[4:]), np.uint8)
    for field in layout.fields:
        bits = (chunks[:, :, :, field.chunk] >> field.shift) & (2**field.bits - 1)
        vectors[:, :, :, field.vector] |= bits << field.at
    return vectors.ravel()


def unpack(data: Bytes, layout: Layout, rows: int, depth: int) -> Int8:
    """The signed weights [rows, depth] that `pack` made `data` of."""
    groups, vectors, lanes, blocks, chunks, quad = _chunk_shape(layout, rows, depth)
    stored = data.reshape(groups, blocks, vectors, layout.block_vectors, lanes, quad)
    codes = np.zeros((groups, vectors, lanes, blocks, chunks, quad), np.uint8)
    for field in layout.fields:
        bits = (stored[:, :, :, field.vector] & field.mask) >> field.at
        codes[:, :, :, :, field.chunk] |= (bits << field.shift).transpose(0, 2, 3, 1, 4)
    matrix = codes.reshape(groups * vectors * lanes, -1)[:rows, :depth]
    if layout.zero == 0:
        return matrix.view(np.int8)
    weights: Int8 = (matrix.astype(np.int16) - layout.zero).astype(np.int8)
    return weights


def pack_scales(scales: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """Scales [rows, depth groups] in the order of the kernels: group of rows, depth group, row; padded with 0."""
    rows, depth_groups = scales.shape
    filled = np.zeros((layout.groups(rows) * layout.group_rows, depth_groups), np.float32)
    filled[:rows] = scales
    return filled.reshape(-1, layout.group_rows, depth_groups).transpose(0, 2, 1).ravel()


def _chunk_shape(layout: Layout, rows: int, depth: int) -> tuple[int, ...]:
    """Codes [rows, depth] as [group, row vector, row, block, chunk, code of the quad]."""
    vectors, lanes = layout.group_vectors, layout.vector_rows
    return (layout.groups(rows), vectors, lanes, layout.blocks(depth), layout.block_chunks, QUAD)


def expert_file(ints: ExpertInts, layout: Layout) -> bytes:
    """One expert as the runner maps it: a 128-byte header, then six sections, each from a multiple of 64 bytes.

    The sections are w1, bias1, multiplier1, w2, bias2, multiplier2: packed weights as bytes, the others int32 of one
    word a channel. A bias is added to a layer's int32 sums before requant; bias2 puts back HIDDEN_OFFSET.
    """
    shape = ints.shape
    if max(shape.d_model, shape.d_hidden) > DEPTH_MAX:
        raise WattbitError(f"{ints.expert}: {shape} is wider than {DEPTH_MAX}, where int32 sums end; split the expert")
    bias1: Int32 = np.zeros(shape.d_hidden, np.int32)
    bias2: Int32 = HIDDEN_OFFSET * ints.w2.sum(axis=1, dtype=np.int32)
    w1, w2 = pack(ints.w1, layout), pack(ints.w2, layout)
    header = HEADER.pack(
        MAGIC,
        LAYOUT_VERSION,
        layout.vector_bytes,
        layout.group_rows,
        layout.zero,
        ints.precision.weight_bits,
        ints.precision.act_bits,
        shape.d_model,
        shape.d_hidden,
        ints.shift1,
        ints.shift2,
        ints.x_exp,
        ints.h_exp,
        ints.y_exp,
        ints.expert.layer,
        ints.expert.expert,
        w1.nbytes,
        w2.nbytes,
    )
    sections = [header] + [
        np.ascontiguousarray(part, part.dtype.newbyteorder("<")).tobytes()
        for part in (w1, bias1, ints.m1.astype(np.int32), w2, bias2, ints.m2.astype(np.int32))
    ]
    return b"".join(section.ljust(padded(len(section), SECTION_ALIGN), b"\0") for section in sections)
