"""The C interface that the runtimes call: ranges of rows, what it refuses, and CPUs that lack a feature."""

import ctypes
import errno
import json
import mmap
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tvm_support import runnable
from wattbit.errors import WattbitError
from wattbit.tvm_schedules import timing
from wattbit.tvm_schedules.boardside import open_library
from wattbit.tvm_schedules.cores import CORES, host_core
from wattbit.tvm_schedules.costs import Calibration, CostTable, WidthCost, modelled
from wattbit.tvm_schedules.packing import pack
from wattbit.tvm_schedules.timing import WAYS, Matrix, Product, Timer, gives_large_pages
from wattbit.tvm_schedules.toolchain import RUNNER, Kernel, emit_objects, kernels_for, link_library, link_program

BITS = 3
ROWS, DEPTH = 200, 96
CORE = host_core()
KERNELS = kernels_for([BITS], grouped=True)


@pytest.fixture(scope="module")
def library() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        emit_objects(KERNELS, CORE, Path(name))
        link_library(KERNELS, CORE, Path(name), Path(name) / "kernels.so")
        yield Path(name) / "kernels.so"


class Matrices:
    """A matrix in memory at a multiple of 64 bytes, and activations for it."""

    def __init__(self, library: Path) -> None:
        self.library = open_library(library, CORE.name)
        rng = np.random.default_rng(0)
        self.weights = rng.integers(-3, 4, (ROWS, DEPTH)).astype(np.int8)
        self.x = np.zeros((1, 128), np.int8)
        self.x[:, :DEPTH] = rng.integers(-128, 128, DEPTH)
        data = pack(self.weights, CORE.layout(BITS))
        self._memory = np.zeros(data.nbytes + 128, np.uint8)
        start = -self._memory.ctypes.data % 64
        self._memory[start : start + data.nbytes] = data
        self.address = self._memory.ctypes.data + start
        self.y = np.full(ROWS, 99, np.int32)

    def gemm(self, first: int, last: int, **fields: Any) -> str:
        """Multiply a range of rows of the matrix with some fields changed; what the library says of it."""
        values = {"weight_bits": BITS, "rows": ROWS, "cols": DEPTH, "group_size": 0, "weights": self.address} | fields
        call = self.library.wb_gemm_grouped if values["group_size"] else self.library.wb_gemm
        x, y = (ctypes.c_void_p(array.ctypes.data) for array in (self.x, self.y))
        status = call(ctypes.byref(Matrix(**values)), x, 1, first, last, y)
        said: bytes = self.library.wb_message(status)
        return said.decode()


@pytest.fixture
def matrices(library: Path) -> Matrices:
    return Matrices(library)


def test_ranges_of_rows_make_the_whole_and_touch_nothing_else(matrices: Matrices) -> None:
    unit = matrices.library.wb_row_unit(BITS)
    assert matrices.gemm(unit, 2 * unit) == "no error"
    assert (matrices.y[:unit] == 99).all() and (matrices.y[2 * unit :] == 99).all()
    assert matrices.gemm(0, unit) == matrices.gemm(2 * unit, ROWS) == "no error"
    assert np.array_equal(matrices.y, matrices.weights.astype(np.int32) @ matrices.x[0, :DEPTH].astype(np.int32))


@pytest.mark.parametrize(
    ("first", "last", "fields", "reason"),
    [
        (1, ROWS, {}, "rows that are not whole units"),
        (0, ROWS + 1, {}, "rows that are not whole units"),
        (0, ROWS - 1, {}, "rows that are not whole units"),
        (0, ROWS, {"weight_bits": 5}, "no kernel of its width"),
        (0, ROWS, {"weights": None}, "not a matrix as the packer writes it"),
        (0, ROWS, {"cols": 1 << 16}, "not a matrix as the packer writes it"),
        (0, ROWS, {"group_size": 48}, "not a matrix as the packer writes it"),
        (0, ROWS, {"group_size": 32}, "not a matrix as the packer writes it"),  # scales are absent
    ],
)
def test_what_no_packer_writes_is_refused(
    matrices: Matrices, first: int, last: int, fields: dict[str, Any], reason: str
) -> None:
    assert reason in matrices.gemm(first, last, **fields)
    assert (matrices.y == 99).all()


