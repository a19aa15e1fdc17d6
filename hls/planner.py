"""How many engines each width class gets and how parallel they become: the fastest set of engines that fits the chip.

The experts of a class are the sets of one engine, engines work side by side, so the time of a workload is that of the
engine with the most cycles of routed vectors. Each class has a chain of datapaths, each twice as fast as the one
before. Starting from the smallest, the slowest class takes the next step; at the end of its chain it gets another
engine, the fastest that fits, to share its experts with. That ends when the slowest class cannot become faster. Up to
the first second engine this is optimal: every faster plan contains the steps taken, as a chain's resources only grow.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

from wattbit.errors import WattbitError
from wattbit.files import digest_json
from wattbit.hls.engine import dsp_version
from wattbit.hls.engine_class import PARALLELISM, EngineClass
from wattbit.hls.resources import NOTHING, Resources, model
from wattbit.plan import Allocation, ExpertId, ExpertShape, Precision, Target, Workload

COPY_GAIN = 0.85  # another engine must bring its class's time below this share, for it costs area and building time


@dataclass(frozen=True)
class EnginePlan:
    """Engines for an allocation on a part.

    classes: the engines; the experts of a precision may be shared by several copies.
    resources: modelled, of each engine. fits: whether their sum does; `excess` says what is short.
    vectors: routed vectors of the workload at each engine, as expected from the routing frequencies.
    """

    part: str
    clock_mhz: float
    shape: ExpertShape
    classes: tuple[EngineClass, ...]
    resources: tuple[Resources, ...]
    vectors: tuple[float, ...]
    excess: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.excess

    @property
    def total(self) -> Resources:
        return sum(self.resources, NOTHING)

    @property
    def cycles_per_vector(self) -> tuple[int, ...]:
        """Clock cycles a vector of each engine in steady state."""
        return tuple(spec.cycles_per_vector(self.shape) for spec in self.classes)

    @property
    def cycles(self) -> float:
        """Expected clock cycles of the workload: those of the slowest engine, or of the memory port.

        A vector is read as a header and d_model bytes over the 64-bit port; all engines share it.
        """
        engines = (n * cycles for n, cycles in zip(self.vectors, self.cycles_per_vector, strict=True))
        return max(*engines, sum(self.vectors) * (1 + self.shape.d_model / 8))

    @property
    def latency_s(self) -> float:
        return self.cycles / (self.clock_mhz * 1e6)

    def to_json(self) -> dict[str, Any]:
        return {
            "part": self.part,
            "clock_mhz": self.clock_mhz,
            "d_model": self.shape.d_model,
            "d_hidden": self.shape.d_hidden,
            "classes": [spec.to_json() for spec in self.classes],
            "resources": [resources.to_json() for resources in self.resources],
            "vectors": list(self.vectors),
            "excess": list(self.excess),
            "cycles_per_vector": list(self.cycles_per_vector),
            "fits": self.fits,
            "total": self.total.to_json(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            record["part"],
            record["clock_mhz"],
            ExpertShape(record["d_model"], record["d_hidden"]),
            tuple(EngineClass.from_json(spec) for spec in record["classes"]),
            tuple(Resources.from_json(resources) for resources in record["resources"]),
            tuple(record["vectors"]),
            tuple(record["excess"]),
        )

    @property
    def digest(self) -> str:
        return digest_json(self.to_json())


def plan(allocation: Allocation, shape: ExpertShape, target: Target, workload: Workload) -> EnginePlan:
    """Engines for the experts that the allocation places on the FPGA.

    A plan that does not fit even with the smallest engines has `fits` False. Raises WattbitError when the target has
    no FPGA, or the allocation places nothing on it.
    """
    if target.part is None or target.clock_mhz is None:
        raise WattbitError(f"target {target.name} has no FPGA; use another, or place the experts on arm")
    chip = _chip(shape, target)
    drafts = [chip.draft(precision, routed, (0,)) for precision, routed in _routed(allocation, workload)]
    while True:
        slowest = max(drafts, key=lambda draft: draft.cycles)
        others = [draft for draft in drafts if draft is not slowest]
        faster = ([*others, step] for step in chip.steps(slowest))
        chosen = next((candidate for candidate in faster if chip.holds(candidate)), None)
        if chosen is None:
            break
        drafts = chosen

    drafts.sort(key=lambda draft: draft.precision)
    parts = [(draft.precision, copy, part) for draft in drafts for copy, part in enumerate(draft.parts)]
    return EnginePlan(
        target.part,
        target.clock_mhz,
        shape,
        tuple(_engine(precision, copy, part) for precision, copy, part in parts),
        tuple(part.option.resources for _, _, part in parts),
        tuple(part.vectors for _, _, part in parts),
        tuple(sum((part.option.resources for _, _, part in parts), NOTHING).excess(target)),
    )


@dataclass(frozen=True)
class _Option:
    """A datapath with pe1 = simd2 = pe and simd1 = pe2 = simd."""

    pe: int
    simd: int
    cycles: int
    resources: Resources


@dataclass(frozen=True)
class _Part:
    """One engine: its experts, the vectors routed to them, its datapath."""

    experts: tuple[ExpertId, ...]
    vectors: float
    option: _Option

    @property
    def cycles(self) -> float:
        return self.vectors * self.option.cycles


@dataclass(frozen=True)
class _Draft:
    """A class in the making: its experts with the vectors routed to them, busiest first, and its engines."""

    precision: Precision
    routed: tuple[tuple[ExpertId, float], ...]
    levels: tuple[int, ...]  # of each engine's datapath in the class's chain
    parts: tuple[_Part, ...]

    @property
    def cycles(self) -> float:
        return max(part.cycles for part in self.parts)


class _Chip:
    """Datapaths and their price on one target; it remembers the chains, for a plan is made thousands of times."""

    def __init__(self, shape: ExpertShape, target: Target) -> None:
        self.shape = shape
        self.target = target
        self.limits = (target.lut, target.ff, target.dsp, target.bram18)
        self.chains: dict[tuple[Precision, int], tuple[_Option, ...]] = {}

    def holds(self, drafts: list[_Draft]) -> bool:
        needs = zip(*(part.option.resources.counts for draft in drafts for part in draft.parts), strict=True)
        return all(sum(need) <= limit for need, limit in zip(needs, self.limits, strict=True))

    def chain(self, precision: Precision, sets: int) -> tuple[_Option, ...]:
        """For each number of products a cycle, fewest first, the datapath that takes the least of the target."""
        if (precision, sets) not in self.chains:
            version = dsp_version(self.target.part or "")
            experts = tuple(ExpertId(0, i) for i in range(sets))
            best: dict[int, _Option] = {}
            for pe in (p for p in PARALLELISM if self.shape.d_hidden % p == 0):
                for simd in (s for s in PARALLELISM if self.shape.d_model % s == 0):
                    spec = EngineClass(precision, pe, simd, simd, pe, experts)
                    option = _Option(pe, simd, spec.cycles_per_vector(self.shape), model(spec, self.shape, version))
                    rival = best.get(option.cycles)
                    if rival is None or option.resources.share(self.target) < rival.resources.share(self.target):
                        best[option.cycles] = option
            self.chains[precision, sets] = tuple(best[cycles] for cycles in sorted(best, reverse=True))
        return self.chains[precision, sets]

    def draft(
        self, precision: Precision, routed: tuple[tuple[ExpertId, float], ...], levels: tuple[int, ...]
    ) -> _Draft:
        """Share experts among engines at `levels`, the busiest first, each to the engine that is done with it first."""
        cycles = [self.chain(precision, 1)[level].cycles for level in levels]
        experts: list[list[ExpertId]] = [[] for _ in levels]
        load = [0.0] * len(levels)
        for expert, vectors in routed:
            i = min(range(len(levels)), key=lambda j: (load[j] + vectors) * cycles[j]) if len(levels) > 1 else 0
            experts[i].append(expert)
            load[i] += vectors
        parts = (
            _Part(tuple(sorted(ids)), vectors, self.chain(precision, len(ids))[level])
            for ids, vectors, level in zip(experts, load, levels, strict=True)
            if ids
        )
        return _Draft(precision, routed, levels, tuple(parts))

    def steps(self, draft: _Draft) -> Iterator[_Draft]:
        """What makes a class faster, best first: its first engine's next datapath, or else another engine."""
        last = len(self.chain(draft.precision, 1)) - 1
        if draft.levels[0] < last:
            yield self.draft(draft.precision, draft.routed, (draft.levels[0] + 1,))
            return
        for level in range(last, -1, -1):
            more = self.draft(draft.precision, draft.routed, (*draft.levels, level))
            if more.cycles <= COPY_GAIN * draft.cycles:
                yield more


def _engine(precision: Precision, copy: int, part: _Part) -> EngineClass:
    pe, simd = part.option.pe, part.option.simd
    return EngineClass(precision, pe, simd, simd, pe, part.experts, copy)


@cache
def _chip(shape: ExpertShape, target: Target) -> _Chip:
    return _Chip(shape, target)


def _routed(
    allocation: Allocation, workload: Workload
) -> Iterator[tuple[Precision, tuple[tuple[ExpertId, float], ...]]]:
    """The classes on the FPGA: their experts with the vectors that the workload is expected to route, busiest first."""
    on_fpga = {p.expert for p in allocation.placements if p.engine == "fpga"}
    if not on_fpga:
        raise WattbitError("the allocation places no expert on the FPGA; place some there or skip its build")
    frequency = dict(workload.frequency)
    strange = on_fpga - frequency.keys()
    if strange:
        raise WattbitError(f"the workload has no frequency of {min(strange)}; run `wattbit stats` again")
    slots = workload.tokens * workload.top_k
    for precision, ids in allocation.classes.items():
        routed = sorted(((e, slots * frequency[e]) for e in ids if e in on_fpga), key=lambda pair: -pair[1])
        if routed:
            yield precision, tuple(routed)
