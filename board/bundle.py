"""A bundle: everything that a board needs to run one allocation of one model, in one folder.

| path | content |
|---|---|
| `manifest.json` | target, allocation, design, experts' places, sha256 and length of every other file, own digest |
| `accel.bit`, `accel.hwh` | the bitstream and its handoff; those of toolchain `virtual` only name a design |
| `accel-DIGEST.so` | that design's simulated accelerator, of toolchain `virtual` |
| `weights/` | images of the experts that the design streams from memory, a file for each stream |
| `arm/` | kernels and packed weights for the board's cores; in `arm/decoder` the whole model, to generate text |
| `vectors.npz` | inputs to run: `layer`, `expert` [N], `x` [N, D]. The expected outputs stay on the host |
| `code/` | the agent and the wattbit modules that it imports |

The same parts give the same bytes and the same digest.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from wattbit.arith import ExpertInts
from wattbit.board.agent.manifest import FORMAT, NAME, file_record, seal
from wattbit.board.carried import carried_files
from wattbit.board.overlay import write_overlay
from wattbit.board.targets import SIMULATED, Power
from wattbit.errors import WattbitError
from wattbit.files import read_json, sha256_file, write_json
from wattbit.plan import Allocation, ExpertId, Target
from wattbit.progress import Progress, silent

EXPORT = "export/export.json"
CHOSEN = "chosen.json"  # in run/board/BOARD: what `wattbit board` built last, a record of `Parts.of_design`
AGENT = "wattbit.board.agent.__main__"
KERNELS = "wattbit.tvm_schedules.boardside"
DECODER = "wattbit.tvm_schedules.model.runtime"
VECTORS = "vectors.npz"
NO_LOGIC = "none"  # the toolchain of a bundle for a board without programmable logic: its cores run everything


@dataclass(frozen=True)
class Parts:
    """What a bundle is made of.

    export: folder of the experts' integers and of vectors.npz.
    design: the design's `digest` and its `engines` in order, each with `precision` and `experts` (its sets in order).
    accelerator: the simulated accelerator for the board's architecture; None where there is a bitstream.
    kernels: folder that holds kernels.json, or None.
    top_k: experts that a token is sent to in each layer.
    images: files of the images that the design streams, in the order of its streams.
    bitstream: a real one, and its handoff; toolchain says whose it is.
    clock_mhz: the clock that the design was built for, which the board must not exceed; None without a design.
    """

    allocation: Allocation
    export: Path
    design: dict[str, Any]
    accelerator: Path | None
    kernels: Path | None
    top_k: int
    images: tuple[Path, ...] = ()
    bitstream: tuple[Path, Path] | None = None
    toolchain: str = "virtual"
    clock_mhz: float | None = None

    @classmethod
    def of_run(cls, run: Path, target: Target) -> Self:
        """The parts in a run folder: of what `wattbit board` built last for the target, else of the stage `build`.

        Raises WattbitError when there is neither, or what there is cannot run on the target.
        """
        chosen = run / "board" / target.name / CHOSEN
        if chosen.is_file():
            record = read_json(chosen)
            if record["export"] != sha256_file(run / EXPORT):
                raise WattbitError(
                    f"the model was exported again since its design for {target.name} was built; run "
                    f"`wattbit board --board {target.name}` again"
                )
            return cls.of_design(run, record)
        built = read_json(run / "build/hls/build.json")
        if target.part != built["plan"]["part"] or target.arch not in built["accelerators"]:
            raise WattbitError(
                f"the run has no design that {target.name} ({target.part}, {target.arch}) can load; build one with "
                f"`wattbit board --board {target.name}`"
            )
        return cls.of_design(
            run,
            {
                "toolchain": "virtual",
                "digest": built["digest"],
                "engines": built["plan"]["classes"],
                "accelerator": f"build/hls/{built['accelerators'][target.arch]}",
                "images": [f"build/hls/{path}" for path in built["images"]],
                "kernels": "build/arm",
                "clock_mhz": target.clock_mhz,
            },
        )

    @classmethod
    def of_design(cls, run: Path, record: Mapping[str, Any]) -> Self:
        """The parts that a record names by their paths in the run folder.

        Its fields: export, the sha256 of the export's record that it was built from; toolchain; digest and engines of
        the design; images; kernels; accelerator, or bit and hwh; clock_mhz, which records of earlier versions lack.
        Without a design, of toolchain `none`, every expert is placed on the cores.
        """
        bit, hwh, accelerator = (record.get(name) for name in ("bit", "hwh", "accelerator"))
        allocation = Allocation.from_json(read_json(run / "cotrain/allocation.json"))
        if record["toolchain"] == NO_LOGIC:
            allocation = Allocation(tuple(replace(one, engine="arm") for one in allocation.placements))
        return cls(
            allocation=allocation,
            export=run / "export",
            design={"digest": record["digest"], "engines": record["engines"]},
            accelerator=None if accelerator is None else run / accelerator,
            kernels=run / record["kernels"],
            top_k=read_json(run / EXPORT)["model"]["top_k"],
            images=tuple(run / path for path in record["images"]),
            bitstream=None if bit is None or hwh is None else (run / bit, run / hwh),
            toolchain=record["toolchain"],
            clock_mhz=record.get("clock_mhz"),
        )

    @property
    def places(self) -> dict[ExpertId, tuple[int, int]]:
        """Engine and set of each expert that has one."""
        return {
            ExpertId.parse(expert): (engine, index)
            for engine, record in enumerate(self.design["engines"])
            for index, expert in enumerate(record["experts"])
        }


def make_bundle(
    run: Path, target: Target, out: Path, progress: Progress = silent, power: Power = SIMULATED
) -> dict[str, Any]:
    """Make the bundle of a run in the folder `out`, for a board whose power is read so; its manifest.

    `out` appears whole or not at all. Raises WattbitError when the run's parts are missing or do not belong together.
    """
    return pack(Parts.of_run(run, target), target, out, progress, power)


def pack(
    parts: Parts, target: Target, out: Path, progress: Progress = silent, power: Power = SIMULATED
) -> dict[str, Any]:
    """The same from parts that lie anywhere."""
    _check(parts, target)
    with _new_folder(out) as folder:
        steps = ["overlay", "kernels", "vectors", "code", "manifest"]
        progress("bundle", 0, len(steps))
        _write_logic(parts, target, folder)
        progress("bundle", 1, len(steps))
        if parts.kernels is not None:
            shutil.copytree(parts.kernels, folder / "arm")
        progress("bundle", 2, len(steps))
        _write_vectors(parts.export / VECTORS, folder / VECTORS)
        progress("bundle", 3, len(steps))
        carried = carried_files([AGENT] if parts.kernels is None else [AGENT, KERNELS, DECODER])
        for name, path in carried.items():
            _copy(path, folder / "code" / name)
        progress("bundle", 4, len(steps))
        files = {p.relative_to(folder).as_posix(): file_record(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        manifest = seal(_content(parts, target, power) | {"files": files})
        write_json(folder / NAME, manifest)
        progress("bundle", 5, len(steps))
    return manifest


def engine_of(manifest: Mapping[str, Any]) -> str:
    """What a bundle's launches run on: the programmable logic, or the cores of a board without one."""
    return "arm" if manifest["toolchain"] == NO_LOGIC else "fpga"


