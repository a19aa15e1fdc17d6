"""Which engines an allocation gets: how many of each width, how parallel, and where their weights live.

The experts of an engine are its sets; engines work side by side, so a launch (one layer, a batch of tokens) takes as
long as its slowest engine. Experts whose weights do not fit on the chip are streamed from DDR, each engine that streams
through a memory port of its own; a width may have both kinds, its hot experts on the chip.

1. Which experts are streamed (`hls.mixtures`): for each choice of the widths that may stream, as many as there are
   ports, experts stay on the chip whose streaming would waste most time for the block RAM they take. Fast datapaths
   take block RAM that experts could have, so this is done with room for datapaths of several sizes.
2. Which engines each width gets, like or unlike (`hls.teams`), and which experts each of them (`hls.shares`).
3. The most promising are priced, by the time of the slowest engine in each launch of sampled batches (`hls.traffic`),
   and the best of them improved (`hls.search`).
"""

from collections.abc import Sequence

from wattbit.errors import WattbitError
from wattbit.hls.datapaths import chip_of
from wattbit.hls.engine_class import EngineClass
from wattbit.hls.engine_plan import EnginePlan
from wattbit.hls.resources import model, shell
from wattbit.hls.search import Part, Search
from wattbit.hls.traffic import Traffic, traffic
from wattbit.plan import Allocation, ExpertShape, Precision, Target, Workload


def plan(allocation: Allocation, shape: ExpertShape, target: Target, workload: Workload) -> EnginePlan:
    """Engines for the experts that the allocation places on the FPGA.

    A plan that does not fit even with the smallest engines has `fits` False. Raises WattbitError when the target has
    no FPGA, or the allocation places nothing on it.
    """
    search = _search(shape, target, workload)
    return _plan(search, search.best(_classes(allocation, search.traffic)), workload)


def cycles(allocation: Allocation, shape: ExpertShape, target: Target, workload: Workload) -> float | None:
    """`plan(...).cycles` of the same engines, for less time; None where the plan does not fit. Raises as `plan`."""
    search = _search(shape, target, workload)
    parts = search.best(_classes(allocation, search.traffic))
    return search.cycles(parts) * workload.tokens / workload.batch if search.holds(parts) else None


def _search(shape: ExpertShape, target: Target, workload: Workload) -> Search:
    if target.part is None or target.clock_mhz is None:
        raise WattbitError(f"target {target.name} has no FPGA; use another, or place the experts on arm")
    return Search(chip_of(shape, target), traffic(workload))


def _classes(allocation: Allocation, loads: Traffic) -> dict[Precision, tuple[int, ...]]:
    """Experts on the FPGA by width, as indices into the traffic, busiest first."""
    found: dict[Precision, list[int]] = {}
    for placement in allocation.placements:
        if placement.engine == "fpga":
            if placement.expert not in loads.index:
                raise WattbitError(f"the workload has no frequency of {placement.expert}; run `wattbit stats` again")
            found.setdefault(placement.precision, []).append(loads.index[placement.expert])
    if not found:
        raise WattbitError("the allocation places no expert on the FPGA; place some there or skip its build")
    return {precision: tuple(sorted(found[precision], key=loads.place.__getitem__)) for precision in sorted(found)}


def _plan(search: Search, parts: Sequence[Part], workload: Workload) -> EnginePlan:
    chip, classes = search.chip, list[EngineClass]()
    parts = sorted(parts, key=lambda part: (part.precision, part.home, part.experts))
    for part in parts:
        copy = sum(spec.precision == part.precision for spec in classes)
        pe, simd, products = part.option.pe, part.option.simd, part.option.products
        experts = tuple(sorted(search.traffic.experts[i] for i in part.experts))
        classes.append(EngineClass(part.precision, pe, simd, simd, pe, experts, copy, part.home, products))
    around = shell(classes, chip.shape, chip.version)
    resources = tuple(model(spec, chip.shape, chip.version) for spec in classes)
    excess = sum(resources, around).excess(chip.target)
    streams = sum(spec.streamed for spec in classes)
    if streams > chip.streams:
        excess.append(f"memory_ports: {streams + 1} of {chip.streams + 1}")
    share = workload.tokens / workload.batch
    return EnginePlan(
        chip.target.part or "",
        chip.target.clock_mhz or 0.0,
        chip.shape,
        tuple(classes),
        resources,
        around,
        tuple(search.traffic.brings(part.experts) * share for part in parts),
        workload.tokens,
        workload.batch,
        search.cycles(parts),
        tuple(excess),
    )
