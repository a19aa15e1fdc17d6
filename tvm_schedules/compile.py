"""Builds the kernels and packed weights of a whole model for one core."""

import tempfile
from pathlib import Path
from typing import Any

from wattbit.arith import ExpertInts
from wattbit.errors import WattbitError
from wattbit.files import digest_json, sha256_file, write_bytes, write_json
from wattbit.plan import Allocation
from wattbit.progress import Progress, silent
from wattbit.tvm_schedules.cores import Core, find_core
from wattbit.tvm_schedules.layout import LAYOUT_VERSION
from wattbit.tvm_schedules.model.pack import build as build_decoder
from wattbit.tvm_schedules.model.source import SourceFile
from wattbit.tvm_schedules.packing import expert_file
from wattbit.tvm_schedules.toolchain import emit_objects, kernels_for, link_library

LIBRARY = "libwattbit_kernels.so"
DECODER = "decoder.safetensors"


def build(
    export: Path,
    allocation: Allocation,
    core: str,
    out: Path,
    progress: Progress = silent,
    tilings: Path | None = None,
) -> dict[str, Any]:
    """Build every expert of `allocation` for `core` (a name of cores.CORES) from `export`/L0E3.npz, ... into `out`.

    Writes out/libwattbit_kernels.so, out/weights/L0E3.bin, ... and, last, out/kernels.json, whose content it returns;
    then, of an export with a decoder, the whole model in out/decoder (see wattbit.tvm_schedules.model.pack). The same
    input gives the same bytes. tilings: a file that `wattbit tune` wrote for the board. Raises WattbitError when an
    export does not fit the allocation or the core's compiler is absent, ToolError when TVM or the compiler fails.
    """
    chosen = find_core(core, tilings)
    experts = [_load(export, allocation, index) for index in range(len(allocation.placements))]
    shape = experts[0].shape
    strange = next((ints for ints in experts if ints.shape != shape), None)
    if strange:
        raise WattbitError(f"{strange.expert} is {strange.shape}, the first expert {shape}; run `wattbit export` again")
    record_path = out / "kernels.json"
    record_path.unlink(missing_ok=True)  # a folder without it is not a build
    steps = len(experts) + 1
    kernels = kernels_for(ints.precision.weight_bits for ints in experts)
    progress(f"kernels for {core}", 0, steps)
    with tempfile.TemporaryDirectory() as folder:
        emit_objects(kernels, chosen, Path(folder))
        link_library(kernels, chosen, Path(folder), out / LIBRARY)
    files = {}
    for done, ints in enumerate(experts, start=1):
        progress(f"kernels for {core}", done, steps)
        files[str(ints.expert)] = _write_expert(ints, chosen, out)
    for stale in set((out / "weights").iterdir()) - {out / str(entry["file"]) for entry in files.values()}:
        stale.unlink()
    record: dict[str, Any] = {
        "layout_version": LAYOUT_VERSION,
        "core": core,
        "arch": chosen.arch,
        "shape": {"d_model": shape.d_model, "d_hidden": shape.d_hidden},
        "allocation": allocation.digest,
        "precisions": [str(precision) for precision in allocation.classes],
        "kernels": [kernel.name for kernel in kernels],
        "library": {"file": LIBRARY, "sha256": sha256_file(out / LIBRARY)},
        "experts": files,
    }
    record["digest"] = digest_json(record)
    write_json(record_path, record)
    if (export / DECODER).is_file():
        build_decoder(SourceFile(export / DECODER), core, out / "decoder", tilings=tilings)
    progress(f"kernels for {core}", steps, steps)
    return record


def _load(export: Path, allocation: Allocation, index: int) -> ExpertInts:
    placement = allocation.placements[index]
    path = export / f"{placement.expert}.npz"
    ints = ExpertInts.load(path)
    if (ints.expert, ints.precision) != (placement.expert, placement.precision):
        found = f"{ints.expert} at {ints.precision}"
        raise WattbitError(f"{path} holds {found}, not {placement.precision}; run `wattbit export` for this allocation")
    return ints


def _write_expert(ints: ExpertInts, core: Core, out: Path) -> dict[str, Any]:
    data = expert_file(ints, core.layout(ints.precision.weight_bits))
    name = f"weights/{ints.expert}.bin"
    write_bytes(out / name, data)
    return {"file": name, "precision": str(ints.precision), "bytes": len(data), "sha256": sha256_file(out / name)}