def bundle_bytes(manifest: dict[str, Any]) -> int:
    """What a bundle's files take, without the manifest."""
    return sum(int(record["bytes"]) for record in manifest["files"].values())


def _content(parts: Parts, target: Target, power: Power) -> dict[str, Any]:
    experts, places = {}, parts.places
    for placement in parts.allocation.placements:
        ints = ExpertInts.load(parts.export / f"{placement.expert}.npz")
        if ints.precision != placement.precision:
            raise WattbitError(
                f"{placement.expert} was exported at {ints.precision}, but is allocated {placement.precision}; "
                "run `wattbit export` again"
            )
        engine, index = places.get(placement.expert, (None, None))
        experts[str(placement.expert)] = {
            "precision": str(placement.precision),
            "bits": [placement.precision.weight_bits, placement.precision.act_bits],
            "engine": engine,
            "set": index,
            "x_exp": ints.x_exp,
            "y_exp": ints.y_exp,
        }
    layers = {placement.expert.layer for placement in parts.allocation.placements}
    return {
        "format": FORMAT,
        "toolchain": parts.toolchain,
        "target": target.to_json(),
        "clock_mhz": parts.clock_mhz,
        "allocation": parts.allocation.to_json(),
        "allocation_digest": parts.allocation.digest,
        "design": parts.design | {"images": [f"weights/{path.name}" for path in parts.images]},
        "experts": experts,
        "model": {
            "d_model": ints.shape.d_model,
            "d_hidden": ints.shape.d_hidden,
            "layers": len(layers),
            "top_k": parts.top_k,
        },
        "power": power.to_json(),
        "arm": None if parts.kernels is None else {"folder": "arm", "module": KERNELS},
        "decoder": {"folder": "arm/decoder", "module": DECODER} if has_decoder(parts) else None,
        "vectors": VECTORS,
    }


