"""Which engines an allocation gets: how many of each width, how parallel, and where their weights live.

The experts of an engine are its sets; engines work side by side, so a launch (one layer, a batch of tokens) takes as
long as its slowest engine. Experts whose weights do not fit on the chip are streamed from DDR, each engine that streams
through a memory port of its own; a width may have both kinds, its hot experts on the chip.

1. For each choice of the widths that may stream, as many as there are ports, experts stay on the chip whose streaming
   would waste most time for the block RAM they take; the most promising choices are planned in full. Fast datapaths
   take block RAM that experts could have, so this is done with room for datapaths of several sizes.
2. Every engine starts with its smallest datapath. The slowest engine takes the next step: a faster datapath, or where
   that is no help (it waits for its weights, or it is the fastest) another engine to share its experts with. That ends
   when the slowest cannot become faster. Then free block RAM takes more experts from the streams.
3. Plans are compared by their expected time over sampled batches (`hls.traffic`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from math import inf
from operator import gt, mul
from typing import Any

import numpy as np

from wattbit.errors import WattbitError
from wattbit.hls.cycles import RESULT_GAP, overhead
from wattbit.hls.datapaths import Chip, Option, chip_of
from wattbit.hls.engine_class import SETS_MAX, EngineClass, Home
from wattbit.hls.engine_plan import EnginePlan
from wattbit.hls.resources import Resources, shell
from wattbit.hls.shares import Sharing, ways
from wattbit.hls.traffic import Traffic, traffic
from wattbit.plan import Allocation, ExpertShape, Precision, Target, Workload

COPY_GAIN = 0.85  # another engine must bring its experts' time below this share, for it costs area and building time
STEP_GAIN = 0.98  # a larger datapath must bring its engine's time below this share
MATTERS = 0.01  # an engine that alone costs less of the launches' time takes no steps
SEARCH_BATCHES = 64  # sampled batches that the search looks at; the plan's time is of all
ROOM_FOR = (16, 64, 256)  # products a cycle of a layer, of datapaths that the first filling leaves room for
FILLED = 3  # of the mixtures, the fastest once they have grown, whose free block RAM is filled
CHIP_SHARE = 0.97  # of the block RAM that the first filling may take: larger datapaths round up
BRAM18_BITS = 18432


def plan(allocation: Allocation, shape: ExpertShape, target: Target, workload: Workload) -> EnginePlan:
    """Engines for the experts that the allocation places on the FPGA.

    A plan that does not fit even with the smallest engines has `fits` False. Raises WattbitError when the target has
    no FPGA, or the allocation places nothing on it.
    """
    search = _search(shape, target, workload)
    return search.plan(search.best(_classes(allocation, search.traffic)), workload)


def cycles(allocation: Allocation, shape: ExpertShape, target: Target, workload: Workload) -> float | None:
    """`plan(...).cycles` of the same engines, for less time; None where the plan does not fit. Raises as `plan`."""
    search = _search(shape, target, workload)
    parts = search.best(_classes(allocation, search.traffic))
    return search.cycles(parts) * workload.tokens / workload.batch if search.holds(parts) else None


@dataclass(frozen=True, eq=False)
class _Part:
    """One engine in the making: its experts and its datapath, a level of its chain.

    busy: its cycles in each launch of the first sampled batches. cycles: their mean, summed over the layers.
    """

    precision: Precision
    home: Home
    experts: tuple[int, ...]
    level: int
    option: Option
    busy: Any
    cycles: float


_Outline = tuple[Precision, Home, tuple[int, ...], int]
"""Of an engine in the making: its experts and the level of its datapath."""


@dataclass(frozen=True, eq=False)
class _Pool:
    """Experts of the widths that may stream, the least wasteful first. bits: of them and those before."""

    chosen: tuple[Precision, ...]
    ids: Any
    width: Any  # index into `chosen`
    bits: Any
    busy: Any  # cycles a batch
    total: int  # bits of all experts, streamed or not
    slots: tuple[int, ...]  # BRAM18 of a stream of each chosen width


def _search(shape: ExpertShape, target: Target, workload: Workload) -> "_Search":
    if target.part is None or target.clock_mhz is None:
        raise WattbitError(f"target {target.name} has no FPGA; use another, or place the experts on arm")
    chip, loads = chip_of(shape, target), traffic(workload)
    return _Search(chip, loads, Sharing(chip, loads))


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


@dataclass(frozen=True, eq=False)
class _Search:
    """The search for one allocation's engines; what it has tried it remembers, for growing plans try much again."""

    chip: Chip
    traffic: Traffic
    sharing: Sharing
    made: dict[tuple[Precision, Home, tuple[int, ...], int], _Part] = field(default_factory=dict)

    def best(self, classes: Mapping[Precision, tuple[int, ...]]) -> list[_Part]:
        """The fastest engines found; they do not fit if none does."""
        everything = [part for precision, experts in classes.items() for part in self.on_chip(precision, experts)]
        if self.holds(everything):
            return self.grow(everything)
        mixtures = (parts for products in ROOM_FOR for parts in self.mixtures(classes, products))
        distinct = {tuple((p.precision, p.home, p.experts) for p in parts): parts for parts in mixtures}
        grown = sorted(map(self.grow, distinct.values()), key=self.cycles)
        return min((self.grow(self.fill(parts)) for parts in grown[:FILLED]), key=self.cycles, default=everything)

    def holds(self, parts: Sequence[_Part]) -> bool:
        """Whether the target holds the engines and their shell."""
        return self.chip.holds([part.option.counts for part in parts], sum(part.home == "stream" for part in parts))

    def part(self, precision: Precision, home: Home, experts: tuple[int, ...], level: int) -> _Part:
        key = (precision, home, experts, level)
        if key not in self.made:
            option = self.chip.chain(precision, home, len(experts))[level]
            busy = self.traffic.busy(experts, option.cycles, option.load, option.start, SEARCH_BATCHES)
            self.made[key] = _Part(precision, home, experts, level, option, busy, float(busy.sum()) / busy.shape[1])
        return self.made[key]

    def on_chip(self, precision: Precision, experts: Sequence[int]) -> list[_Part]:
        """Experts on the chip, on as few engines as can hold them, with their smallest datapaths."""
        levels = (0,) * -(-len(experts) // SETS_MAX)
        shares = self.sharing.shares(precision, "chip", tuple(experts), levels, inf) or ()
        return [self.part(precision, "chip", ids, level) for ids, level in shares]

    def mixtures(self, classes: Mapping[Precision, tuple[int, ...]], products: int) -> list[list[_Part]]:
        """Engines that fit, with their smallest datapaths, for the most promising choices of what streams.

        A choice is a number of streams for each width. Its experts are streamed in the order of what that wastes for
        the bits it saves, until the others fit, with room for datapaths of so many products a cycle; its promise is
        the time of its busiest stream.
        """
        levels = {precision: self.chip.level(precision, products) for precision in classes}
        rates = {
            precision: self.rates(self.chip.chain(precision, "stream", 1)[levels[precision]], experts)
            for precision, experts in classes.items()
        }
        weights = self.chip.shape.weights
        everything = sum(weights * precision.weight_bits * len(experts) for precision, experts in classes.items())
        found = []
        for chosen in (some for n in range(1, self.chip.streams + 1) for some in combinations(classes, n)):
            ids = np.concatenate([classes[precision] for precision in chosen])
            width = np.repeat(np.arange(len(chosen)), [len(classes[precision]) for precision in chosen])
            bits = np.array([weights * precision.weight_bits for precision in chosen])[width]
            waste, busy = (np.concatenate([rates[precision][k] for precision in chosen]) for k in (0, 1))
            order = np.argsort(waste / bits, kind="stable")
            slots = tuple(self.chip.chain(precision, "stream", 1)[levels[precision]].counts[3] for precision in chosen)
            pool = _Pool(chosen, ids[order], width[order], bits[order].cumsum(), busy[order], everything, slots)
            for streams in ways(len(chosen), self.chip.streams):
                count = self.streamed(pool, streams, 0)
                total = np.bincount(pool.width[:count], pool.busy[:count], len(chosen))
                found.append(((total / streams).max(), count > len(ids), pool, streams))
        found.sort(key=lambda one: (one[1], one[0]))
        tried = []
        for number in range(1, self.chip.streams + 1):  # the best for each number of streams
            fitting = (
                self.fitting(classes, pool, streams, levels) for *_, pool, streams in found if sum(streams) == number
            )
            tried += list(islice((parts for parts in fitting if parts), 1))
        return tried

    def rates(self, option: Option, experts: Sequence[int]) -> tuple[Any, Any]:
        """Cycles a batch that streaming wastes, and all that it takes, for each expert, on a datapath."""
        busy = self.traffic.times(option.cycles, option.load)[1][list(experts)]
        return busy - self.traffic.times(option.cycles, 0)[1][list(experts)], busy

    def streamed(self, pool: _Pool, streams: tuple[int, ...], more: int) -> int:
        """How many of the pool must be streamed: so many that the rest and the streams' slots leave `more` BRAM18."""
        room = self.chip.limits[3] * CHIP_SHARE - sum(map(mul, streams, pool.slots)) - more
        return int(pool.bits.searchsorted(pool.total - room * BRAM18_BITS)) + 1

    def fitting(
        self,
        classes: Mapping[Precision, tuple[int, ...]],
        pool: _Pool,
        streams: tuple[int, ...],
        levels: Mapping[Precision, int],
    ) -> list[_Part]:
        """The choice's engines with as many experts streamed as it takes to fit; none if all are too few.

        levels: of the datapaths whose block RAM is to fit.
        """
        more = 0
        for _ in range(4):
            count = self.streamed(pool, streams, more)
            outline: list[_Outline] | None = None
            sizes = self.sizes(classes, pool, streams, count)
            if sizes is None:
                outline = self.outline(classes, pool, streams, count)
                if outline is None:  # more experts than the streams can tell apart
                    return []
                sizes = [(precision, home, len(ids)) for precision, home, ids, _ in outline]
            chains = [self.chip.chain(*size) for size in sizes]
            larger = [chain[levels[size[0]]].counts for chain, size in zip(chains, sizes, strict=True)]
            short = self.chip.need(larger, sum(streams))[3] - self.chip.limits[3]
            number = sum(home == "stream" for _, home, _ in sizes)
            if short <= 0 and self.chip.holds([chain[0].counts for chain in chains], number):
                outline = outline or self.outline(classes, pool, streams, count) or []
                return [self.part(*engine) for engine in outline]
            if count > len(pool.ids):
                break
            more += max(1, short)
        return []

    def sizes(
        self, classes: Mapping[Precision, tuple[int, ...]], pool: _Pool, streams: tuple[int, ...], count: int
    ) -> list[tuple[Precision, Home, int]] | None:
        """Of each engine of `outline` what its size depends on, where that follows from numbers alone."""
        if not pool.busy[:count].all():  # an engine may get no expert, if no token wants them
            return None
        away = dict(zip(pool.chosen, np.bincount(pool.width[:count], minlength=len(streams)).tolist(), strict=True))
        engines = dict(zip(pool.chosen, streams, strict=True))
        found: list[tuple[Precision, Home, int]] = []
        for precision, experts in classes.items():
            gone = away.get(precision, 0)
            if len(experts) - gone > SETS_MAX or gone > SETS_MAX * engines.get(precision, 0):
                return None
            if gone < len(experts):
                found.append((precision, "chip", len(experts) - gone))
            found += [(precision, "stream", 1)] * min(engines.get(precision, 0), gone)
        return found

    def outline(
        self, classes: Mapping[Precision, tuple[int, ...]], pool: _Pool, streams: tuple[int, ...], count: int
    ) -> list[_Outline] | None:
        """The engines with their smallest datapaths, `count` of the pool streamed; None if the streams cannot tell them
        apart."""
        taken = set(pool.ids[:count].tolist())
        found: list[_Outline] = []
        for precision, experts in classes.items():
            chip = [i for i in experts if i not in taken]
            away = [i for i in experts if i in taken]
            engines = min(streams[pool.chosen.index(precision)], len(away)) if away else 0
            homes: tuple[tuple[Home, list[int], int], ...] = (
                ("chip", chip, -(-len(chip) // SETS_MAX)),
                ("stream", away, engines),
            )
            for home, ids, number in homes:
                shares = self.sharing.shares(precision, home, tuple(ids), (0,) * number, inf) if ids else ()
                if shares is None:
                    return None
                found += [(precision, home, own, level) for own, level in shares]
        return found

    def grow(self, parts: list[_Part]) -> list[_Part]:
        """Let engines take steps, first those that alone hold up the launches most, while that is possible."""
        while True:
            busy = np.stack([part.busy.ravel() for part in parts])  # [P, layers * S]
            slowest = busy.argmax(axis=0)
            top = busy.max(axis=0)
            if not top.any():
                return parts  # no token wants these experts
            # how much sooner launches would be done without each engine
            alone = top - np.partition(busy, -2, axis=0)[-2] if len(parts) > 1 else top
            costs = np.bincount(slowest, alone, len(parts)) / top.sum(dtype=np.float64)
            steps = (step for i in np.argsort(-costs) if costs[i] >= MATTERS for step in self.steps(parts, parts[i]))
            chosen = next((candidate for candidate in steps if self.holds(candidate)), None)
            if chosen is None:
                return parts
            parts = chosen

    def steps(self, parts: list[_Part], slow: _Part) -> Iterator[list[_Part]]:
        """What makes an engine faster: its next datapath that does, or else one engine more to share with.

        Two datapaths are equally fast, one with its products in DSP slices, one in logic: first the one that leaves
        more of what is short.
        """
        precision, home = slow.precision, slow.home
        others = [part for part in parts if part is not slow]
        for levels in self.chip.faster(precision, home, slow.option.cycles):
            larger = [self.part(precision, home, slow.experts, level) for level in levels]
            if larger[0].cycles <= STEP_GAIN * slow.cycles:
                yield from sorted(([*others, part] for part in larger), key=self.pressure)
                break
        group = [part for part in parts if (part.precision, part.home) == (precision, home)]
        if sum(len(part.experts) for part in group) <= len(group):
            return
        rest = [part for part in parts if part not in group]
        around = [part.option.counts for part in rest]
        beside = sum(part.home == "stream" for part in rest)
        used = self.chip.need([part.option.counts for part in parts], sum(part.home == "stream" for part in parts))
        spare = [there - taken for there, taken in zip(self.chip.limits, used, strict=True)][:3]
        experts = tuple(sorted((i for part in group for i in part.experts), key=self.traffic.place.__getitem__))
        wanted = COPY_GAIN * max(part.cycles for part in group)
        chain = self.chip.chain(precision, home, len(slow.experts))
        for levels in reversed(self.chip.faster(precision, home, inf)):
            found = []
            for level in levels:
                if any(map(gt, chain[level].counts, spare)):
                    continue
                shares = self.sharing.shares(precision, home, experts, (*(part.level for part in group), level), wanted)
                if shares is None:
                    return  # a smaller one is no better
                counts = [self.chip.chain(precision, home, len(ids))[own].counts for ids, own in shares]
                if not self.chip.holds([*around, *counts], beside + (home == "stream") * len(counts)):
                    continue
                made = [self.part(precision, home, ids, own) for ids, own in shares]
                if max(part.cycles for part in made) <= wanted:
                    found.append([*rest, *made])
            yield from sorted(found, key=self.pressure)

    def pressure(self, parts: Sequence[_Part]) -> float:
        return self.chip.pressure([part.option.counts for part in parts], sum(part.home == "stream" for part in parts))

    def fill(self, parts: list[_Part]) -> list[_Part]:
        """Move experts from streams to the chip, the most wasteful first, while they fit and make no plan slower."""
        for stream in sorted((p for p in parts if p.home == "stream"), key=lambda p: -p.cycles):
            chips = [p for p in parts if p.home == "chip" and p.precision == stream.precision]
            home = min(chips, key=lambda p: p.cycles, default=None)
            if home is None:
                continue
            number = min(len(stream.experts) - 1, SETS_MAX - len(home.experts))
            while number:
                moved = [
                    self.part(stream.precision, "stream", stream.experts[number:], stream.level),
                    self.part(home.precision, "chip", (*home.experts, *stream.experts[:number]), home.level),
                ]
                candidate = [*(p for p in parts if p is not stream and p is not home), *moved]
                if moved[1].cycles <= max(p.cycles for p in parts) and self.holds(candidate):
                    parts = candidate
                    break
                number //= 2
        return parts

    def cycles(self, parts: Sequence[_Part]) -> float:
        """Expected cycles of a batch through all layers: the mean over the sampled batches of the slowest engine's."""
        words = self.chip.shape.d_model // 8
        launch = np.max(
            [self.traffic.busy(p.experts, p.option.cycles, p.option.load, p.option.start) for p in parts], axis=0
        )
        fetched = sum(self.traffic.busy(p.experts, 0, p.option.load, 0.0) for p in parts if p.option.load)
        vectors = self.traffic.counts.sum(axis=1)[0] / self.traffic.layers
        ports = vectors * (words + RESULT_GAP)
        target = self.chip.target
        per_cycle = target.ddr_bytes_per_s / ((target.clock_mhz or 1.0) * 1e6)
        ddr = (8 * fetched + vectors * 8 * (2 * words + 1)) / per_cycle
        total = float(np.maximum(np.maximum(launch, ports), ddr).mean(axis=1, dtype=np.float64).sum())
        return total + self.traffic.layers * overhead(words, self.chip.port)

    def plan(self, parts: list[_Part], workload: Workload) -> EnginePlan:
        parts = sorted(parts, key=lambda part: (part.precision, part.home, part.experts))
        classes: list[EngineClass] = []
        for part in parts:
            copy = sum(spec.precision == part.precision for spec in classes)
            pe, simd, products = part.option.pe, part.option.simd, part.option.products
            experts = tuple(sorted(self.traffic.experts[i] for i in part.experts))
            classes.append(EngineClass(part.precision, pe, simd, simd, pe, experts, copy, part.home, products))
        around = shell(classes, self.chip.shape, self.chip.version)
        resources = tuple(Resources(*part.option.counts, tool="model") for part in parts)
        excess = sum(resources, around).excess(self.chip.target)
        streams = sum(spec.streamed for spec in classes)
        if streams > self.chip.streams:
            excess.append(f"memory_ports: {streams + 1} of {self.chip.streams + 1}")
        share = workload.tokens / workload.batch
        return EnginePlan(
            self.chip.target.part or "",
            self.chip.target.clock_mhz or 0.0,
            self.chip.shape,
            tuple(classes),
            resources,
            around,
            tuple(float(self.traffic.vectors[list(part.experts)].sum()) * share for part in parts),
            workload.tokens,
            workload.batch,
            self.cycles(parts),
            tuple(excess),
        )
