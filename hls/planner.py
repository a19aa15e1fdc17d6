"""How parallel each width class's engine becomes: the fastest set of engines that fits the chip.

The experts of a class are the sets of one engine, engines work side by side, so the time of a workload is that of the
engine with the most cycles of routed vectors. Each class has a chain of datapaths, each twice as fast as the one
before; starting from the smallest, the slowest engine takes the next step until it has none or it no longer fits.
Every faster plan contains the steps of that engine, so none fits, as long as a chain's resources only grow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

from wattbit.errors import WattbitError
from wattbit.files import digest_json
from wattbit.hls.engine import dsp_version
from wattbit.hls.engine_class import PARALLELISM, EngineClass
from wattbit.hls.resources import NOTHING, Resources, model
from wattbit.plan import Allocation, ExpertId, ExpertShape, Precision, Target, Workload


@dataclass(frozen=True)
class EnginePlan:
    """Engines for an allocation on a part.

    resources: modelled, one for each class. fits: whether their sum does; `excess` says what is short.
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
    experts = _experts(allocation)
    vectors = _vectors(experts, workload)
    chains = [_chain(precision, len(ids), shape, target) for precision, ids in experts.items()]
    level = [0] * len(chains)
    total = sum((chain[0].resources for chain in chains), NOTHING)
    while True:
        slowest = max(range(len(chains)), key=lambda i: vectors[i] * chains[i][level[i]].cycles)
        chain, step = chains[slowest], level[slowest] + 1
        if step == len(chain):
            break
        grown = _replace(total, chain[step - 1].resources, chain[step].resources)
        if grown.excess(target):
            break
        level[slowest], total = step, grown
    options = [chain[i] for chain, i in zip(chains, level, strict=True)]
    classes = tuple(
        EngineClass(precision, o.pe, o.simd, o.simd, o.pe, ids)
        for (precision, ids), o in zip(experts.items(), options, strict=True)
    )
    resources = tuple(option.resources for option in options)
    return EnginePlan(
        target.part, target.clock_mhz, shape, classes, resources, tuple(vectors), tuple(total.excess(target))
    )


@dataclass(frozen=True)
class _Option:
    """A datapath with pe1 = simd2 = pe and simd1 = pe2 = simd."""

    pe: int
    simd: int
    cycles: int
    resources: Resources


@cache
def _chain(precision: Precision, sets: int, shape: ExpertShape, target: Target) -> tuple[_Option, ...]:
    """For each number of products a cycle, fewest first, the datapath that takes the smallest share of the target."""
    ids = tuple(ExpertId(0, i) for i in range(sets))
    version = dsp_version(target.part or "")
    best: dict[int, _Option] = {}
    for pe in (p for p in PARALLELISM if shape.d_hidden % p == 0):
        for simd in (s for s in PARALLELISM if shape.d_model % s == 0):
            spec = EngineClass(precision, pe, simd, simd, pe, ids)
            option = _Option(pe, simd, spec.cycles_per_vector(shape), model(spec, shape, version))
            rival = best.get(option.cycles)
            if rival is None or option.resources.share(target) < rival.resources.share(target):
                best[option.cycles] = option
    return tuple(best[cycles] for cycles in sorted(best, reverse=True))


def _experts(allocation: Allocation) -> dict[Precision, tuple[ExpertId, ...]]:
    on_fpga = {p.expert for p in allocation.placements if p.engine == "fpga"}
    if not on_fpga:
        raise WattbitError("the allocation places no expert on the FPGA; place some there or skip its build")
    found = {precision: tuple(e for e in ids if e in on_fpga) for precision, ids in allocation.classes.items()}
    return {precision: ids for precision, ids in found.items() if ids}


def _vectors(experts: dict[Precision, tuple[ExpertId, ...]], workload: Workload) -> list[float]:
    frequency = dict(workload.frequency)
    slots = workload.tokens * workload.top_k
    try:
        return [slots * sum(frequency[expert] for expert in ids) for ids in experts.values()]
    except KeyError as error:
        raise WattbitError(f"the workload has no frequency of {error.args[0]}; run `wattbit stats` again") from None


def _replace(total: Resources, old: Resources, new: Resources) -> Resources:
    return Resources(
        total.lut - old.lut + new.lut,
        total.ff - old.ff + new.ff,
        total.dsp - old.dsp + new.dsp,
        total.bram18 - old.bram18 + new.bram18,
        total.tool,
    )
