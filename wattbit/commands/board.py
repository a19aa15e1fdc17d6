"""`wattbit board`: a run's design as a bitstream for a board, with its driver bundle and a report.

In `runs/DIGEST/board/BOARD/TOOLCHAIN/` it leaves the bitstream and its handoff, `bundle/` and `report.md`; of a board
without programmable logic, in `none/`, the bundle of its cores' kernels. Whatever was finished there from the same
inputs is not redone. `board/BOARD/chosen.json` names what was built last: `wattbit deploy` takes it.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json, sha256_file, write_json, write_text
from wattbit.perform import RUNS, SEED, json_option, perform, run_option, start
from wattbit.pipeline import PIPELINE, final_allocation, model_config, workload
from wattbit.presets import PRESETS, run_config, share
from wattbit.progress import Progress
from wattbit.run import Run, cache_folder, code_digest, tuned

if TYPE_CHECKING:
    from wattbit.board.targets import BoardTarget
    from wattbit.hls.engine_plan import EnginePlan
    from wattbit.hls.shell import ShellRtl
    from wattbit.hls.toolchain import Bitstream, Toolchain
    from wattbit.plan import Target

DEFAULT_PRESET, DEFAULT_BOARD = "demo", "virtual-z2"


def toolchains() -> "Sequence[Toolchain]":
    """All of them, the best first."""
    from wattbit.hls.open.toolchain import OpenToolchain
    from wattbit.hls.virtual import VirtualToolchain
    from wattbit.hls.vivado.toolchain import VivadoToolchain

    return (VivadoToolchain(), OpenToolchain(cache_folder()), VirtualToolchain())


@click.command()
@click.option("--board", "name", help="Board: a name or a TOML file; by default that of the run.")
@click.option("--toolchain", "wanted", help="vivado, open or virtual; by default the best that is usable here.")
@run_option
@click.option("--preset", type=click.Choice(sorted(PRESETS)), help="Make a run of these sizes instead.")
@click.option("--data", help="Corpus of the run that is made; by default Python's sources.")
@click.option("--seed", type=SEED, help="Seed of the run that is made.")
@json_option
def command(
    name: str | None,
    wanted: str | None,
    folder: Path | None,
    preset: str | None,
    data: str | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Build the bitstream for a board, with its driver bundle and a report.

    It takes the widths and weights of the last run, or makes a run for the board when there is none. A board without
    programmable logic gets a bundle alone, of kernels for its cores.
    """
    from wattbit.board.overlay import processing_system
    from wattbit.board.targets import load
    from wattbit.hls.toolchain import choose

    if folder and (preset or data or seed is not None):
        raise click.UsageError("--run names a run that is there; --preset, --data and --seed make one")
    run = existing(folder, new=bool(preset or data) or seed is not None)
    board = load(name or (run.config.board if run else DEFAULT_BOARD))
    chosen = None
    if board.target.part is not None or wanted is not None:
        chosen = choose(board.target, wanted, toolchains())
        processing_system(board.target.part or "")
    if run is None:
        prices = name if chosen else None  # widths are chosen for a board with programmable logic
        config = run_config(preset or DEFAULT_PRESET, data, prices or DEFAULT_BOARD, seed or 0)
        start(config, "build" if chosen else "export")
        run = Run.create(RUNS, config)
    else:
        own = run.config.settings["target"]["name"] == board.target.name
        perform(run, "build" if own else "export")
    with run.lock(), Display() as display:
        display.begin("board", board.target.title)
        if chosen is None:
            display.say("no toolchain: there is no programmable logic, the cores run every expert")
            result = bundled(run, board, display)
        else:
            toolchain, why = chosen
            display.say(f"toolchain {why}")
            result = build(run, board, toolchain, why, display)
        display.heed()
    click.echo(json.dumps(result, indent=1) if as_json else (run.folder / result["report"]).read_text(encoding="utf-8"))


def existing(folder: Path | None, new: bool) -> Run | None:
    """The run in `folder`, else the last one; None where there is none or a new one is wanted."""
    if folder is not None:
        return Run.open(folder)
    return None if new or not any(RUNS.glob("*/config.json")) else Run.latest(RUNS)


