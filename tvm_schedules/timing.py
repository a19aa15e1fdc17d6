"""Times built kernels, and reading memory, on the machine that this runs on. Standard library and NumPy only.

Weights are cold: each call, of whatever product or reading, goes on in a block of memory where the last one ended, so
that what it meets was last read a whole block ago: a block far larger than the caches. With a block of no size they are
warm: each call multiplies the same.
"""

import ctypes
import mmap
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from wattbit.errors import WattbitError
from wattbit.tvm_schedules.boardside import open_library
from wattbit.tvm_schedules.layout import DEPTH_UNIT, padded

COLD_BYTES = 512 << 20  # of the block
LARGEST_BYTES = 64 << 20  # of one matrix
PAGE, LARGE_PAGE = 4096, 2 << 20
WAYS = ((1, True), (2, True), (4, True), (1, False))
"""Ways to read memory: streams of a thread, and whether work is cut as the kernels' or one part a thread.

Which is fastest depends on the pages: what fetches ahead in hardware stops where one ends, while other streams go on.
"""


@dataclass(frozen=True)
class Product:
    """A matrix [rows, depth] times `tokens` tokens; group_size 0 is one scale a channel."""

    weight_bits: int
    rows: int
    depth: int
    tokens: int = 1
    group_size: int = 0


class Matrix(ctypes.Structure):
    """wb_matrix of runner/matrix.h."""

    _fields_ = (
        ("weight_bits", ctypes.c_uint32),
        ("rows", ctypes.c_uint32),
        ("cols", ctypes.c_uint32),
        ("group_size", ctypes.c_uint32),
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    )


class Timer:
    """Times the kernels of one library on some threads; a context manager."""

    def __init__(
        self, library: Path, core: str, threads: int, cold_bytes: int = COLD_BYTES, large_pages: bool = False
    ) -> None:
        """large_pages: weights lie in pages of 2 MB, as the runtime's do in files, where this machine gives them.

        Raises WattbitError when the library does not run on this CPU.
        """
        self._library = open_library(library, core)
        self._library.wb_pool_create.restype = ctypes.c_void_p
        self._library.wb_weight_bytes.restype = self._library.wb_scale_count.restype = ctypes.c_uint64
        pool = self._library.wb_pool_create(threads)
        if pool is None:
            raise WattbitError(f"{threads} threads cannot be started; ask for fewer")
        self._pool, self._threads = ctypes.c_void_p(pool), threads
        size = max(cold_bytes, LARGEST_BYTES)
        self._cold_bytes, self._next = cold_bytes, 0
        self._block = _large(size) if large_pages else np.frombuffer(mmap.mmap(-1, size), np.uint8)
        self._block[:] = np.resize(np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8), size)
        self._scales = np.ones(1 << 22, np.float32)

    def __enter__(self) -> "Timer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.wb_pool_destroy(self._pool)

    def weight_bytes(self, product: Product) -> int:
        """What the product reads: packed weights and scales.

        Raises WattbitError where the library has no kernel of the width, and for more scales than there is room for.
        """
        matrix = self._matrix(product, 0)
        count: int = self._library.wb_weight_bytes(ctypes.byref(matrix))
        if count == 0:
            raise WattbitError(f"the library has no kernel of {product.weight_bits} bits; build it with that width")
        scales: int = self._library.wb_scale_count(ctypes.byref(matrix))
        if scales > len(self._scales):
            raise WattbitError(f"{product} has {scales} scales, more than the {len(self._scales)} that are timed with")
        return count + scales * self._scales.itemsize

    def products(self, product: Product, calls: int) -> list[float]:
        """Seconds of each of so many products."""
        return self.mixes((product,), calls)

    def mixes(self, mix: Sequence[Product], calls: int) -> list[float]:
        """Seconds of each of so many runs of several products of as many tokens, one after another."""
        tokens = {product.tokens for product in mix}
        if len(tokens) != 1:
            raise WattbitError(f"the products of a mix must be of as many tokens, not of {sorted(tokens)}")
        sizes = [self.weight_bytes(product) for product in mix]
        matrices = (Matrix * (calls * len(mix)))()
        for i in range(calls * len(mix)):
            matrices[i] = self._matrix(mix[i % len(mix)], self._further(sizes[i % len(mix)]))
        token_count = tokens.pop()
        x = np.ones((token_count, padded(max(product.depth for product in mix), DEPTH_UNIT)), np.int8)
        y = np.zeros((token_count, max(product.rows for product in mix)), np.int32)
        seconds = (ctypes.c_double * (calls * len(mix)))()
        time_gemm = self._library.wb_time_gemm
        time_gemm(self._pool, matrices, len(matrices), _address(x), token_count, _address(y), len(seconds), seconds)
        if min(seconds) < 0:
            raise WattbitError(f"{mix} did not run; depths must be 1 to 32768, in whole groups of a multiple of 32")
        return [sum(seconds[i * len(mix) : (i + 1) * len(mix)]) for i in range(calls)]

    def readings(self, size: int, calls: int, streams: int = 1, as_kernels: bool = True) -> list[float]:
        """Seconds of each of so many readings of `size` bytes, in one of WAYS: their best bounds any kernel's.

        streams: places that a thread reads at once. as_kernels: cut among the threads as a kernel's work is, in rounds
        of ever shorter parts; else one part a thread.
        """
        size_read = padded(size, PAGE)
        seconds = (ctypes.c_double * calls)()
        start = self._block.ctypes.data
        places = (ctypes.c_void_p * calls)(*(start + self._further(size_read) for _ in range(calls)))
        parts = 0 if as_kernels else self._threads
        self._library.wb_time_read(self._pool, places, ctypes.c_size_t(size_read), streams, parts, calls, seconds)
        return [each * size / size_read for each in seconds]

    def _further(self, size: int) -> int:
        """Where in the block the next `size` bytes lie; from its start again where it is full."""
        size = padded(size, PAGE)
        if size > len(self._block):
            raise WattbitError(f"weights of {size} bytes are larger than the {len(self._block)} that are timed in")
        if self._next + size > self._cold_bytes:
            self._next = 0
        self._next += size
        return self._next - size

    def _matrix(self, product: Product, offset: int) -> Matrix:
        start = self._block.ctypes.data + offset
        scales = self._scales.ctypes.data if product.group_size else None
        return Matrix(product.weight_bits, product.rows, product.depth, product.group_size, start, scales)


def gives_large_pages() -> bool:
    """Whether memory that asks for pages of 2 MB gets them; see /sys/kernel/mm/transparent_hugepage/enabled."""
    block = _large(8 * LARGE_PAGE)
    block[:] = 1
    return large_bytes(block) > 0


def _large(size: int) -> Any:
    """Memory of `size` bytes that begins with a large page and asks for more of them."""
    block = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # of another system, or of a kernel without them
        block.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(block, np.uint8)
    begin = -whole.ctypes.data % LARGE_PAGE
    return whole[begin : begin + size]


def large_bytes(block: Any) -> int:
    """How much of the mapping in which an array begins lies in large pages; 0 where the system does not say."""
    table, inside = Path("/proc/self/smaps"), False
    for line in table.read_text().splitlines() if table.exists() else ():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= block.ctypes.data < int(span[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    return 0


def _address(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
