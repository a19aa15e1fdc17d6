"""The datapaths that a target offers an engine, and what engines and their shell take of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import le, truediv
from typing import get_args

from wattbit.hls.cycles import TO_LOAD, Port, Timing
from wattbit.hls.engine import dsp_version
from wattbit.hls.engine_class import HIDDEN_PARALLELISM, PARALLELISM, EngineClass, Home, Products
from wattbit.hls.resources import Scales, model, shell
from wattbit.plan import ExpertId, ExpertShape, Precision, Target

Counts = tuple[int, int, int, int]
"""LUTs, flip-flops, DSPs, RAMB18."""


@dataclass(frozen=True)
class Option:
    """A datapath with pe1 = simd2 = pe and simd1 = pe2 = simd. load: cycles of fetching an expert, 0 on chip."""

    pe: int
    simd: int
    products: Products
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
        self.paces: dict[tuple[Precision, Home], list[tuple[int, tuple[int, ...]]]] = {}
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

    def pressure(self, engines: Sequence[Counts], streams: int) -> float:
        """Largest share of LUTs, flip-flops or DSPs that engines and shell take."""
        return max(map(truediv, self.need(engines, streams)[:3], self.limits))

    def chain(self, precision: Precision, home: Home, sets: int) -> tuple[Option, ...]:
        """For each number of cycles a vector, most first, and each kind of products: the least of the target.

        The same for every number of sets, but for what the datapaths take.
        """
        key = (precision, home, sets if home == "chip" else 0)
        if key not in self.chains:
            best: dict[tuple[int, Products], tuple[float, Option]] = {}
            for pe in (p for p in HIDDEN_PARALLELISM if self.shape.d_hidden % p == 0):
                for simd in (s for s in PARALLELISM if self.shape.d_model % s == 0):
                    for products in get_args(Products):
                        share, option = self.option(precision, home, sets, pe, simd, products)
                        kind = (-option.cycles, products)
                        if kind not in best or share < best[kind][0]:
                            best[kind] = (share, option)
            self.chains[key] = tuple(best[kind][1] for kind in sorted(best))
        return self.chains[key]

    def level(self, precision: Precision, products: int) -> int:
        """The fastest level of a chain with at most so many products a cycle of a layer."""
        chain = self.chain(precision, "chip", 1)
        return max(i for i, option in enumerate(chain) if option.pe * option.simd <= products or i == 0)

    def faster(self, precision: Precision, home: Home, cycles: float) -> list[tuple[int, ...]]:
        """Levels of a chain below so many cycles a vector, those of the same cycles together, the slowest first."""
        key = (precision, home)
        if key not in self.paces:
            chain = self.chain(precision, home, 1)
            groups = groupby(range(len(chain)), key=lambda level: chain[level].cycles)
            self.paces[key] = [(pace, tuple(levels)) for pace, levels in groups]
        return [levels for pace, levels in self.paces[key] if pace < cycles]

    def option(
        self, precision: Precision, home: Home, sets: int, pe: int, simd: int, products: Products
    ) -> tuple[float, Option]:
        experts = tuple(ExpertId(0, i) for i in range(sets if home == "chip" else 1))
        spec = EngineClass(precision, pe, simd, simd, pe, experts, 0, home, products)
        scales = Scales.expected(precision, self.shape)
        timing = Timing.of(spec, self.shape, scales.lane_bits)
        resources = model(spec, self.shape, self.version, scales)
        load = timing.load * self.port.read_cycles
        pipes = timing.pipe1 + timing.pipe2
        start = float(timing.fill + pipes)
        if home == "stream":  # where the datapath waits for weights, it is done as soon as they are there
            waits = load > 2 * timing.per_vector
            start = self.port.read_latency + TO_LOAD + pipes + (0 if waits else timing.image[0] + timing.fill)
        return resources.share(self.target), Option(
            pe, simd, products, timing.per_vector, load, start, resources.counts
        )


@lru_cache(maxsize=16)
def chip_of(shape: ExpertShape, target: Target) -> Chip:
    return Chip(shape, target)