def build(run: Run, board: "BoardTarget", toolchain: "Toolchain", why: str, progress: Progress) -> dict[str, Any]:
    """Build the run's design for a board; where its files lie in the run folder, and what is known of it."""
    from wattbit.board.bundle import CHOSEN, EXPORT, Parts, pack
    from wattbit.hls.planner import plan
    from wattbit.hls.report import Speed, report
    from wattbit.hls.shell import ShellRtl

    model = model_config(run)
    part = PRESETS[run.config.preset].chip_share
    target = share(board.target, part)
    budget = share(board.target, min(part, toolchain.chip_share))
    planned = plan(final_allocation(run), model.shape, budget, workload(run))
    if not planned.fits:
        raise WattbitError(
            f"the model does not fit {planned.part}, of whose logic toolchain {toolchain.name} takes "
            f"{min(part, toolchain.chip_share):.0%}: {', '.join(planned.excess)}; "
            "use fewer widths or bits, or another toolchain or board"
        )
    out = run.path("board", target.name, toolchain.name)
    design_folder = designed(run, planned, out, progress)
    design = read_json(design_folder / "build.json")
    kernels = compiled(run, target, out, progress)
    shell = ShellRtl.load(design_folder / "shell")
    bits = implemented(toolchain, shell, target, out, progress)

    def place(path: Path | None) -> str | None:
        return None if path is None else path.relative_to(run.folder).as_posix()

    record = {
        "export": sha256_file(run.path(EXPORT)),
        "toolchain": toolchain.name,
        "digest": design["digest"],
        "engines": design["plan"]["classes"],
        "images": [place(design_folder / path) for path in design["images"]],
        "kernels": place(kernels),
        "bit": place(bits.bit),
        "hwh": place(handed_off(bits, shell, target, out)),
        "accelerator": place(bits.libraries.get(target.arch)),
        "clock_mhz": bits.clock_mhz,
    }
    speed = Speed.of(design["simulation"], model.layers, model.top_k, bits.clock_mhz)
    write_text(out / "report.md", report(target, why, planned, design, bits, speed))
    result: dict[str, Any] = {
        "folder": place(out),
        "report": place(out / "report.md"),
        "toolchain": toolchain.name,
        "design": design["digest"],
        "tokens_per_s": speed.tokens_per_s,
        "bundle": None,
    }
    if record["bit"] or record["accelerator"]:  # else: simulated, and the board has no 64-bit cores to simulate on
        manifest = pack(Parts.of_design(run.folder, record), target, out / "bundle", progress, board.power)
        result["bundle"] = manifest["digest"]
        choose_for_deployment(run, run.path("board", target.name, CHOSEN), record | {"bundle": manifest["digest"]})
    return result


def bundled(run: Run, board: "BoardTarget", progress: Progress) -> dict[str, Any]:
    """The same for a board without programmable logic: its bundle has the cores' kernels alone."""
    from wattbit.board.bundle import CHOSEN, EXPORT, NO_LOGIC, Parts, pack

    target = board.target
    out = run.path("board", target.name, NO_LOGIC)
    record = {
        "export": sha256_file(run.path(EXPORT)),
        "toolchain": NO_LOGIC,
        "digest": final_allocation(run).digest,
        "engines": [],
        "images": [],
        "kernels": compiled(run, target, out, progress).relative_to(run.folder).as_posix(),
    }
    manifest = pack(Parts.of_design(run.folder, record), target, out / "bundle", progress, board.power)
    choose_for_deployment(run, run.path("board", target.name, CHOSEN), record | {"bundle": manifest["digest"]})
    write_text(
        out / "report.md",
        f"# {target.title}: no programmable logic\n\n"
        f"- No toolchain: its {target.cores} cores run every expert, by kernels for {target.core}.\n"
        f"- `wattbit bench --board {target.name}` deploys the bundle and measures it.\n",
    )
    return {
        "folder": out.relative_to(run.folder).as_posix(),
        "report": (out / "report.md").relative_to(run.folder).as_posix(),
        "toolchain": NO_LOGIC,
        "design": record["digest"],
        "tokens_per_s": None,
        "bundle": manifest["digest"],
    }


