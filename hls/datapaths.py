"""The datapaths that a target offers an engine, and what engines and their shell take of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import le
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from wattbit.hls.cycles import TO_LOAD, Port, Timing
from wattbit.hls.engine import dsp_version
from wattbit.hls.engine_class import HIDDEN_PARALLELISM, PARALLELISM, EngineClass, Home, Products
from wattbit.hls.resources import Scales, frame, lane, model
from wattbit.hls.teams import Table
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
    """With its lane of the shell."""


class Chip:
    """Datapaths and their price on one target; it remembers the chains, for a plan is made thousands of times.

    limits: LUTs, flip-flops, DSPs and BRAM18 of the target. frame: what of them a shell takes that has no lanes. room
    [4]: what it leaves for engines and their lanes. streams: engines that may stream, each through a port of its own.
    """

    def __init__(self, shape: ExpertShape, target: Target) -> None:
        self.shape = shape
        self.target = target
        self.port = Port()
        self.version = dsp_version(target.part or "")
        self.limits = (target.lut, target.ff, target.dsp, target.bram18)
        self.streams = max(target.memory_ports - 1, 0)
        self.chains: dict[tuple[Precision, Home, int], tuple[Option, ...]] = {}
        self.tables: dict[tuple[Precision, int, float], Table] = {}
        self.taken: dict[tuple[Precision, Home, int], NDArray[np.int64]] = {}
        self.frame = frame(shape, self.version).counts
        self.room = np.array(self.limits, np.int64) - np.array(self.frame, np.int64)

    def holds(self, engines: Sequence[Counts], streams: int) -> bool:
        """Whether the target holds the engines, so many of which stream, and their shell."""
        return streams <= self.streams and all(map(le, self.need(engines), self.limits))

    def need(self, engines: Sequence[Counts]) -> list[int]:
        """LUT, FF, DSP and BRAM18 of engines and shell."""
        return list(map(sum, zip(self.frame, *engines, strict=True)))

    def chain(self, precision: Precision, home: Home, sets: int) -> tuple[Option, ...]:
        """For each number of cycles a vector, most first, and each kind of products: the least of the target.

        The same for every number of sets, but for what the datapaths take.
        """
        key = (precision, home, sets if home == "chip" else 0)
        if key not in self.chains:
            best: dict[tuple[int, Products], tuple[float, Option]] = {}
            experts = tuple(ExpertId(0, i) for i in range(sets if home == "chip" else 1))
            for pe in (p for p in HIDDEN_PARALLELISM if self.shape.d_hidden % p == 0):
                for simd in (s for s in PARALLELISM if self.shape.d_model % s == 0):
                    for products in get_args(Products):
                        share, option = self.option(precision, home, experts, pe, simd, products)
                        kind = (-option.cycles, products)
                        if kind not in best or share < best[kind][0]:
                            best[kind] = (share, option)
            self.chains[key] = tuple(best[kind][1] for kind in sorted(best))
        return self.chains[key]

    def counts(self, precision: Precision, home: Home, sets: int) -> NDArray[np.int64]:
        """What the levels of a chain take, [levels, 4]."""
        key = (precision, home, sets if home == "chip" else 0)
        if key not in self.taken:
            self.taken[key] = np.array([option.counts for option in self.chain(precision, home, sets)])
        return self.taken[key]

    def level(self, precision: Precision, products: int) -> int:
        """The fastest level of a chain with at most so many products a cycle of a layer."""
        chain = self.chain(precision, "chip", 1)
        return max(i for i, option in enumerate(chain) if option.pe * option.simd <= products or i == 0)

    def option(
        self,
        precision: Precision,
        home: Home,
        experts: tuple[ExpertId, ...],
        pe: int,
        simd: int,
        products: Products,
    ) -> tuple[float, Option]:
        """A datapath for these experts, and the share of the target that it takes with its lane."""
        spec = EngineClass(precision, pe, simd, simd, pe, experts, 0, home, products)
        scales = Scales.expected(precision, self.shape)
        timing = Timing.of(spec, self.shape, scales.lane_bits)
        resources = model(spec, self.shape, self.version, scales) + lane(spec, self.shape, self.version)
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
    """The chip, with what it remembers, that every plan for this shape and target shares."""
    return Chip(shape, target)
