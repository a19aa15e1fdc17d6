"""Expert == numpy: every core, width and activation width, on the integers of whole experts."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.tvm_support import WIDTHS, Program, extreme_expert, inputs, random_expert, runnable
from wattbit.arith import forward, hidden
from wattbit.plan import ACT_BITS, ExpertShape, Precision
from wattbit.tvm_schedules.cores import CORES, host_core
from wattbit.tvm_schedules.toolchain import RUNNER, emit_objects, kernels_for, link_program

# the demo's, sizes that no vector divides, one with every loop of the template running, and the smallest
SHAPES = [ExpertShape(64, 128), ExpertShape(37, 101), ExpertShape(256, 1100), ExpertShape(1, 1)]

QUICK = {host_core().name}
PARAMS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CORES]


@pytest.fixture(scope="module", params=PARAMS)
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    """A static program with the kernels of every width and shape for one core."""
    core = CORES[request.param]
    emulator = runnable(core)
    kernels = kernels_for(WIDTHS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emit_objects(kernels, core, folder)
        link_program(kernels, core, folder, RUNNER / "forward.c", folder / "forward")
        yield Program([*emulator, str(folder / "forward")], core, folder)


@pytest.mark.parametrize("act_bits", ACT_BITS)
@pytest.mark.parametrize("weight_bits", WIDTHS)
def test_kernels_equal_numpy(program: Program, weight_bits: int, act_bits: int) -> None:
    for shape in SHAPES:
        ints = random_expert(Precision(weight_bits, act_bits), shape, seed=weight_bits)
        x = inputs(shape.d_model)
        expected = forward(ints, x)
        assert shape.d_model == 1 or len(np.unique(expected)) > 100, "outputs so alike would hide errors"
        assert np.array_equal(program.forward(ints, x), expected), f"{shape}"


@pytest.mark.parametrize("weight_bits", WIDTHS)
def test_kernels_equal_numpy_at_the_ends_of_every_range(program: Program, weight_bits: int) -> None:
    for shape in SHAPES:
        for sign in (1, -1):
            ints = extreme_expert(Precision(weight_bits), shape, sign)
            x = inputs(shape.d_model)
            assert {0, 255} <= set(np.unique(hidden(ints, x)))
            assert np.array_equal(program.forward(ints, x), forward(ints, x)), f"{shape}, all weights at {sign}"
