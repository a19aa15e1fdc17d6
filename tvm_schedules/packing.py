"""Packs weight matrices, and whole experts into the file that the runner maps. NumPy only."""

import struct

import numpy as np
from numpy.typing import NDArray

from wattbit.arith import ExpertInts, Int8, Int32
from wattbit.errors import WattbitError
from wattbit.tvm_schedules.layout import LAYOUT_VERSION, Layout, padded

MAGIC = b"wattbitW"
SECTION_ALIGN = 64
HIDDEN_OFFSET = 128  # the kernels multiply signed bytes: unsigned hidden activations are passed less 128
DEPTH_MAX = 2**15  # 8-bit codes times 8-bit activations then sum within int32

# wb_header of runner/expert.c, little-endian
HEADER = struct.Struct("<8s10I3i4I52x")

Bytes = NDArray[np.uint8]


def pack(weights: Int8, layout: Layout) -> Bytes:
    """The bytes of signed weights [rows, depth] in `layout`; see wattbit.tvm_schedules.layout for their order."""
    rows, depth = weights.shape
    groups, V = padded(rows, layout.group_rows) // layout.group_rows, layout.vector_bytes
    codes = np.zeros((groups * layout.group_rows, padded(depth, V)), np.uint8)
    codes[:rows, :depth] = (weights.astype(np.int16) + layout.zero).astype(np.uint8)
    chunks = codes.reshape(groups, layout.group_rows, -1, V)  # [groups, R, chunks, V]
    blocks = []
    first = 0
    for count in layout.blocks(depth):
        blocks.append(_pack_block(chunks[:, :, first : first + count], layout).reshape(groups, -1))
        first += count
    return np.concatenate(blocks, axis=1).ravel()


def unpack(data: Bytes, layout: Layout, rows: int, depth: int) -> Int8:
    """The signed weights [rows, depth] that `pack` made `data` of."""
    groups, V = padded(rows, layout.group_rows) // layout.group_rows, layout.vector_bytes
    streams = data.reshape(groups, -1)
    codes = []
    start = 0
    for count in layout.blocks(depth):
        vectors = sum(layout.vectors(count))
        end = start + layout.group_rows * vectors * V
        codes.append(_unpack_block(streams[:, start:end].reshape(groups, layout.group_rows, vectors, V), count, layout))
        start = end
    matrix = np.concatenate(codes, axis=2).reshape(groups * layout.group_rows, -1)[:rows, :depth]
    if layout.zero == 0:
        return matrix.view(np.int8)
    weights: Int8 = (matrix.astype(np.int16) - layout.zero).astype(np.int8)
    return weights


def _pack_block(chunks: Bytes, layout: Layout) -> Bytes:
    """The vectors [groups, R, vectors, V] of one block's chunks [groups, R, chunks, V]."""
    vectors = []
    shift = 0
    for plane, count in zip(layout.planes, layout.vectors(chunks.shape[2]), strict=True):
        filled = np.zeros((*chunks.shape[:2], count, chunks.shape[3]), np.uint8)
        for i in range(chunks.shape[2]):
            vector, place = divmod(i, 8 // plane)
            filled[:, :, vector] |= ((chunks[:, :, i] >> shift) & (2**plane - 1)) << (plane * place)
        vectors.append(filled)
        shift += plane
    return np.concatenate(vectors, axis=2)


def _unpack_block(vectors: Bytes, chunks: int, layout: Layout) -> Bytes:
    """The codes [groups, R, chunks, V] of one block's vectors [groups, R, vectors, V]."""
    codes = np.zeros((*vectors.shape[:2], chunks, vectors.shape[3]), np.uint8)
    first = shift = 0
    for plane, count in zip(layout.planes, layout.vectors(chunks), strict=True):
        for i in range(chunks):
            vector, place = divmod(i, 8 // plane)
            codes[:, :, i] |= ((vectors[:, :, first + vector] >> (plane * place)) & (2**plane - 1)) << shift
        first += count
        shift += plane
    return codes


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
