"""Meters that join the folders: cores here or on a board, and the models that calibrations stand for."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import hypot
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from wattbit.board.fleet import spread
from wattbit.display import Display
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.files import digest_json
from wattbit.plan import Allocation, Cost, ExpertShape, Meter, Provenance, Target, Workload
from wattbit.policy.pricing import Price, only, prices
from wattbit.run import cache_folder

if TYPE_CHECKING:
    from wattbit.board.program import Program
    from wattbit.board.targets import BoardTarget
    from wattbit.policy.cost.calibration import Calibration
    from wattbit.policy.cost.fitting import Fitted
    from wattbit.policy.cost.fpga import FpgaDemand
    from wattbit.policy.cost.model import CostModel
    from wattbit.tvm_schedules.host_meter import CoresMeter, PowerMeter

VISITS = "wattbit.tvm_schedules.visits"
PLANNER_SIGMA = 0.025  # relative error of the planner's cycles in RTL simulation, see results/cost_models.md
UNSURE = 0.05  # median error of held-out prices above which a search takes the upper ends of the intervals
EMULATED = "its cores are emulated: these figures try the path and mean nothing about a board"


@dataclass(frozen=True)
class Place:
    """Where cores are: a board (None is this machine), how it is reached, and an external power meter."""

    name: str | None
    host: str | None = None
    meter: str | None = None


class RemotePasses:
    """`wattbit.tvm_schedules.host_meter.Runner` on a board: a program that times passes there."""

    def __init__(self, program: "Program", where: str) -> None:
        self._program, self._where = program, where

    def ask(self, **request: Any) -> dict[str, Any]:
        self._program.send(request)
        reply = self._program.read()
        if "error" in reply:
            raise WattbitError(f"{self._where}: {reply['error']}")
        return reply

    def times(
        self, bits: Sequence[int], d_model: int, d_hidden: int, visits: Sequence[tuple[int, int]], least_s: float
    ) -> tuple[list[float], float | None]:
        reply = self.ask(bits=list(bits), d_model=d_model, d_hidden=d_hidden, visits=list(visits), least_s=least_s)
        return reply["seconds"], reply["joules"]


class BoardPool:
    """Meters of several boards of one kind, which price a search's allocations side by side.

    A board that fails is left out of that round and named, its allocation goes to another; WattbitError when none is
    left.
    """

    def __init__(self, meters: Mapping[str, Meter], display: Display) -> None:
        self.meters, self._display = dict(meters), display

    @property
    def width(self) -> int:
        return len(self.meters)

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        return only(self.costs([allocation], workload))

    def costs(self, allocations: Sequence[Allocation], workload: Workload) -> list[Price]:
        def work(allocation: Allocation, name: str) -> Price:
            (price,) = prices(self.meters[name], [allocation], workload)
            return price

        found, failures = spread(allocations, list(self.meters), work)
        for name, error in failures.items():
            self._display.say(f"  {name} was left out: {error}")
        return found


@contextmanager
def metered(
    place: Place, shape: ExpertShape, widths: Sequence[int], experts: int, threads: int, display: Display
) -> Iterator["CoresMeter"]:
    """A meter of cores. To a board, kernels built here and the timing go over SSH and leave nothing there."""
    from wattbit.board.connect import board
    from wattbit.board.meters import open_meter
    from wattbit.board.program import running
    from wattbit.board.rail_watch import RailWatch
    from wattbit.board.targets import WITHOUT_RAIL, load
    from wattbit.tvm_schedules.cores import find_core
    from wattbit.tvm_schedules.host_meter import CoresMeter, build_library, expert_bytes, host_meter
    from wattbit.tvm_schedules.visits import memory_for

    with ExitStack() as stack:
        external: PowerMeter | None = stack.enter_context(open_meter(place.meter)) if place.meter else None
        if place.name is None:
            yield _weighed(stack.enter_context(host_meter(shape, widths, experts, threads)), external)
            return
        described = load(place.name)
        core = find_core(described.target.core)
        if described.tier:
            display.say(f"  {place.name}: {EMULATED}")
        home = Path(stack.enter_context(TemporaryDirectory()))
        build_library(core, widths, home / "kernels.so")
        connection = stack.enter_context(board(place.name, cache_folder(), home / "board", display, place.host))
        if external is None and described.tier is None and described.power.source not in WITHOUT_RAIL:
            external = stack.enter_context(RailWatch(connection, described.power))
        passes = RemotePasses(stack.enter_context(running(connection, VISITS)), place.host or place.name)
        memory = memory_for(experts * expert_bytes(core, max(widths), shape))
        sent = base64.b64encode((home / "kernels.so").read_bytes()).decode("ascii")
        passes.ask(library=sent, core=core.name, threads=threads, memory=memory)
        provenance: Provenance = "simulated" if described.tier else "measured"
        yield _weighed(CoresMeter(shape, core, passes, provenance=provenance), external)


def _weighed(meter: "CoresMeter", power: "PowerMeter | None") -> "CoresMeter":
    """The meter, its passes weighed where there is a power meter."""
    from wattbit.tvm_schedules.host_meter import WEIGHED_S, Weighed

    return meter if power is None else replace(meter, runner=Weighed(meter.runner, power), least_s=WEIGHED_S)


def planned_demand(shape: ExpertShape, target: Target) -> "FpgaDemand":
    """What the planner's engines for an allocation take, in cycles, bytes and products."""
    from wattbit.hls.launches import moved
    from wattbit.hls.meter import memory_bytes
    from wattbit.hls.planner import plan
    from wattbit.hls.traffic import traffic
    from wattbit.policy.cost.fpga import EngineWork, FpgaDemand

    def work(allocation: Allocation, workload: Workload) -> EngineWork:
        planned = plan(allocation, shape, target, workload)
        if not planned.fits:
            raise InfeasibleError(f"{target.name} cannot hold the allocation ({', '.join(planned.excess)})")
        sampled = traffic(workload)
        what = moved(planned, sampled.experts, sampled.counts)
        return EngineWork(planned.batch_cycles, sampled.layers, what.read_bytes, what.products, what.bit_products)

    return FpgaDemand(work, lambda precision: memory_bytes(precision, shape))