def test_misaligned_weights_are_refused(matrices: Matrices) -> None:
    assert "misaligned" in matrices.gemm(0, ROWS, weights=matrices.address + 4)


def test_a_library_for_features_that_this_cpu_lacks_is_refused_with_both_names(library: Path, tmp_path: Path) -> None:
    if CORE.arch != "x86_64":
        pytest.skip("the feature that no CPU of today has is an x86 one")
    core = replace(CORE, required=("avx5124fmaps",))
    link_library(KERNELS, core, library.parent, tmp_path / "kernels.so")
    with pytest.raises(WattbitError, match=rf"built for {CORE.name}, needs avx5124fmaps, which this CPU, .+, lacks"):
        open_library(tmp_path / "kernels.so", CORE.name)


def test_a_program_for_dot_products_is_refused_by_a_core_without(tmp_path: Path) -> None:
    core = CORES["cortex-a76"]
    emulator = runnable(core)
    kernels = (Kernel(BITS, 1, False),)
    emit_objects(kernels, core, tmp_path)
    link_program(kernels, core, tmp_path, RUNNER / "product.c", tmp_path / "product")
    words = [*emulator[:-1], "cortex-a53", str(tmp_path / "product"), *(["1"] * 9)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "built for cortex-a76, needs asimddp, which this CPU lacks\n")


