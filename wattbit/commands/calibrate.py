"""`wattbit calibrate`: a target's cost model, its constants measured on the target itself."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json
from wattbit.metering import Place, metered
from wattbit.perform import Host, json_option, one_run
from wattbit.plan import Allocation, ExpertId, ExpertShape, Meter, Workload
from wattbit.run import Run, cache_folder

if TYPE_CHECKING:
    from wattbit.hls.engine_plan import EnginePlan
    from wattbit.policy.cost.calibration import Calibration, Origin, Sample
    from wattbit.policy.cost.fpga import FpgaDemand
    from wattbit.policy.cost.model import Demand
    from wattbit.tvm_schedules.host_meter import Routing

SHAPE = ExpertShape(512, 1024)  # of the model that cores are calibrated on without a run
EMULATED_SHAPE = ExpertShape(64, 128)  # on a virtual board, some fifty times slower
EXPERTS, LAYERS, TOP_K = 16, 2, 2
WIDTHS = (2, 3, 4, 6, 8)
BATCHES = (1, 4, 16)
MIXTURES, HELD_OUT = 20, 15
FPGA_BATCHES = (1, 2, 4, 8, 16)
LAUNCHED = 4  # batches of a workload that go to a board


@click.command()
@click.option("--run", "folder", type=click.Path(path_type=Path, file_okay=False), help="Run: its experts and routing.")
@click.option("--board", "name", help="Board to calibrate: a name or a TOML file; this machine if neither is given.")
@click.option("--host", type=Host(), help="Where the board is, as for ssh: NAME or USER@NAME.")
@click.option("--engine", type=click.Choice(("cores", "fpga")), default="cores", show_default=True, help="What of it.")
@click.option("--meter", help="External power meter: serial:DEVICE, tcp:HOST:PORT or csv:FILE.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads on the cores.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Prices an allocation.")
@json_option
def command(
    folder: Path | None,
    name: str | None,
    host: str | None,
    engine: str,
    meter: str | None,
    threads: int,
    rounds: int,
    as_json: bool,
) -> None:
    """Measure what bytes, products and launches cost on a target, and write its cost model.

    Prices of allocations that were held out say how far it is off. What is interrupted resumes. Both are weighed where
    the board has a rail of its own, cores also by --meter. With --engine fpga the run's design must be built for the
    board; launches go through its agent.
    """
    if host and name is None:
        raise WattbitError("--host needs --board, for what the board is: a name or a TOML file")
    if meter and engine == "fpga":
        raise WattbitError("--meter weighs cores; the launches of --engine fpga are weighed by the board's own rail")
    run = one_run(folder) if folder is not None or engine == "fpga" else None
    with Display() as display:
        display.begin("calibrate", host or name or "this machine")
        if engine == "fpga":
            own = run or one_run(None)
            with own.lock():
                found, path = _fpga(own, name, host, rounds, display)
        else:
            found, path = _cores(run, Place(name, host, meter), threads, rounds, display)
    if as_json:
        click.echo(json.dumps({"file": str(path), "calibration": found.to_json()}, indent=1))
    else:
        click.echo(f"{summary(found)}\n{path}")


def summary(found: "Calibration") -> str:
    """The constants with their intervals, and what held-out prices say."""
    lines = [f"{found.origin.target}, {found.origin.kind}, fitted to {found.provenance} prices ({found.origin.meter})"]
    for fitted in filter(None, (found.latency, found.joules)):
        for constant, value, half in zip(fitted.names, fitted.theta, fitted.half, strict=True):
            lines.append(f"  {constant:<24} {value:10.3e}  ({max(0.0, value - half):.3e} to {value + half:.3e})")
    for quantity, errors in (("latency", found.latency_errors), ("energy", found.energy_errors)):
        if errors:
            lines.append(
                f"{quantity} of {errors.count} held-out prices: off by {errors.median:.1%} (median), "
                f"{errors.worst:.1%} at most; {errors.inside:.0%} within their 95 % intervals"
            )
    if found.joules is None:
        lines.append("no energy: the target shows no counter of it")
    return "\n".join(lines)


def _cores(run: Run | None, place: Place, threads: int, rounds: int, display: Display) -> tuple["Calibration", Path]:
    from wattbit.board.targets import load
    from wattbit.policy.cost.calibration import Origin, design, mixed
    from wattbit.policy.cost.cores import CoresDemand
    from wattbit.tvm_schedules.boardside import cpu_name
    from wattbit.tvm_schedules.host_meter import expert_bytes, routing

    name, host = place.name, place.host
    there = load(name).target.cores if name else os.cpu_count() or 1
    if threads > there:
        raise WattbitError(
            f"--threads {threads} is more than the {there} cores of {name or 'this machine'}; give fewer"
        )
    shape, ids, widths, loads = _subject(run, EMULATED_SHAPE if name and load(name).tier else SHAPE)
    with metered(place, shape, widths, len(ids), threads, display) as meter:
        sizes = {bits: expert_bytes(meter.core, bits, shape) for bits in widths}
        settings = {
            "shape": [shape.d_model, shape.d_hidden],
            "weight_bytes": {str(bits): size for bits, size in sizes.items()},
            "core": meter.core.name,
            "layouts": meter.core.layout_word,
            "threads": threads,
            "routing": digest_json(repr(loads)),
        }
        machine = cpu_name() if name is None else host or name
        weighed = f", weighed by {place.meter}" if place.meter else ""
        origin = Origin("cores", name or "host", machine, f"{meter.core.name}, {threads} threads{weighed}", settings)
        samples = design(ids, widths, loads, MIXTURES, 1, "host"), mixed(ids, widths, loads, HELD_OUT, 2, "host")
        return _calibrated(CoresDemand(shape, sizes, routing), meter, samples, origin, rounds, display)


def _subject(
    run: Run | None, shape: ExpertShape
) -> tuple[ExpertShape, list[ExpertId], tuple[int, ...], list[Workload]]:
    """Shape, experts, widths and workloads of a run; without one of a made-up model of `shape`, unevenly routed."""
    if run is None:
        ids = [ExpertId(layer, e) for layer in range(LAYERS) for e in range(EXPERTS)]
        frequency = tuple((e, 1 / (1 + e.expert) ** 0.5) for e in ids)
        return shape, ids, WIDTHS, [Workload(1000, TOP_K, frequency, batch) for batch in BATCHES]
    from wattbit.pipeline import model_config, workload

    load = workload(run)
    loads = [Workload(load.tokens, load.top_k, load.frequency, batch) for batch in BATCHES]
    widths = tuple(sorted(run.config.settings["cotrain"]["search"]["weight_bits"]))
    return model_config(run).shape, [e for e, _ in load.frequency], widths, loads


def _fpga(run: Run, name: str | None, host: str | None, rounds: int, display: Display) -> tuple["Calibration", Path]:
    """The constants of the board's accelerator: launches of the run's design under many routings."""
    from wattbit.board.agent.manifest import verify
    from wattbit.board.client import AgentClient
    from wattbit.board.connect import board
    from wattbit.board.deploy import deploy
    from wattbit.board.launch_meter import LaunchMeter
    from wattbit.commands.deploy import bundle_of, on_board
    from wattbit.hls.engine_plan import EnginePlan
    from wattbit.pipeline import final_allocation, model_config, target
    from wattbit.policy.cost.calibration import Origin

    there = on_board(run, name)
    allocation, shape = final_allocation(run), model_config(run).shape
    planned = EnginePlan.from_json(read_json(run.path("build", "hls", "build.json"))["plan"])
    bundle = bundle_of(there, display)
    manifest = verify(bundle)
    samples = _routings(allocation, run, 0), _routings(allocation, run, 1)
    settings = {
        "shape": [shape.d_model, shape.d_hidden],
        "target": target(there).to_json(),
        "bundle": manifest["digest"],
    }
    label = there.config.board
    origin = Origin("fpga", label, host or label, f"launches of design {manifest['digest']}", settings)
    with (
        board(label, cache_folder(), run.path("board"), display, host) as connection,
        AgentClient(connection, deploy(bundle, connection)) as agent,
    ):
        meter = LaunchMeter(agent, manifest, _few)
        return _calibrated(_as_built(planned), meter, samples, origin, rounds, display)


def _few(workload: Workload) -> "Routing":
    """The first batches of a workload."""
    from wattbit.tvm_schedules.host_meter import Routing, routing

    found = routing(workload)
    return Routing(found.experts, found.counts[:LAUNCHED])


def _as_built(planned: "EnginePlan") -> "FpgaDemand":
    """A design as it stands, under the very batches that are launched."""
    from wattbit.hls.launches import cycles, launches, moved
    from wattbit.hls.meter import memory_bytes
    from wattbit.policy.cost.fpga import EngineWork, FpgaDemand

    def work(allocation: Allocation, workload: Workload) -> EngineWork:
        routed = _few(workload)
        packets = launches(planned, routed.experts, routed.counts)
        what, batches = moved(planned, routed.experts, routed.counts), len(routed.counts)
        own = cycles(planned, packets) / batches
        return EngineWork(own, len(packets) / batches, what.read_bytes, what.products, what.bit_products)

    return FpgaDemand(work, lambda precision: memory_bytes(precision, planned.shape))


def _routings(allocation: Allocation, run: Run, seed: int) -> list["Sample"]:
    """The design's allocation under routings near the measured one, at several batch sizes."""
    import numpy as np

    from wattbit.pipeline import workload

    load = workload(run)
    random = np.random.default_rng(seed)
    found = []
    for batch in FPGA_BATCHES:
        for _ in range(2):
            skewed = tuple((e, share * float(random.uniform(0.2, 2.0))) for e, share in load.frequency)
            found.append((allocation, Workload(load.tokens, load.top_k, skewed, batch)))
    return found


def _calibrated(
    demand: "Demand",
    meter: Meter,
    samples: tuple[list["Sample"], list["Sample"]],
    origin: "Origin",
    rounds: int,
    display: Display,
) -> tuple["Calibration", Path]:
    """Price, fit and save; prices are kept until the calibration is written."""
    from wattbit.policy.cost.calibration import calibrate
    from wattbit.policy.recorded import RecordedMeter

    names = dict.fromkeys((Path(origin.target).stem, origin.machine))  # a board at its own address has one name
    label = re.sub(r"[^\w.@-]", "_", "-".join(names))
    folder = cache_folder() / "calibration" / label
    key = digest_json([origin.kind, origin.target, origin.machine, origin.meter, dict(origin.settings)])
    kept = folder / f"prices-{key}"
    recorded = [RecordedMeter(meter, f"{origin.meter} {key}", kept / f"{k}.jsonl") for k in range(rounds)]
    found = calibrate(demand, recorded, *samples, origin, progress=display)
    threads = f"-{origin.settings['threads']}" if origin.kind == "cores" else ""
    path = folder / f"{origin.kind}{threads}.json"
    found.save(path)
    shutil.rmtree(kept)
    return found, path