def planned_meter(board: "BoardTarget", shape: ExpertShape, target: Target) -> Meter:
    """Seconds by the planner for the board's engines, of which `target` is what a plan may take; joules where the board
    is a virtual one, whose power is a model: a real board's are a calibration's to say."""
    from wattbit.hls.meter import ModelledMeter

    return virtual_meter(shape, target) if board.tier else ModelledMeter(shape, target)


def virtual_meter(shape: ExpertShape, target: Target) -> "CostModel":
    """Seconds by the planner and joules above idle by the virtual boards' power model, which is made up.

    WattbitError for a target without an FPGA.
    """
    import numpy as np

    from wattbit.board.agent.power import PowerModel
    from wattbit.policy.cost.fitting import Fitted
    from wattbit.policy.cost.model import STATIC_W, CostModel

    if target.clock_mhz is None:
        raise WattbitError(f"target {target.name} has no FPGA; use another, or place the experts on arm")
    power, cycle_s = PowerModel(), 1e-6 / target.clock_mhz
    demand = planned_demand(shape, target)

    def exactly(names: Sequence[str], *constants: float) -> Fitted:
        unsure = np.zeros((len(constants), len(constants)))
        return Fitted(tuple(names), np.array(constants), unsure, 0.0, len(constants), tuple(names))

    watts = (power.fabric_w, 8 * power.moved_j, power.mac_j, power.bit_j)
    return CostModel(demand, exactly(demand.names, cycle_s, 0.0), exactly((STATIC_W, *demand.energy_names), *watts))


def cost_model(found: "Calibration", shape: ExpertShape) -> "CostModel":
    """The model that a calibration stands for, as a meter: `cores` price all experts of an allocation there.

    Raises WattbitError for experts of another shape than were calibrated: what hides behind what differs.
    """
    from wattbit.policy.cost.cores import CoresDemand
    from wattbit.tvm_schedules.host_meter import routing

    settings = found.origin.settings
    own = ExpertShape(*settings["shape"])
    if own != shape:
        raise WattbitError(
            f"the calibration of {found.origin.target} is of experts {own.d_model} to {own.d_hidden}, not "
            f"{shape.d_model} to {shape.d_hidden}; calibrate with this --run"
        )
    if found.origin.kind == "fpga":  # fitted to one design's launches, while the planner expects those of any
        model = found.model(planned_demand(shape, Target.from_json(settings["target"])))
        return replace(model, latency=replace(model.latency, sigma=hypot(model.latency.sigma, PLANNER_SIGMA)))
    sizes = {int(bits): size for bits, size in settings["weight_bytes"].items()}
    return found.model(CoresDemand(shape, sizes, routing))


