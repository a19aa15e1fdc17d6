"""From exported experts to a checked accelerator: engines, shell, simulation, synthesis."""

from pathlib import Path
from typing import Any

from wattbit.arith import ExpertInts, load_vectors
from wattbit.files import digest_json, sha256_file, write_json
from wattbit.hls.accelerator import Arch, verilate
from wattbit.hls.compare import images_of, require_fit, simulate
from wattbit.hls.engine import EngineRtl, build_engine
from wattbit.hls.engine_plan import EnginePlan
from wattbit.hls.resources import Resources
from wattbit.hls.shell import build_shell
from wattbit.hls.synthesis import synthesise
from wattbit.hls.virtual import ARCHITECTURES
from wattbit.processes import workers
from wattbit.progress import Progress, silent

STALL_SEED = 1


def build(export: Path, plan: EnginePlan, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Build the plan's design from the files of `export` in `out`; write and return `out`/build.json.

    The record: digest of the design; plan; engines with their resources as yosys counts them; accelerators, the
    simulated design by architecture; images, the files that hold the streamed engines' experts, in the order of their
    streams; simulation, the exported vectors through it with and without random stalls,
    which must give PyTorch's integers, else WattbitError.
    """
    require_fit(plan)
    steps = len(plan.classes) * 2 + len(ARCHITECTURES) + 2
    finished = 0

    def step(what: str) -> None:
        nonlocal finished
        finished += 1
        progress(what, finished, steps)

    vectors = load_vectors(export / "vectors.npz")
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
        steady = simulate(plan, libraries["x86_64"], vectors, images=images_of(engines))
        stalled = simulate(plan, libraries["x86_64"], vectors, STALL_SEED, images_of(engines))
        step("simulated")
        return {"libraries": libraries, "simulation": steady | {"cycles_with_stalls": stalled["cycles"]}}

    with workers(2) as pool:  # yosys on one core, the compilers on the other
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
        "images": [path.relative_to(out).as_posix() for path in images_of(engines)],
        "simulation": built["simulation"],
    }
    write_json(out / "build.json", record)
    step("built")
    return record


def design_digest(plan: EnginePlan, engines: list[EngineRtl]) -> str:
    """Digest of the plan and of every file of its engines: of what the hardware does. Images are no part of it."""
    files = {path.name: sha256_file(path) for engine in engines for path in (*engine.sources, *engine.memories)}
    return digest_json({"plan": plan.to_json(), "files": files})
