"""From exported experts to a checked accelerator: engines, shell, simulation, synthesis."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from wattbit.arith import ExpertInts
from wattbit.errors import WattbitError
from wattbit.files import digest_json, sha256_file, write_json
from wattbit.hls.accelerator import Accelerator, Arch, verilate
from wattbit.hls.engine import EngineRtl, build_engine
from wattbit.hls.planner import EnginePlan
from wattbit.hls.resources import Resources
from wattbit.hls.shell import build_shell
from wattbit.hls.synthesis import synthesise
from wattbit.plan import ExpertId
from wattbit.progress import Progress, silent

ARCHITECTURES: tuple[Arch, ...] = ("x86_64", "aarch64")
STALL_SEED = 1


def build(export: Path, plan: EnginePlan, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Build the plan's design from the files of `export` in `out`; write and return `out`/build.json.

    The record: digest of the design; plan; engines with their resources as yosys counts them; accelerators, the
    simulated design by architecture; simulation, the exported vectors through it with and without random stalls,
    which must give PyTorch's integers, else WattbitError.
    """
    if not plan.fits:
        raise WattbitError(f"the plan does not fit {plan.part}: {', '.join(plan.excess)}; use fewer widths or bits")
    steps = len(plan.classes) * 2 + len(ARCHITECTURES) + 2
    finished = 0

    def step(what: str) -> None:
        nonlocal finished
        finished += 1
        progress(what, finished, steps)

    experts = [expert for spec in plan.classes for expert in spec.experts]
    ints = {expert: ExpertInts.load(export / f"{expert}.npz") for expert in experts}
    onnx = {expert: export / f"expert_{expert}.onnx" for expert in experts}
    engines = []
    for spec in plan.classes:
        progress(f"FINN: {spec.name}", finished, steps)
        engines.append(build_engine(onnx, ints, spec, out / "engines", plan.part))
        step(f"FINN: {spec.name}")
    digest = design_digest(plan, engines)
    shell = build_shell(engines, plan.shape.d_model, digest, out / "shell")
    resources: dict[str, Resources] = {}

    def synthesise_engine(engine: EngineRtl) -> None:
        resources[engine.module] = synthesise(engine, out / "synthesis")
        step(f"yosys: {engine.module}")

    def compile_model() -> dict[str, Any]:
        libraries: dict[Arch, Path] = {}
        for arch in ARCHITECTURES:
            progress(f"Verilator: accelerator for {arch}", finished, steps)
            libraries[arch] = verilate(shell, out / "accelerator", arch)
            step(f"Verilator: accelerator for {arch}")
        simulation = simulate(plan, libraries["x86_64"], export / "vectors.npz")
        step("simulated")
        return {"libraries": libraries, "simulation": simulation}

    with ThreadPoolExecutor(2) as pool:  # yosys on one core, the compilers on the other
        model = pool.submit(compile_model)
        for done in [pool.submit(synthesise_engine, engine) for engine in engines]:
            done.result()
        built = model.result()
    record = {
        "digest": digest,
        "plan": plan.to_json(),
        "engines": [
            spec.to_json() | {"name": spec.name, "resources": resources[spec.name].to_json()} for spec in plan.classes
        ],
        "accelerators": {arch: str(path.relative_to(out)) for arch, path in built["libraries"].items()},
        "simulation": built["simulation"],
    }
    write_json(out / "build.json", record)
    step("built")
    return record


def design_digest(plan: EnginePlan, engines: list[EngineRtl]) -> str:
    """Digest of the plan and of every file of its engines: of what the hardware does."""
    files = {path.name: sha256_file(path) for engine in engines for path in (*engine.sources, *engine.memories)}
    return digest_json({"plan": plan.to_json(), "files": files})


def simulate(plan: EnginePlan, library: Path, vectors: Path) -> dict[str, Any]:
    """The exported vectors through the Verilated shell; WattbitError if any output differs from PyTorch's integers."""
    places = {
        expert: (engine, index) for engine, spec in enumerate(plan.classes) for index, expert in enumerate(spec.experts)
    }
    with np.load(vectors, allow_pickle=False) as archive:
        layer, expert, x, y = (archive[name] for name in ("layer", "expert", "x", "y"))
    ids = [ExpertId(int(a), int(b)) for a, b in zip(layer, expert, strict=True)]
    on_fpga = np.array([place in places for place in ids])
    engine, index = np.array([places[place] for place in ids if place in places]).T
    cycles = {}
    for name, seed in (("steady", 0), ("stalled", STALL_SEED)):
        with Accelerator(library, stall_seed=seed) as accelerator:
            got, cycles[name] = accelerator.run(engine, index, x[on_fpga])
        wrong = int((got != y[on_fpga]).any(axis=1).sum())
        if wrong:
            raise WattbitError(
                f"{wrong} of {len(got)} vectors differ from QONNX in the {name} simulation; this is a bug"
            )
    return {
        "vectors": int(on_fpga.sum()),
        "cycles": cycles["steady"],
        "cycles_with_stalls": cycles["stalled"],
        "bit_exact": True,  # any difference has raised
        "provenance": "simulated",
    }