def both(fpga: "Calibration", cores: "Calibration", shape: ExpertShape) -> "CostModel":
    """Engines and cores side by side, by the constants of both and the board's peak bandwidth, which they share.

    Energy is priced where both were weighed. Each static power is of the whole board with one of them at work: with
    both it is at least the larger and at most the sum, and is taken as the middle, with that as its uncertainty.
    """
    import numpy as np
    from scipy.linalg import block_diag

    from wattbit.policy.cost.cores import CoresDemand
    from wattbit.policy.cost.fitting import Fitted
    from wattbit.policy.cost.fpga import SharedDemand
    from wattbit.policy.cost.model import CostModel
    from wattbit.tvm_schedules.host_meter import routing

    target = Target.from_json(fpga.origin.settings["target"])
    engines, plain = cost_model(fpga, shape), cost_model(cores, shape)
    settings = cores.origin.settings
    sizes = {int(bits): size for bits, size in settings["weight_bytes"].items()}
    beside = CoresDemand(shape, sizes, routing, "arm", settings.get("cache_bytes", 0.0))
    demand = SharedDemand(planned_demand(shape, target), beside)
    one, other = engines.latency, plain.latency
    latency = Fitted(
        demand.names,
        np.concatenate([one.theta, other.theta, [1 / target.ddr_bytes_per_s]]),
        block_diag(one.covariance, other.covariance, [[0.0]]),
        max(one.sigma, other.sigma),
        min(one.samples, other.samples),
        (*one.known, *other.known, demand.names[-1]),
    )
    return CostModel(demand, latency, _energy_of_both(engines, plain, demand.energy_names))


def _energy_of_both(engines: "CostModel", cores: "CostModel", names: tuple[str, ...]) -> "Fitted | None":
    import numpy as np
    from scipy.linalg import block_diag

    from wattbit.policy.cost.fitting import Fitted
    from wattbit.policy.cost.model import STATIC_W

    one, other = engines.joules, cores.joules
    if one is None or other is None:
        return None
    powers = float(one.theta[0]), float(other.theta[0])
    spread = min(powers)  # from the larger to the sum
    static_variance = spread**2 / 12 + max(one.covariance[0, 0], other.covariance[0, 0])
    return Fitted(
        (STATIC_W, *names),
        np.concatenate([[max(powers) + spread / 2], one.theta[1:], other.theta[1:]]),
        block_diag([[static_variance]], one.covariance[1:, 1:], other.covariance[1:, 1:]),
        max(one.sigma, other.sigma),
        min(one.samples, other.samples),
        (*one.known, *(f"core {name}" for name in other.known)),
    )


@contextmanager
def search_meter(
    path: Path,
    every: int | None,
    shape: ExpertShape,
    experts: int,
    log: Path,
    display: Display,
    hosts: Sequence[str] = (),
) -> Iterator[Meter]:
    """What a search prices with: a calibrated model, of which every M-th price is real where `every` is given.

    Real prices are those of the machine that the cores' calibration is of, or of several boards of its kind side by
    side (hosts, as for ssh), and kept beside the log. Raises WattbitError for a calibration of the FPGA's engines with
    `every`: no allocation gets a bitstream in a search; and for hosts where it is of this machine.

    Where held-out prices of the calibration were off by more than UNSURE, an allocation costs the upper end of its
    price's interval: what is not known counts against it, until it is measured.
    """
    from wattbit.policy.cost.calibration import Calibration
    from wattbit.policy.cost.hybrid import HybridMeter
    from wattbit.policy.cost.model import CautiousMeter
    from wattbit.policy.recorded import RecordedMeter

    found = Calibration.load(path)
    model = cost_model(found, shape)
    unsure = found.latency_errors.median > UNSURE
    if unsure:
        off = f"{path} was off by {found.latency_errors.median:.0%} on held-out prices"
        display.say(f"  {off}: searched at the upper ends of the intervals")
    if every is None:
        yield CautiousMeter(model) if unsure else model
        return
    origin, settings = found.origin, found.origin.settings
    if origin.kind != "cores":
        raise WattbitError(f"{path} is of engines, which no search can build and measure; leave --measure out")
    widths = [int(bits) for bits in settings["weight_bytes"]]
    here = origin.target == "host"
    if here and hosts:
        raise WattbitError(f"{path} is of this machine's cores; --host needs the calibration of a board")
    known = None if here or origin.machine == origin.target else origin.machine
    with ExitStack() as stack:
        meters: dict[str, Meter] = {}
        for number, host in enumerate(hosts or (known,)):
            place = Place(None if here else origin.target, host)
            opened = metered(place, shape, widths, experts, settings["threads"], display)
            meters[host or f"{origin.target} {number}"] = stack.enter_context(opened)
        where = ", ".join(hosts) or origin.machine
        name = f"{origin.target} {where} {digest_json(dict(settings))}"
        real = RecordedMeter(BoardPool(meters, display), name, log.with_suffix(".real.jsonl"))
        hybrid = HybridMeter(model, real, every, log)
        yield CautiousMeter(hybrid) if unsure else hybrid
