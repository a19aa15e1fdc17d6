"""Experts for the tests of wattbit.tvm_schedules, and a run of them on any core, emulated where it must be."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from wattbit.arith import MULTIPLIER_MAX, ExpertInts, Int8
from wattbit.errors import WattbitError
from wattbit.plan import ExpertId, ExpertShape, Precision
from wattbit.tvm_schedules.cores import CORES, Core, host_core
from wattbit.tvm_schedules.instructions import find_emulator
from wattbit.tvm_schedules.packing import expert_file

WIDTHS = range(2, 9)
FIRST = ExpertId(0, 0)


def random_expert(precision: Precision, shape: ExpertShape, seed: int = 0, expert: ExpertId = FIRST) -> ExpertInts:
    """Random integers, with shifts such that both layers' outputs use most of their range."""
    rng = np.random.default_rng(seed)
    top = 2 ** (precision.weight_bits - 1) - 1
    D, H = shape.d_model, shape.d_hidden
    levels = 2**precision.act_bits
    return ExpertInts(
        expert,
        precision,
        rng.integers(-top, top + 1, (H, D)).astype(np.int8),
        rng.integers(-top, top + 1, (D, H)).astype(np.int8),
        rng.integers(1, MULTIPLIER_MAX + 1, H).astype(np.int32),
        rng.integers(1, MULTIPLIER_MAX + 1, D).astype(np.int32),
        shift1=int(np.log2(top * 128 * 2**16 * D**0.5 / levels / 3)),
        shift2=int(np.log2(top * levels * 2**16 * H**0.5 / 128 / 3)),
        x_exp=-4,
        h_exp=-5,
        y_exp=-6,
    )


def extreme_expert(precision: Precision, shape: ExpertShape, sign: int) -> ExpertInts:
    """All weights at one end, and a hidden layer that is at its maximum wherever its sum is positive."""
    top = sign * (2 ** (precision.weight_bits - 1) - 1)
    D, H = shape.d_model, shape.d_hidden
    m1, m2 = np.full(H, MULTIPLIER_MAX, np.int32), np.arange(1, D + 1, dtype=np.int32)
    w1, w2 = np.full((H, D), top, np.int8), np.full((D, H), top, np.int8)
    return ExpertInts(FIRST, precision, w1, w2, m1, m2, 1, 20, 0, 0, 0)


def inputs(d_model: int, seed: int = 0) -> Int8:
    """Inputs [T, D] over the whole of int8, with both ends and each end against the other."""
    x = np.random.default_rng(seed).integers(-128, 128, (19, d_model)).astype(np.int8)  # 16, then 3 one by one
    x[0], x[1], x[2] = -128, 127, 0
    x[3] = np.where(np.arange(d_model) % 2, -128, 127)
    return x


def runnable(core: Core) -> list[str]:
    """The words before a program of this core that run it here; skips the test where nothing can."""
    x86 = [name for name, each in CORES.items() if each.arch == "x86_64"]  # each runs what stands before it
    try:
        _ = core.compiler
        if core.arch != "x86_64":
            return find_emulator(core)
        best = host_core().name
    except WattbitError as error:
        pytest.skip(str(error))
    if best not in x86 or x86.index(core.name) > x86.index(best):
        pytest.skip(f"this machine is a {best}, no {core.name}")
    return []


@dataclass(frozen=True)
class Program:
    """A forward program for one core; see runner/forward.c."""

    command: list[str]
    core: Core
    folder: Path

    def forward(self, ints: ExpertInts, x: Int8) -> Int8:
        expert, source, result = (self.folder / name for name in ("expert", "x", "y"))
        expert.write_bytes(expert_file(ints, self.core.layout(ints.precision.weight_bits)))
        x.tofile(source)
        subprocess.run([*self.command, str(expert), str(source), str(result)], check=True, capture_output=True)
        return np.fromfile(result, np.int8).reshape(x.shape)