def test_no_int16_sum_can_overflow_before_it_is_widened() -> None:
    """The bound itself; test_tvm_products has kernels at it. A process of its own: this one may have torch's LLVM."""
    code = """
import json, sys
sys.modules["torch"] = None
from wattbit.tvm_schedules.cores import CORES
from wattbit.tvm_schedules.multiply import MULTIPLIERS
found = []
for core in CORES.values():
    multiply = MULTIPLIERS[core.multiply]
    for bits in range(2, 9):
        layout = core.layout(bits)
        if multiply.widen:
            found.append((core.name, bits, layout.zero, multiply.per_lane, multiply.limit(layout)))
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert {name for name, *_ in found} == {"cortex-a53", "cortex-a72", "cortex-a9", "x86-avx2"}
    for name, bits, zero, per_lane, limit in found:
        top = 2 ** (bits - 1) - 1
        codes = (zero - top, zero + top)  # the ends of the narrow range
        sums = [limit * per_lane * code * x for code in codes for x in (-128, 127)]
        assert limit >= 1 and min(sums) >= -(2**15) and max(sums) < 2**15, f"{name} at {bits} bits"


def test_the_roofline_has_two_ceilings() -> None:
    table = CostTable(CORE, 1, 1e-6, {4: WidthCost(1e-12, 1e9)}, "modelled")
    size = CORE.layout(4).matrix_bytes(512, 1024)
    assert table.seconds(Product(4, 512, 1024)) == 1e-6 + size / 1e9
    assert table.seconds(Product(4, 512, 1024, tokens=2000)) == 1e-6 + 2000 * 512 * 1024 * 1e-12
    with pytest.raises(WattbitError, match=r"no costs of 3 bits on .*; calibrate that width"):
        table.seconds(Product(3, 512, 1024))
    assert modelled(CORE, {4: 2.0}, clock_mhz=1000, bytes_per_s=1e9).widths[4].seconds_per_product == 2e-9


def test_a_timer_takes_times(library: Path) -> None:
    with Timer(library, CORE.name, threads=2, cold_bytes=0) as timer:
        assert timer.weight_bytes(Product(BITS, ROWS, DEPTH)) == CORE.layout(BITS).matrix_bytes(ROWS, DEPTH)
        assert len(timer.products(Product(BITS, ROWS, DEPTH, tokens=5), 3)) == 3
        assert min(timer.products(Product(BITS, ROWS, DEPTH, group_size=32), 3)) > 0
        assert all(min(timer.readings(1 << 20, 3, *way)) > 0 for way in WAYS)
        with pytest.raises(WattbitError, match=r"no kernel of 7 bits"):
            timer.products(Product(7, ROWS, DEPTH), 1)
        with pytest.raises(WattbitError, match=r"did not run; depths must be 1 to 32768, in whole groups"):
            timer.products(Product(BITS, ROWS, DEPTH, group_size=64), 1)


@pytest.mark.skipif(not gives_large_pages(), reason="this kernel gives no pages of 2 MB")
def test_weights_lie_in_large_pages_where_they_are_wanted(library: Path) -> None:
    for wanted in (False, True):
        with Timer(library, CORE.name, threads=1, cold_bytes=0, large_pages=wanted) as timer:
            assert (timing.large_bytes(timer._block) > 0) == wanted
            assert min(timer.products(Product(BITS, ROWS, DEPTH), 3)) > 0


def test_a_kernel_without_large_pages_gives_none(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    monkeypatch.setattr(timing, "large_bytes", lambda block: 0)  # for a kernel may give them unasked
    assert not gives_large_pages()
    with Timer(library, CORE.name, threads=1, cold_bytes=0, large_pages=True) as timer:
        assert min(timer.products(Product(BITS, ROWS, DEPTH), 3)) > 0


def test_cold_weights_are_met_again_only_after_the_whole_block(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is timed, it goes on behind what was timed last: small products must not find theirs in a cache."""
    small, large, block = Product(BITS, 64, 64), Product(BITS, ROWS, DEPTH), 1 << 20
    with Timer(library, CORE.name, threads=1, cold_bytes=block) as timer:
        met: list[tuple[int, int]] = []
        matrix = timer._matrix

        def spy(product: Product, offset: int) -> Matrix:
            made = matrix(product, offset)
            met.append((offset, offset + CORE.layout(BITS).matrix_bytes(product.rows, product.depth)))
            return made

        sizes = {product: timer.weight_bytes(product) for product in (small, large)}
        monkeypatch.setattr(timer, "weight_bytes", sizes.__getitem__)
        monkeypatch.setattr(timer, "_matrix", spy)
        for _ in range(30):
            timer.products(small, 3)
            timer.mixes((large, small), 2)
            timer.readings(5000, 1)
        starts = [k for k, (start, _) in enumerate(met) if start == 0]
        assert len(starts) > 1 and met[starts[1] - 1][1] > block * 0.9, "it begins again where the block is full"
        first = met[: starts[1]]
        assert all(end <= start for (_, end), (start, _) in pairwise(first))
    with Timer(library, CORE.name, threads=1, cold_bytes=0) as timer, pytest.raises(WattbitError, match=r"larger than"):
        timer.products(Product(BITS, 1 << 15, 1 << 15), 1)


class Ideal:
    """A machine of one rate for all widths, with or without a time for each call."""

    def __init__(self, call_s: float) -> None:
        self.call_s = call_s

    def weight_bytes(self, product: Product) -> int:
        return product.rows * product.depth * product.weight_bits // 8

    def products(self, product: Product, calls: int) -> list[float]:
        return [self.call_s + self.weight_bytes(product) / 2e9] * calls


@pytest.mark.parametrize(("call_s", "found"), [(5e-6, 5e-6), (0.0, 0.0), (-1e-6, 0.0)])
def test_calibration_finds_the_call_and_the_rates(call_s: float, found: float) -> None:
    machine = Ideal(call_s)
    calibration = Calibration(CORE, 1, (4, 8), machine, machine)
    calibration.round()
    table = calibration.table()
    assert table.call_s == pytest.approx(found, abs=1e-12)
    for cost in table.widths.values():
        assert cost.bytes_per_s == pytest.approx(2e9, rel=1e-6 if call_s >= 0 else 0.01)
