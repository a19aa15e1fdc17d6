"""Which experts have their weights on the chip, where not all fit, and which are streamed, through how many ports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from operator import mul

import numpy as np
from numpy.typing import NDArray

from wattbit.hls.datapaths import Chip, Option
from wattbit.hls.engine_class import Home
from wattbit.hls.shares import ways
from wattbit.hls.teams import smallest
from wattbit.hls.traffic import Traffic
from wattbit.plan import Precision

CHIP_SHARE = 0.97  # of the block RAM that experts and datapaths may take at first: more of either rounds up
BRAM18_BITS = 18432
ROUNDS = 4  # of streaming more until a choice fits; one that takes more rounds streams far more than it promised


@dataclass(frozen=True)
class Group:
    """Experts of one width and home, and how many engines they get: 0 for as many as pay."""

    precision: Precision
    home: Home
    experts: tuple[int, ...]
    engines: int = 0


@dataclass(frozen=True, eq=False)
class Pool:
    """Experts of the widths that may stream, the least wasteful first. bits: of them and those before."""

    chosen: tuple[Precision, ...]
    ids: NDArray[np.int64]
    width: NDArray[np.int64]  # index into `chosen`
    bits: NDArray[np.int64]
    busy: NDArray[np.float64]  # cycles a batch
    total: int  # bits of all experts, streamed or not
    slots: tuple[int, ...]  # BRAM18 of a stream of each chosen width


@dataclass(frozen=True, eq=False)
class Mixtures:
    """Of a chip under some traffic."""

    chip: Chip
    traffic: Traffic

    def proposed(self, classes: Mapping[Precision, tuple[int, ...]], products: int) -> list[list[Group]]:
        """Groups that fit, with their smallest datapaths, for the most promising choices of what streams.

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
            pool = Pool(chosen, ids[order], width[order], bits[order].cumsum(), busy[order], everything, slots)
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

    def whole(self, classes: Mapping[Precision, tuple[int, ...]]) -> list[list[Group]]:
        """Groups, whether they fit or not, for each choice of widths all of whose experts one engine streams."""
        choices = (some for n in range(1, self.chip.streams + 1) for some in combinations(classes, n))
        return [
            [Group(p, "stream", ids, 1) if p in some else Group(p, "chip", ids) for p, ids in classes.items()]
            for some in choices
        ]

    def rates(self, option: Option, experts: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cycles a batch that streaming wastes, and all that it takes, for each expert, on a datapath."""
        busy = self.traffic.times(option.cycles, option.load)[1][list(experts)]
        return busy - self.traffic.times(option.cycles, 0)[1][list(experts)], busy

    def streamed(self, pool: Pool, streams: tuple[int, ...], more: int) -> int:
        """How many of the pool must be streamed: so many that the rest and the streams' slots leave `more` BRAM18."""
        room = self.chip.limits[3] * CHIP_SHARE - sum(map(mul, streams, pool.slots)) - more
        return int(pool.bits.searchsorted(pool.total - room * BRAM18_BITS)) + 1

    def fitting(
        self,
        classes: Mapping[Precision, tuple[int, ...]],
        pool: Pool,
        streams: tuple[int, ...],
        levels: Mapping[Precision, int],
    ) -> list[Group]:
        """The choice's groups with as many experts streamed as it takes to fit; none if all are too few.

        levels: of the datapaths whose block RAM is to fit.
        """
        more = 0
        for _ in range(ROUNDS):
            count = self.streamed(pool, streams, more)
            away = dict(zip(pool.chosen, np.bincount(pool.width[:count], minlength=len(streams)).tolist(), strict=True))
            engines = dict(zip(pool.chosen, streams, strict=True))
            sizes: list[tuple[Precision, Home, int]] = []
            for precision, experts in classes.items():
                gone = away.get(precision, 0)
                if gone < len(experts):
                    sizes.append((precision, "chip", len(experts) - gone))
                sizes += [(precision, "stream", 1)] * min(engines.get(precision, 0), gone)
            chains = [self.chip.chain(*size) for size in sizes]
            larger = [chain[levels[size[0]]].counts for chain, size in zip(chains, sizes, strict=True)]
            short = self.chip.need(larger)[3] - self.chip.limits[3]
            if short <= 0 and smallest([self.chip.counts(*size) for size in sizes], self.chip.room):
                return self.split(classes, pool, streams, count)
            if count > len(pool.ids):
                break
            more += max(1, short)
        return []

    def split(
        self, classes: Mapping[Precision, tuple[int, ...]], pool: Pool, streams: tuple[int, ...], count: int
    ) -> list[Group]:
        """The groups with `count` of the pool streamed."""
        taken = set(pool.ids[:count].tolist())
        found = []
        for precision, experts in classes.items():
            chip = tuple(i for i in experts if i not in taken)
            away = tuple(i for i in experts if i in taken)
            if chip:
                found.append(Group(precision, "chip", chip))
            if away:
                found.append(Group(precision, "stream", away, min(streams[pool.chosen.index(precision)], len(away))))
        return found