def designed(run: Run, planned: "EnginePlan", out: Path, progress: Progress) -> Path:
    """The folder of the planned design: that of the stage `build` if it is the same plan's, else one in `out`."""
    from wattbit.hls.build import build as build_engines

    own = run.path("build", "hls")
    if PIPELINE.done("build", run) and read_json(own / "build.json")["plan"] == planned.to_json():
        return own
    key = [planned.digest, PIPELINE.key("export", run), code_digest("hls")]
    once(out / "hls", key, lambda folder: build_engines(run.path("export"), planned, folder, progress))
    return out / "hls"


def compiled(run: Run, target: "Target", out: Path, progress: Progress) -> Path:
    """The folder of the experts' kernels for a board's cores, in its own tilings where it was tuned, likewise."""
    from wattbit.tvm_schedules.compile import build as build_kernels

    own, built_for = run.path("build", "arm"), tuned(target.name)
    tilings = sha256_file(built_for) if built_for else None
    theirs = tuned(run.config.settings["target"]["name"])
    same = tilings == (sha256_file(theirs) if theirs else None)
    if PIPELINE.done("build", run) and same and read_json(own / "kernels.json")["core"] == target.core:
        return own
    key = [target.core, tilings, PIPELINE.key("export", run), code_digest("tvm_schedules")]
    allocation = final_allocation(run)
    once(
        out / "arm",
        key,
        lambda folder: build_kernels(run.path("export"), allocation, target.core, folder, progress, built_for),
    )
    return out / "arm"


def implemented(
    toolchain: "Toolchain", shell: "ShellRtl", target: "Target", out: Path, progress: Progress
) -> "Bitstream":
    """What the toolchain makes of the design, from `out`/bitstream.json if that is of the same design and code."""
    from wattbit.hls.toolchain import Bitstream

    stamp = out / "bitstream.json"
    key = digest_json([shell.digest, target.to_json(), toolchain.name, code_digest("hls")])
    if stamp.is_file() and read_json(stamp)["key"] == key:
        bits = Bitstream.from_json(read_json(stamp)["bitstream"], out)
        if read_json(stamp)["files"] == digests(bits):
            return bits
    bits = toolchain.build(shell, target, out, progress)
    write_json(stamp, {"key": key, "bitstream": bits.to_json(out), "files": digests(bits)})
    return bits


def digests(bits: "Bitstream") -> dict[str, str | None]:
    """Digests of a bitstream's files; None for one that is missing."""
    paths = (*(path for path in (bits.bit, bits.hwh) if path), *bits.libraries.values())
    return {path.name: sha256_file(path) if path.is_file() else None for path in paths}


def handed_off(bits: "Bitstream", shell: "ShellRtl", target: "Target", out: Path) -> Path | None:
    """The handoff that goes with a bitstream: the tools' own at the clock it can take, or one written for it."""
    from wattbit.board.overlay import handoff, with_clock

    if bits.bit is None:
        return None
    if bits.hwh is None:
        text = handoff(bits.part, bits.clock_mhz, shell.masters, target.memory_ports)
    else:
        text = with_clock(bits.hwh.read_text(encoding="utf-8"), bits.clock_mhz)
    write_text(out / "accel.hwh", text)
    return out / "accel.hwh"


def once(folder: Path, inputs: Sequence[str | None], work: Callable[[Path], object]) -> None:
    """Do the work, which fills the folder, unless it was done with the same inputs; what others left is removed."""
    stamp, key = folder.with_name(f"{folder.name}.json"), digest_json(inputs)
    record = read_json(stamp) if stamp.is_file() else {}
    if record.get("key") != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(stamp, {"key": key, "done": False})
    elif record["done"]:
        return
    work(folder)
    write_json(stamp, {"key": key, "done": True})


def choose_for_deployment(run: Run, path: Path, record: dict[str, Any]) -> None:
    """Name the design that `wattbit deploy` shall take; when it is another one, the run's board has yet to get it."""
    if not path.is_file() or read_json(path) != record:
        write_json(path, record)
        run.path("stages", "deploy.json").unlink(missing_ok=True)
