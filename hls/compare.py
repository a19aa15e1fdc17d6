"""A design in RTL simulation, held to the integers that PyTorch returns for real routed vectors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattbit.arith import ExpertInts
from wattbit.errors import WattbitError
from wattbit.hls.accelerator import Accelerator, verilate
from wattbit.hls.engine import EngineRtl, write_engine
from wattbit.hls.engine_plan import EnginePlan
from wattbit.hls.launches import Launch
from wattbit.hls.launches import cycles as modelled_cycles
from wattbit.hls.shell import build_shell
from wattbit.plan import ExpertId

Vectors = Mapping[str, NDArray[Any]]
"""layer, expert [N]: who gets a vector; x, y [N, D] int8: what it is and what the expert returns."""


def require_fit(plan: EnginePlan) -> None:
    """WattbitError if the plan does not fit its part."""
    if not plan.fits:
        raise WattbitError(f"the plan does not fit {plan.part}: {', '.join(plan.excess)}; use fewer widths or bits")


def images_of(engines: Sequence[EngineRtl]) -> list[Path]:
    """The files of the streamed engines' images, in the order of their streams."""
    return [engine.images for engine in engines if engine.images is not None]


def simulate(
    plan: EnginePlan, library: Path, vectors: Vectors, stall_seed: int = 0, images: Sequence[Path] = ()
) -> dict[str, Any]:
    """The vectors that are for the plan's experts through the Verilated shell, a launch for each layer as in the model.

    images: of the plan's streamed engines, see `images_of`.
    stall_seed: not 0 stalls all streams at random. Returns vectors, their number; cycles, from start to
    done, summed over the layers; modelled_cycles, what `hls.cycles` expects of the same packets without stalls;
    bit_exact and provenance, that of cycles. Raises WattbitError if any output differs.
    """
    places = {
        expert: (engine, index) for engine, spec in enumerate(plan.classes) for index, expert in enumerate(spec.experts)
    }
    ids = [ExpertId(int(a), int(b)) for a, b in zip(vectors["layer"], vectors["expert"], strict=True)]
    on_fpga = np.array([place in places for place in ids])
    cycles = wrong = 0
    packets: list[Launch] = []
    with Accelerator(library, stall_seed=stall_seed, images=images) as accelerator:
        for layer in sorted({place.layer for place in ids if place in places}):
            rows = np.flatnonzero(on_fpga & (vectors["layer"] == layer))
            engine, index = np.array([places[ids[row]] for row in rows]).T
            got, taken = accelerator.run(engine, index, vectors["x"][rows])
            wrong += int((got != vectors["y"][rows]).any(axis=1).sum())
            cycles += taken
            packets.append((engine, index))
    count = int(on_fpga.sum())
    if wrong:
        stalls = "with stalls" if stall_seed else "without stalls"
        raise WattbitError(f"{wrong} of {count} vectors differ from PyTorch in simulation {stalls}; this is a bug")
    return {
        "vectors": count,
        "cycles": cycles,
        "modelled_cycles": modelled_cycles(plan, packets),
        "bit_exact": True,  # any difference has raised
        "provenance": "simulated",
    }


def simulate_plan(plan: EnginePlan, ints: Mapping[ExpertId, ExpertInts], vectors: Vectors, out: Path) -> dict[str, Any]:
    """The plan's engines in their shell, written to `out` and simulated on this machine; see `simulate`.

    What Verilator compiles for every design lies beside `out`, for the next one.

    For comparing designs that no board gets: the engines are those of `hls.build`, but no expert is taken through FINN
    and yosys counts nothing. Raises WattbitError if the plan does not fit its part, or any output differs.
    """
    require_fit(plan)
    engines = [
        write_engine([ints[expert] for expert in spec.experts], spec, out / "engines", plan.part)
        for spec in plan.classes
    ]
    shell = build_shell(engines, plan.shape.d_model, plan.digest, out / "shell")
    library = verilate(shell, out / "accelerator", "x86_64", runtime=out.parent)
    return simulate(plan, library, vectors, images=images_of(engines))