def has_decoder(parts: Parts) -> bool:
    return parts.kernels is not None and (parts.kernels / "decoder/model.json").is_file()


def _check(parts: Parts, target: Target) -> None:
    """WattbitError when the design is not that of the allocation, or the kernels are not for the target."""
    core = None if parts.kernels is None else read_json(parts.kernels / "kernels.json")["core"]
    if core not in (None, target.core):
        raise WattbitError(f"the kernels are for {core}, {target.name} has {target.core}; run `wattbit build` again")
    if parts.toolchain != NO_LOGIC and parts.clock_mhz is None:
        raise WattbitError("it is not known for which clock the design was built; run `wattbit board` again")
    allocated = {p.expert: p.precision for p in parts.allocation.placements if p.engine == "fpga"}
    strange = sorted(set(allocated) ^ set(parts.places))
    if strange:
        raise WattbitError(f"{strange[0]} is in the design or the allocation, not in both; run `wattbit build` again")
    for record in parts.design["engines"]:
        for expert in record["experts"]:
            if str(allocated[ExpertId.parse(expert)]) != record["precision"]:
                raise WattbitError(f"{expert} is built as {record['precision']}, allocated another width; build again")


def _write_logic(parts: Parts, target: Target, folder: Path) -> None:
    if parts.bitstream is not None:
        for path, suffix in zip(parts.bitstream, (".bit", ".hwh"), strict=True):
            _copy(path, folder / f"accel{suffix}")
    elif parts.accelerator is not None:
        masters = ("m_axi_mem", *(f"m_axi_w{i}" for i in range(len(parts.images))))
        write_overlay(parts.design["digest"], target, folder, masters)
        _copy(parts.accelerator, folder / f"accel-{parts.design['digest']}.so")
    elif parts.toolchain != NO_LOGIC or parts.kernels is None:
        raise WattbitError("there is neither a bitstream nor a simulated accelerator; run `wattbit board`")
    for path in parts.images:
        _copy(path, folder / "weights" / path.name)


def _write_vectors(source: Path, out: Path) -> None:
    try:
        with np.load(source, allow_pickle=False) as archive:
            np.savez(out, layer=archive["layer"], expert=archive["expert"], x=archive["x"])
    except (OSError, ValueError, KeyError) as error:
        raise WattbitError(f"{source} holds no test vectors ({error}); run `wattbit export` again") from None


def _copy(source: Path, out: Path) -> None:
    if not source.is_file():
        raise WattbitError(f"{source} does not exist; run `wattbit build`")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, out)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary sibling of the folder `out` that takes its place when the block ends well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        shutil.rmtree(out, ignore_errors=True)
        temporary.replace(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
