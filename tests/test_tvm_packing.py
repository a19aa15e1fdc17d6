"""The packed layout: packing loses nothing, wastes nothing where shapes fit, and pads with zeros."""

import numpy as np
import pytest

from tests.tvm_support import WIDTHS, random_expert
from wattbit.errors import WattbitError
from wattbit.plan import ExpertId, ExpertShape, Precision
from wattbit.tvm_schedules.cores import CORES
from wattbit.tvm_schedules.layout import LAYOUT_VERSION, Layout
from wattbit.tvm_schedules.packing import HEADER, MAGIC, expert_file, pack, pack_scales, unpack

SHAPES = [(64, 128), (128, 64), (33, 401), (5, 3), (1, 1)]


def random_weights(weight_bits: int, rows: int, depth: int) -> np.ndarray:
    top = 2 ** (weight_bits - 1) - 1
    return np.random.default_rng(depth).integers(-top, top + 1, (rows, depth)).astype(np.int8)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("weight_bits", WIDTHS)
def test_unpack_is_the_inverse_of_pack(core: str, weight_bits: int) -> None:
    layout = CORES[core].layout(weight_bits)
    for rows, depth in SHAPES:
        weights = random_weights(weight_bits, rows, depth)
        data = pack(weights, layout)
        assert data.nbytes == layout.matrix_bytes(rows, depth)
        assert np.array_equal(unpack(data, layout, rows, depth), weights)


@pytest.mark.parametrize("weight_bits", WIDTHS)
def test_a_matrix_of_whole_blocks_takes_its_bits_and_no_more(weight_bits: int) -> None:
    layout = CORES["cortex-a53"].layout(weight_bits)
    assert layout.matrix_bytes(64, 128) == 64 * 128 * weight_bits // 8


@pytest.mark.parametrize("weight_bits", WIDTHS)
def test_padding_is_code_zero(weight_bits: int) -> None:
    layout = CORES["cortex-a53"].layout(weight_bits)
    weights = random_weights(weight_bits, 6, 19)  # padded to [16, 32] at most
    whole = (
        unpack(pack(weights, layout), layout, layout.group_rows, layout.blocks(19) * layout.block_depth).astype(int)
        + layout.zero
    )
    assert np.array_equal(whole[:6, :19] - layout.zero, weights)
    assert not whole[6:].any() and not whole[:, 19:].any()


def test_bytes_of_a_block_are_where_the_layout_says() -> None:
    """3 bits, vectors of one row, groups of one vector: the example in layout.py."""
    layout = Layout(weight_bits=3, vector_bytes=4, group_vectors=1, zero=4)
    codes = 1 + np.arange(32) * 5 % 7  # chunk c holds codes 4c to 4c + 3
    c = codes.reshape(8, 4)
    first = c[0] | c[1] << 3 | c[6] >> 1 << 6
    second = c[2] | c[3] << 3 | (c[6] & 1) << 7 | c[7] >> 2 << 6
    third = c[4] | c[5] << 3 | (c[7] & 3) << 6
    packed = pack((codes - 4).astype(np.int8)[None], layout)
    assert packed.tolist() == [*first, *second, *third]


@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_every_bit_of_a_block_is_one_bit_of_one_code(weight_bits: int) -> None:
    layout = CORES["cortex-a53"].layout(weight_bits)
    places = [(f.vector, f.at + i) for f in layout.fields for i in range(f.bits)]
    bits = [(f.chunk, f.shift + i) for f in layout.fields for i in range(f.bits)]
    assert sorted(places) == [(v, i) for v in range(layout.block_vectors) for i in range(8)]
    assert sorted(bits) == [(c, i) for c in range(layout.block_chunks) for i in range(weight_bits)]
    assert all(f.at >= f.shift for f in layout.fields), "a field's place is a power of two above 1"


def test_weights_beyond_the_narrow_range_are_refused() -> None:
    with pytest.raises(WattbitError, match=r"weights must lie in the narrow range -1..1 of 2 bits"):
        pack(np.array([[-2]], np.int8), CORES["cortex-a53"].layout(2))


def test_scales_lie_as_the_kernels_read_them() -> None:
    layout = Layout(weight_bits=4, vector_bytes=8, group_vectors=2, zero=8)  # groups of 4 rows
    scales = np.arange(1, 11, dtype=np.float32).reshape(5, 2)
    assert pack_scales(scales, layout).tolist() == [1, 3, 5, 7, 2, 4, 6, 8, 9, 0, 0, 0, 10, 0, 0, 0]


def test_an_expert_file_is_a_header_and_aligned_sections() -> None:
    ints = random_expert(Precision(3), ExpertShape(37, 101), expert=ExpertId(2, 5))
    layout = CORES["cortex-a53"].layout(3)
    data = expert_file(ints, layout)
    magic, version, *fields = HEADER.unpack(data[: HEADER.size])
    assert (magic, version) == (MAGIC, LAYOUT_VERSION)
    assert fields[:9] == [16, 16, 4, 3, 8, 37, 101, ints.shift1, ints.shift2]
    assert fields[9:14] == [ints.x_exp, ints.h_exp, ints.y_exp, 2, 5]
    assert fields[14:] == [layout.matrix_bytes(101, 37), layout.matrix_bytes(37, 101)]
    assert len(data) % 64 == 0
    assert np.array_equal(unpack(np.frombuffer(data[128 : 128 + fields[14]], np.uint8), layout, 101, 37), ints.w1)
    assert data == expert_file(ints, layout)


def test_a_depth_beyond_int32_sums_is_refused() -> None:
    ints = random_expert(Precision(2), ExpertShape(1, 40000))
    with pytest.raises(WattbitError, match=r"L0E0: .*d_hidden=40000.* is wider than 32768"):
        expert_file(ints, CORES["cortex-a53"].layout(2))
