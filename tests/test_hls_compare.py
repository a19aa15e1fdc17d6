"""A plan's design in simulation: exact, with its cycles, and refused when an output differs or it does not fit."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.hls_engine_support import Z2, random_ints
from wattbit.arith import ExpertInts, forward
from wattbit.errors import WattbitError
from wattbit.hls.compare import Vectors, simulate, simulate_plan
from wattbit.hls.engine_plan import EnginePlan
from wattbit.hls.planner import plan
from wattbit.plan import Allocation, ExpertId, ExpertShape, Placement, Precision, Workload

SHAPE = ExpertShape(16, 32)
CHIP = replace(Z2, lut=2500, ff=5000, dsp=24, bram18=24)  # room for small engines only, which compile fast
EXPERTS = tuple(ExpertId(layer, i) for layer in range(2) for i in range(2))
PLACEMENTS = tuple(Placement(e, "fpga", Precision(bits)) for e, bits in zip(EXPERTS, (2, 4, 4, 2), strict=True))
VECTORS = 64

needs_compiler = pytest.mark.skipif(shutil.which("x86_64-linux-gnu-g++") is None, reason="no x86_64-linux-gnu-g++")


@pytest.fixture(scope="module")
def planned() -> EnginePlan:
    """The last expert stays on the ARM cores."""
    placements = (*PLACEMENTS[:-1], replace(PLACEMENTS[-1], engine="arm"))
    workload = Workload(100, 1, tuple((e, 0.5) for e in EXPERTS))
    return plan(Allocation(placements), SHAPE, CHIP, workload)


@pytest.fixture(scope="module")
def ints() -> dict[ExpertId, ExpertInts]:
    return {p.expert: random_ints(p.expert, p.precision, SHAPE, seed=p.expert.layer) for p in PLACEMENTS}


@pytest.fixture(scope="module")
def vectors(ints: dict[ExpertId, ExpertInts]) -> Vectors:
    rng = np.random.default_rng(0)
    chosen = [EXPERTS[i] for i in rng.integers(0, len(EXPERTS), VECTORS)]
    x = rng.integers(-128, 128, (VECTORS, SHAPE.d_model)).astype(np.int8)
    return {
        "layer": np.array([e.layer for e in chosen], dtype=np.int32),
        "expert": np.array([e.expert for e in chosen], dtype=np.int32),
        "x": x,
        "y": np.concatenate([forward(ints[e], row[None]) for e, row in zip(chosen, x, strict=True)]),
    }


@needs_compiler
def test_a_plan_is_simulated_exactly(
    planned: EnginePlan, ints: dict[ExpertId, ExpertInts], vectors: Vectors, tmp_path: Path
) -> None:
    result = simulate_plan(planned, ints, vectors, tmp_path)
    ids = [ExpertId(int(a), int(b)) for a, b in zip(vectors["layer"], vectors["expert"], strict=True)]
    assert result["vectors"] == sum(e != EXPERTS[-1] for e in ids) < VECTORS
    assert result["provenance"] == "simulated"
    busiest = sum(  # of the slowest engine in each layer's launch
        max(
            sum(e in spec.experts and e.layer == layer for e in ids) * cycles
            for spec, cycles in zip(planned.classes, planned.cycles_per_vector, strict=True)
        )
        for layer in {e.layer for e in ids}
    )
    assert busiest <= result["cycles"] < 1.5 * busiest  # and filling and draining the others
    assert result["modelled_cycles"] == pytest.approx(result["cycles"], rel=0.01)  # of the very same packets

    library = next(tmp_path.rglob("libwattbit_accel.so"))
    assert simulate(planned, library, vectors) == result
    stalled = [simulate(planned, library, vectors, stall_seed=seed)["cycles"] for seed in (1, 2, 3)]
    assert any(cycles != result["cycles"] for cycles in stalled)
    wrong = vectors["y"].copy()
    wrong[ids.index(EXPERTS[0]), 3] ^= 1
    with pytest.raises(WattbitError, match=r"^1 of \d+ vectors differ from PyTorch in simulation without stalls"):
        simulate(planned, library, {**vectors, "y": wrong})


def test_a_plan_that_does_not_fit_is_refused(
    planned: EnginePlan, ints: dict[ExpertId, ExpertInts], vectors: Vectors, tmp_path: Path
) -> None:
    with pytest.raises(WattbitError, match=r"does not fit xc7z020clg400-1: 9 LUT too many"):
        simulate_plan(replace(planned, excess=("9 LUT too many",)), ints, vectors, tmp_path)
    assert not list(tmp_path.iterdir())
