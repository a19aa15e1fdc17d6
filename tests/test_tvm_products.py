"""Product == numpy: every core and width, GEMV and small GEMM, a scale a channel or a group, one thread or several."""

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tvm_support import WIDTHS, runnable
from wattbit.tvm_schedules.cores import CORES, Core, host_core
from wattbit.tvm_schedules.layout import DEPTH_UNIT, padded
from wattbit.tvm_schedules.packing import pack, pack_scales
from wattbit.tvm_schedules.toolchain import RUNNER, emit_objects, kernels_for, link_program

Int8 = NDArray[np.int8]

# whole units, ragged in both directions, deep enough for every loop of the template, a single weight
SHAPES = [(64, 128), (101, 37), (130, 1100), (1, 1)]
GROUPED = [(101, 64, 32), (37, 384, 128)]  # rows, depth, group size
QUICK = {"cortex-a53": (2, 3, 4, 8), "cortex-a9": (3, 8), host_core().name: tuple(WIDTHS)}
PARAMS = [pytest.param((name, widths), id=name) for name, widths in QUICK.items()]
PARAMS += [pytest.param((name, tuple(WIDTHS)), id=f"{name}-all", marks=pytest.mark.slow) for name in CORES]


@dataclass(frozen=True)
class Program:
    """The program runner/product.c with a core's kernels of some widths."""

    command: list[str]
    core: Core
    widths: tuple[int, ...]
    folder: Path

    def product(self, bits: int, w: Int8, x: Int8, scales: Any = None, group: int = 0, threads: int = 1) -> Any:
        layout = self.core.layout(bits)
        tokens, depth = x.shape
        inputs = np.zeros((tokens, padded(depth, DEPTH_UNIT)), np.int8)
        inputs[:, :depth] = x
        parts = [pack(w, layout).tobytes(), b"" if scales is None else pack_scales(scales, layout).tobytes()]
        data = b"".join(part.ljust(padded(len(part), DEPTH_UNIT), b"\0") for part in parts) + inputs.tobytes()
        (self.folder / "in").write_bytes(data)
        numbers = [str(number) for number in (bits, len(w), depth, group, tokens, threads, 1)]
        command = [*self.command, *numbers, str(self.folder / "in"), str(self.folder / "out")]
        subprocess.run(command, check=True, capture_output=True)
        return np.fromfile(self.folder / "out", np.float32 if group else np.int32).reshape(tokens, len(w))


@pytest.fixture(scope="module", params=PARAMS)
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    name, widths = request.param
    core = CORES[name]
    emulator = runnable(core)
    kernels = kernels_for(widths, grouped=True)
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        emit_objects(kernels, core, folder)
        link_program(kernels, core, folder, RUNNER / "product.c", folder / "product")
        yield Program([*emulator, str(folder / "product")], core, widths, folder)


def random(bits: int, rows: int, depth: int, tokens: int) -> tuple[Int8, Int8]:
    rng = np.random.default_rng(rows)
    top = 2 ** (bits - 1) - 1
    weights = rng.integers(-top, top + 1, (rows, depth)).astype(np.int8)
    return weights, rng.integers(-128, 128, (tokens, depth)).astype(np.int8)


def exact(w: Int8, x: Int8) -> NDArray[np.int32]:
    return x.astype(np.int32) @ w.astype(np.int32).T


def test_products_equal_numpy(program: Program) -> None:
    for bits in program.widths:
        for rows, depth in SHAPES:
            for tokens in (1, 7):  # a GEMV; 4 tokens at once and 3 one by one
                w, x = random(bits, rows, depth, tokens)
                assert np.array_equal(program.product(bits, w, x), exact(w, x)), f"{bits} bits, {rows}x{depth}"


def test_products_equal_numpy_at_the_ends_of_every_range(program: Program) -> None:
    """The largest sums of either sign, of every tile: an int16 sum that is widened too late wraps here."""
    for bits in program.widths:
        top = 2 ** (bits - 1) - 1
        for tokens in (1, 4):
            for weight in (top, -top):
                w = np.full((40, 1100), weight, np.int8)
                x = np.where(np.arange(tokens)[:, None] % 2, 127, -128).astype(np.int8) * np.ones((1, 1100), np.int8)
                assert np.array_equal(program.product(bits, w, x), exact(w, x)), f"{bits} bits, all {weight}"


def test_grouped_products_equal_numpy_to_the_last_bit(program: Program) -> None:
    for bits in program.widths:
        for rows, depth, group in GROUPED:
            for tokens in (1, 5):
                w, x = random(bits, rows, depth, tokens)
                scales = np.random.default_rng(depth).random((rows, depth // group), np.float32)
                expected = np.zeros((tokens, rows), np.float32)
                for g in range(depth // group):
                    part = slice(g * group, (g + 1) * group)
                    expected += exact(w[:, part], x[:, part]).astype(np.float32) * scales[:, g]
                assert np.array_equal(program.product(bits, w, x, scales, group), expected), f"{bits} bits"


def test_threads_change_nothing(program: Program) -> None:
    """Weights of more than 1 MB: each thread takes several parts, see runner/pool.h, and the last is ragged."""
    w, x = random(program.widths[-1], 2981, 512, 5)
    assert np.array_equal(program.product(program.widths[-1], w, x, threads=3), exact(w, x))
