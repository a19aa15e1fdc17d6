"""The packed layout: packing loses nothing, wastes nothing where shapes fit, and pads with zeros."""

import numpy as np
import pytest

from tests.tvm_support import WIDTHS, random_expert
from wattbit.errors import WattbitError
from wattbit.plan import ExpertId, ExpertShape, Precision
from wattbit.tvm_schedules.cores import CORES
from wattbit.tvm_schedules.layout import LAYOUT_VERSION, Layout
from wattbit.tvm_schedules.packing import HEADER, MAGIC, expert_file, pack, unpack

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
    assert sum(layout.planes) == weight_bits
    assert layout.matrix_bytes(64, 128) == 64 * 128 * weight_bits // 8


@pytest.mark.parametrize("weight_bits", WIDTHS)
def test_padding_is_code_zero(weight_bits: int) -> None:
    layout = CORES["cortex-a53"].layout(weight_bits)
    weights = random_weights(weight_bits, 6, 19)  # padded to [8, 32]
    whole = unpack(pack(weights, layout), layout, 8, 32).astype(int) + layout.zero
    assert np.array_equal(whole[:6, :19] - layout.zero, weights)
    assert not whole[6:].any() and not whole[:, 19:].any()


def test_bytes_of_a_block_are_where_the_layout_says() -> None:
    """3 bits, vectors of 2 bytes, groups of 1: planes of 2 bits (2 vectors) and 1 bit (1 vector) for 8 chunks."""
    layout = Layout(weight_bits=3, vector_bytes=2, group_rows=1, zero=4)
    codes = np.arange(16) % 8  # chunk c holds codes 2c and 2c + 1
    low, high = codes & 3, codes >> 2
    expected = [sum(low[2 * (4 * v + q) + i] << (2 * q) for q in range(4)) for v in (0, 1) for i in (0, 1)]
    expected += [sum(high[2 * q + i] << q for q in range(8)) for i in (0, 1)]
    assert pack((codes - 4).astype(np.int8)[None], layout).tolist() == expected


def test_an_expert_file_is_a_header_and_aligned_sections() -> None:
    ints = random_expert(Precision(3), ExpertShape(37, 101), expert=ExpertId(2, 5))
    layout = CORES["cortex-a53"].layout(3)
    data = expert_file(ints, layout)
    magic, version, *fields = HEADER.unpack(data[: HEADER.size])
    assert (magic, version) == (MAGIC, LAYOUT_VERSION)
    assert fields[:9] == [16, 4, 4, 3, 8, 37, 101, ints.shift1, ints.shift2]
    assert fields[9:14] == [ints.x_exp, ints.h_exp, ints.y_exp, 2, 5]
    assert fields[14:] == [layout.matrix_bytes(101, 37), layout.matrix_bytes(37, 101)]
    assert len(data) % 64 == 0
    assert np.array_equal(unpack(np.frombuffer(data[128 : 128 + fields[14]], np.uint8), layout, 101, 37), ints.w1)
    assert data == expert_file(ints, layout)


def test_a_depth_beyond_int32_sums_is_refused() -> None:
    ints = random_expert(Precision(2), ExpertShape(1, 40000))
    with pytest.raises(WattbitError, match=r"L0E0: .*d_hidden=40000.* is wider than 32768"):
        expert_file(ints, CORES["cortex-a53"].layout(2))
