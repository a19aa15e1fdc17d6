"""The datapaths that a target offers an engine, and what engines and their shell take of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import le

from wattbit.hls.cycles import TO_LOAD, Port, Timing
from wattbit.hls.engine import dsp_version
from wattbit.hls.engine_class import PARALLELISM, EngineClass, Home
from wattbit.hls.resources import Scales, model, shell
from wattbit.plan import ExpertId, ExpertShape, Precision, Target

Counts = tuple[int, int, int, int]
"""LUTs, flip-flops, DSPs, RAMB18."""


@dataclass(frozen=True)
class Option:
    """A datapath with pe1 = simd2 = pe and simd1 = pe2 = simd. load: cycles of fetching an expert, 0 on chip."""

    pe: int
    simd: int
    cycles: int
    load: float
    start: float
    """Cycles before the first vector is at the pace of the others."""
    counts: Counts


class Chip:
    """Datapaths and their price on one target; it remembers the chains, for a plan is made thousands of times."""

    def __init__(self, shape: ExpertShape, target: Target) -> None:
        self.shape = shape
        self.target = target
        self.port = Port()
        self.version = dsp_version(target.part or "")
        self.limits = (target.lut, target.ff, target.dsp, target.bram18)
        self.streams = max(target.memory_ports - 1, 0)
        self.chains: dict[tuple[Precision, Home, int], tuple[Option, ...]] = {}
        self.shells: dict[tuple[int, int], Counts] = {}

    def holds(self, engines: Sequence[Counts], streams: int) -> bool:
        """Whether the target holds the engines, so many of which stream, and their shell."""
        return streams <= self.streams and all(map(le, self.need(engines, streams), self.limits))

    def need(self, engines: Sequence[Counts], streams: int) -> list[int]:
        """LUT, FF, DSP and BRAM18 of engines and shell."""
        key = (len(engines), streams)
        if key not in self.shells:
            expert = (ExpertId(0, 0),)
            specs = [
                EngineClass(Precision(8), 8, 8, 8, 8, expert, i, "stream" if i < streams else "chip")
                for i in range(len(engines))
            ]
            self.shells[key] = shell(specs, self.shape, self.version).counts
        return list(map(sum, zip(self.shells[key], *engines, strict=True)))

    def chain(self, precision: Precision, home: Home, sets: int) -> tuple[Option, ...]:
        """For each number of products a cycle, fewest first, the datapath that takes the least of the target."""
        key = (precision, home, sets if home == "chip" else 0)
        if key not in self.chains:
            best: dict[int, tuple[float, Option]] = {}
            for pe in (p for p in PARALLELISM if self.shape.d_hidden % p == 0):
                for simd in (s for s in PARALLELISM if self.shape.d_model % s == 0):
                    share, option = self.option(precision, home, sets, pe, simd)
                    if option.cycles not in best or share < best[option.cycles][0]:
                        best[option.cycles] = (share, option)
            self.chains[key] = tuple(best[cycles][1] for cycles in sorted(best, reverse=True))
        return self.chains[key]

    def option(self, precision: Precision, home: Home, sets: int, pe: int, simd: int) -> tuple[float, Option]:
        experts = tuple(ExpertId(0, i) for i in range(sets if home == "chip" else 1))
        spec = EngineClass(precision, pe, simd, simd, pe, experts, 0, home)
        scales = Scales.expected(precision, self.shape)
        timing = Timing.of(spec, self.shape, scales.lane_bits)
        resources = model(spec, self.shape, self.version, scales)
        load = timing.load * self.port.read_cycles
        start = float(timing.fill)
        if home == "stream":  # where the datapath waits for weights, it is done as soon as they are there
            waits = load > 2 * timing.per_vector
            start = self.port.read_latency + TO_LOAD + (0 if waits else timing.image[0] + timing.fill)
        return resources.share(self.target), Option(pe, simd, timing.per_vector, load, start, resources.counts)


@lru_cache(maxsize=16)
def chip_of(shape: ExpertShape, target: Target) -> Chip:
    return Chip(shape, target)
