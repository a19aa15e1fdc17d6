"""The GPU's layout of packed words: what goes in comes out, and a word is what the kernels take it for."""

import numpy as np
import pytest

from wattbit.errors import WattbitError
from wattbit.tvm_schedules.gpu.packing import GPU_WIDTHS, ROW_TILE, GpuLayout, pack, unpack


@pytest.mark.parametrize("bits", GPU_WIDTHS)
@pytest.mark.parametrize(
    ("rows", "depth", "group"), [(1, 1, 0), (21, 100, 0), (16, 1024, 0), (3, 1408, 0), (5, 257, 32), (17, 768, 128)]
)
def test_unpack_inverts_pack(bits: int, rows: int, depth: int, group: int) -> None:
    layout = GpuLayout(bits, depth, group)
    top = 2 ** (bits - 1) - 1
    codes = np.random.default_rng(bits).integers(-top, top + 1, (rows, depth)).astype(np.int8)
    words = pack(codes, layout)
    assert words.shape == (layout.words(rows),)
    np.testing.assert_array_equal(unpack(words, layout, rows), codes)


@pytest.mark.parametrize("bits", GPU_WIDTHS)
def test_a_matrix_takes_its_bits_and_no_more(bits: int) -> None:
    assert GpuLayout(bits, 4096).words(64) * 32 == 64 * 4096 * bits


@pytest.mark.parametrize("bits", GPU_WIDTHS)
def test_a_code_in_its_place_is_a_bfloat16_number(bits: int) -> None:
    """Masked out of its 16 bits, a code is 2^-133 times itself plus the offset, as an ordinary bfloat16 number."""
    codes = np.random.default_rng(bits).integers(0, 2 ** (bits - 1), (64, 32)).astype(np.int8)
    first_word = pack(codes, GpuLayout(bits, 32))[:1].view(np.uint16)  # row 0, columns 0 and 1
    numbers = ((first_word & (2**bits - 1)).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(numbers * np.float64(2.0**133), codes[0, :2].astype(int) + 2 ** (bits - 1))


def test_rows_of_a_tile_lie_together() -> None:
    """The second tile of rows begins where the first ends: kernels read tile by tile."""
    layout = GpuLayout(4, 512)
    codes = np.random.default_rng(0).integers(-7, 8, (2 * ROW_TILE, 512)).astype(np.int8)
    words = pack(codes, layout)
    np.testing.assert_array_equal(unpack(words[layout.words(ROW_TILE) :], layout, ROW_TILE), codes[ROW_TILE:])


@pytest.mark.parametrize("bits", [1, 5, 7, 9])
def test_a_width_without_a_kernel_is_named(bits: int) -> None:
    with pytest.raises(WattbitError, match=rf"no GPU kernel for {bits}-bit weights; choose among 2, 3, 4, 6, 8"):
        GpuLayout(bits, 64)


def test_a_group_without_a_kernel_is_named() -> None:
    with pytest.raises(WattbitError, match="multiple of 32 codes, not 48"):
        GpuLayout(4, 64, 48)


@pytest.mark.parametrize("codes", [[[-8]], [[8]]])
def test_codes_beyond_the_narrow_range_are_refused(codes: list[list[int]]) -> None:
    with pytest.raises(WattbitError, match=r"within -7\.\.7"):
        pack(np.array(codes, np.int8), GpuLayout(4, 1))


def test_codes_of_another_depth_are_refused() -> None:
    with pytest.raises(WattbitError, match="must have 64 columns"):
        pack(np.zeros((2, 63), np.int8), GpuLayout(4, 64))
