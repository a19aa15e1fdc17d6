"""The search for the fastest engines of an allocation that a chip holds.

Which experts are streamed, where not all fit on the chip, `hls.mixtures` proposes. For each proposal `hls.teams` says
how many engines, and which, each width may get, by what they are expected to take. The most promising choices are
priced on sampled batches, and the best of those improved: a width for which launches wait gets faster engines while
they fit, if need be by another's getting slower ones, and free block RAM takes more experts from the streams.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import log2

import numpy as np

from wattbit.hls.cycles import RESULT_GAP, overhead
from wattbit.hls.datapaths import Chip, Option
from wattbit.hls.engine_class import SETS_MAX, Home
from wattbit.hls.mixtures import BRAM18_BITS, Group, Mixtures
from wattbit.hls.shares import Shares, divide
from wattbit.hls.teams import MOST, Pace, Table, choices, exchanges, members, smallest, streaming
from wattbit.hls.traffic import Floats, Traffic
from wattbit.plan import Precision

ROOM_FOR = (16, 64, 256)  # products a cycle of a layer, of datapaths for which the choice of streams leaves room
ROOMY = 0.85  # of the block RAM, with which no experts are streamed if none must be
TRIED = 8  # choices of teams that are priced
ALIKE = 2  # of them at most, for the same experts on the chip
IMPROVED = 3  # of what was priced, the fastest, that is improved
ROUNDS = 6  # of improvement at most
CANDIDATES = 6  # faster teams that a width tries in each
STEP_GAIN = 0.995  # a better team must bring the launches' time below this share
WAITING = 2  # widths, those for which launches wait longest, for which another may take a slower team
MATTERS = 0.005  # a width for which launches wait less of their time takes no better team
FILLS = 4  # rounds of filling free block RAM
SEARCH_BATCHES = 64  # sampled batches that the search looks at; the plan's time is of all
GRAINS = 32  # the finest shares of experts for which a team's block RAM is looked at
TABLES = 1024  # that a chip remembers, some 30 KB each


@dataclass(frozen=True, eq=False)
class Part:
    """One engine in the making: its experts and its datapath, a level of its chain.

    busy: its cycles in each launch of the first sampled batches. cycles: their mean, summed over the layers.
    """

    precision: Precision
    home: Home
    experts: tuple[int, ...]
    level: int
    option: Option
    busy: Floats
    cycles: float


@dataclass(frozen=True, eq=False)
class Search:
    """The search for one allocation's engines; what it has tried it remembers, for it tries much again."""

    chip: Chip
    traffic: Traffic
    made: dict[tuple[Precision, Home, tuple[int, ...], int], Part] = field(default_factory=dict)
    tables: dict[Group, tuple[Table, float]] = field(default_factory=dict)
    chosen: dict[tuple[Group, ...], dict[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    shared: dict[tuple[Group, tuple[int, ...]], Shares] = field(default_factory=dict)

    def best(self, classes: Mapping[Precision, tuple[int, ...]]) -> list[Part]:
        """The fastest engines found; they do not fit if none does."""
        everything = [Group(precision, "chip", experts) for precision, experts in classes.items()]
        found = self.fastest([everything])
        if found and self.chip.need([part.option.counts for part in found])[3] <= ROOMY * self.chip.limits[3]:
            return found
        mixtures = Mixtures(self.chip, self.traffic)
        proposed = {tuple(groups): groups for products in ROOM_FOR for groups in mixtures.proposed(classes, products)}
        streamed = self.fastest(list(proposed.values()))
        if found is None and streamed is None:
            streamed = self.fastest(mixtures.whole(classes))
        if found is None and streamed is None:
            return [self.part(group.precision, "chip", group.experts, 0) for group in everything]
        return min((parts for parts in (found, streamed) if parts), key=self.rank)

    def fastest(self, mixtures: Sequence[Sequence[Group]]) -> list[Part] | None:
        """The fastest engines of any of the mixtures of experts; None if none fits."""
        hopes = [hope for groups in mixtures for hope in self.hopes(groups)]
        tried: list[tuple[tuple[float, int], list[Part], Sequence[Group], tuple[int, ...]]] = []
        priced: Counter[int] = Counter()
        for _, groups, team in sorted(hopes, key=lambda one: one[0]):
            if len(tried) == TRIED:
                break
            if priced[id(groups)] < ALIKE and self.holds(parts := self.parts(groups, team)):
                priced[id(groups)] += 1
                tried.append((self.rank(parts), parts, groups, team))
        for groups in () if tried else mixtures:
            if plain := self.plainest(groups):
                parts = self.parts(groups, plain)
                tried.append((self.rank(parts), parts, groups, plain))
        tried.sort(key=lambda one: one[0])
        distinct: dict[int, tuple[list[Part], Sequence[Group], tuple[int, ...]]] = {}
        for _, parts, groups, team in tried:
            distinct.setdefault(id(groups), (parts, groups, team))
        found = []
        for parts, groups, team in list(distinct.values())[:IMPROVED]:
            steps = self.improved(parts, groups, team)
            found.append(steps[-1])
            if any(group.home == "stream" for group in groups):
                found += [more for some in (*steps, self.lean(groups)) if some for more in self.refilled(some)]
        best = min(found, key=self.rank, default=None)
        return best and min([best, *self.refilled(best)], key=self.rank)

    def hopes(self, groups: Sequence[Group]) -> list[tuple[float, Sequence[Group], tuple[int, ...]]]:
        """Teams for the groups and what a batch is expected to take, the fastest first."""
        teams = dict.fromkeys(self.choices(groups).values())
        return sorted(((self.expected(groups, team), groups, team) for team in teams), key=lambda one: one[0])

    def choices(self, groups: Sequence[Group]) -> dict[tuple[int, ...], tuple[int, ...]]:
        """See `hls.teams`."""
        key = tuple(groups)
        if key not in self.chosen:
            tables, scales = zip(*map(self.table, groups), strict=True)
            self.chosen[key] = choices(tables, scales, self.chip.room)
        return self.chosen[key]

    def plainest(self, groups: Sequence[Group]) -> tuple[int, ...] | None:
        """The fastest teams of one engine a group, or of as many as stream, that fit together; None if none do."""
        tables, scales = zip(*map(self.table, groups), strict=True)
        plain = [
            np.flatnonzero((table.teams >= 0).sum(axis=1) == (group.engines or 1))
            for table, group in zip(tables, groups, strict=True)
        ]
        times = [table.time[rows] * scale for table, rows, scale in zip(tables, plain, scales, strict=True)]

        def within(most: float) -> tuple[int, ...] | None:
            """Teams that take at most so many cycles, or those of their group that take fewest."""
            some = [rows[time <= max(most, time.min())] for rows, time in zip(plain, times, strict=True)]
            found = smallest([table.counts[rows] for table, rows in zip(tables, some, strict=True)], self.chip.room)
            return found and tuple(int(rows[at]) for rows, at in zip(some, found, strict=True))

        grid = np.unique(np.concatenate(times)).tolist()
        return within(grid[min(bisect_left(grid, True, key=lambda most: within(most) is not None), len(grid) - 1)])

    def lean(self, groups: Sequence[Group]) -> list[Part] | None:
        """Engines that leave much block RAM, as fast as the slowest asks for; None if none fits."""
        some = (self.parts(groups, team) for team in self.choices(groups))
        fitting = [parts for parts in some if self.holds(parts)]
        return min(fitting, key=lambda parts: sum(part.option.counts[3] for part in parts), default=None)

    def refilled(self, parts: list[Part]) -> list[list[Part]]:
        """Engines, if any, with more experts on the chip, as there is block RAM for them."""
        filled = self.fill(parts)
        if filled is parts:
            return []
        groups = self.groups(filled)
        for _, _, team in self.hopes(groups):
            if self.holds(made := self.parts(groups, team)):
                return [filled, self.improved(made, groups, team)[-1]]
        return [filled]

    def expected(self, groups: Sequence[Group], team: Sequence[int]) -> float:
        """Cycles of a batch by the teams' paces, on the first sampled batches."""
        busy = [
            self.table(group)[0].pace.expected(at, self.traffic.brought(group.experts)[:, :SEARCH_BATCHES])
            for group, at in zip(groups, team, strict=True)
        ]
        return float(np.max(busy, axis=0).sum()) / busy[0].shape[1]

    def improved(self, parts: list[Part], groups: Sequence[Group], team: Sequence[int]) -> list[list[Part]]:
        """These engines and ever faster ones, where a group that holds up the launches has got a faster team."""
        found = [parts]
        while len(found) <= ROUNDS and (better := next(self.faster(found[-1], groups, team), None)):
            team = better[1]
            found.append(better[0])
        return found

    def faster(
        self, parts: Sequence[Part], groups: Sequence[Group], team: Sequence[int]
    ) -> Iterator[tuple[list[Part], Sequence[int]]]:
        """Engines that are faster than these, and their teams: one group's exchanged, or that of another for it."""
        least = self.slowest(parts)
        for other in self.others(parts, groups, team):
            made = self.parts(groups, other)
            if self.holds(made) and self.slowest(made) < STEP_GAIN * least:
                yield made, other

    def others(self, parts: Sequence[Part], groups: Sequence[Group], team: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Teams worth trying in place of these, which have a faster one for a group that launches wait for."""
        tables, scales = zip(*map(self.table, groups), strict=True)
        waiting = self.waiting(parts, groups)
        counts = np.array([table.counts[at] for table, at in zip(tables, team, strict=True)])
        spare = self.chip.room - counts.sum(axis=0)
        for i in waiting:
            time = tables[i].time
            fits = (tables[i].counts <= counts[i] + spare).all(axis=1) & (time < time[team[i]])
            for at in sorted(np.flatnonzero(fits).tolist(), key=time.__getitem__)[:CANDIDATES]:
                yield (*team[:i], at, *team[i + 1 :])
        for i in waiting[:WAITING]:
            yield from exchanges(tables, scales, team, i, self.chip.room)[:CANDIDATES]

    def waiting(self, parts: Sequence[Part], groups: Sequence[Group]) -> list[int]:
        """Groups for which launches wait, first that for which they wait longest."""
        index = {(group.precision, group.home): i for i, group in enumerate(groups)}
        busy = np.zeros((len(groups), parts[0].busy.size), np.float32)
        for part in parts:
            at = index[part.precision, part.home]
            np.maximum(busy[at], part.busy.ravel(), out=busy[at])
        if len(groups) == 1:
            return [0]
        second = np.partition(busy, -2, axis=0)[-2]
        costs = (busy - second).clip(0).sum(axis=1)
        return [i for i in np.argsort(-costs).tolist() if costs[i] > MATTERS * busy.max(axis=0).sum()]

    def table(self, group: Group) -> tuple[Table, float]:
        """The teams that a group may get, and what to multiply the table's times by."""
        if group not in self.tables:
            vectors = self.traffic.launched(group.experts)
            if group.home == "stream":
                self.tables[group] = self.streaming(group, vectors), 1.0
            else:
                octave = 2.0 ** round(log2(vectors)) if vectors else 1.0
                key = (group.precision, len(group.experts), octave)
                if len(self.chip.tables) > TABLES:
                    self.chip.tables.clear()
                if key not in self.chip.tables:
                    self.chip.tables[key] = self.on_chip(*key)
                self.tables[group] = self.chip.tables[key], vectors / octave or 1.0
        return self.tables[group]

    def streaming(self, group: Group, vectors: float) -> Table:
        """Teams that stream a group's experts, which take so many vectors of a launch."""
        chain = self.chip.chain(group.precision, "stream", 1)
        teams, sizes = streaming(len(chain) // 2, group.engines)
        cycles = np.array([self.total(group.experts, option) for option in chain])
        cycles = cycles / self.traffic.brings(group.experts) if vectors else np.ones(len(chain))
        pace = Pace.of(teams, sizes, cycles, np.array([option.start for option in chain]))
        counts = self.chip.counts(group.precision, "stream", 1)[teams].sum(axis=1)
        return Table(teams, counts, pace.time(vectors), self.chip.limits, pace)

    def on_chip(self, precision: Precision, experts: int, vectors: float) -> Table:
        """Teams for so many experts, which share them as they are fast, and so many vectors of a launch."""
        chain = self.chip.chain(precision, "chip", 1)
        paces = 1 + max((level // 2 for level, one in enumerate(chain) if self.chip.holds([one.counts], 0)), default=0)
        teams, sizes = members(paces, min(experts, MOST))
        pace = Pace.of(
            teams, sizes, np.array([float(one.cycles) for one in chain]), np.array([one.start for one in chain])
        )
        counts, grain = np.zeros((len(teams), 4), np.int64), -(-experts // GRAINS)
        share = np.array([1.0 / one.cycles for one in chain])[teams] * (teams >= 0)
        sets = np.ceil(np.rint(experts * share / share.sum(axis=1, keepdims=True)) / grain).clip(1) * grain
        sets = np.minimum(sets, experts).astype(np.int64)
        for number in np.unique(sets[teams >= 0]).tolist():
            taken = self.chip.counts(precision, "chip", number)
            rows, columns = np.nonzero((sets == number) & (teams >= 0))
            np.add.at(counts, rows, taken[teams[rows, columns]])
        return Table(teams, counts, pace.time(vectors), self.chip.limits, pace)

    def total(self, experts: tuple[int, ...], option: Option) -> float:
        """Cycles a batch that these experts keep an engine busy."""
        return float(self.traffic.times(option.cycles, option.load)[1][list(experts)].sum())

    def parts(self, groups: Sequence[Group], team: Sequence[int]) -> list[Part]:
        """The engines of one team for each group."""
        found = []
        for group, at in zip(groups, team, strict=True):
            levels = self.table(group)[0].levels(at)
            found += [self.part(group.precision, group.home, *share) for share in self.shares(group, levels)]
        return found

    def shares(self, group: Group, levels: tuple[int, ...]) -> Shares:
        """Experts of a group's engines at these levels."""
        key = (group, levels)
        if key not in self.shared:
            chain = self.chip.chain(group.precision, group.home, 1)
            times = [self.traffic.mean(chain[level].cycles, chain[level].load) for level in levels]
            self.shared[key] = divide(group.experts, self.traffic.layers_of, times, levels)
        return self.shared[key]

    def slowest(self, parts: Sequence[Part]) -> float:
        """Cycles a batch of the slowest engine, or the port, in each launch, on the first sampled batches."""
        busy = np.maximum(np.max([part.busy for part in parts], axis=0), self.port)
        return float(busy.sum()) / parts[0].busy.shape[1]

    def rank(self, parts: Sequence[Part]) -> tuple[float, int]:
        """The lower the better: faster, or as fast with fewer LUTs."""
        return self.slowest(parts), sum(part.option.counts[0] for part in parts)

    @cached_property
    def port(self) -> float:
        """Cycles that the port of the packets and results is busy in a launch."""
        vectors = float(self.traffic.counts.sum(axis=1)[0]) / self.traffic.layers
        return vectors * (self.chip.shape.d_model // 8 + RESULT_GAP)

    def groups(self, parts: Sequence[Part]) -> list[Group]:
        """What engines of one width and home have in common."""
        found: dict[tuple[Precision, Home], list[Part]] = {}
        for part in parts:
            found.setdefault((part.precision, part.home), []).append(part)
        return [
            Group(
                *key,
                tuple(sorted((i for part in some for i in part.experts), key=self.traffic.place.__getitem__)),
                len(some) if key[1] == "stream" else 0,
            )
            for key, some in found.items()
        ]

    def holds(self, parts: Sequence[Part]) -> bool:
        """Whether the target holds the engines and their shell."""
        return self.chip.holds([part.option.counts for part in parts], sum(part.home == "stream" for part in parts))

    def part(self, precision: Precision, home: Home, experts: tuple[int, ...], level: int) -> Part:
        """An engine at a level of its chain, and how busy the first sampled batches keep it."""
        key = (precision, home, experts, level)
        if key not in self.made:
            option = self.chip.chain(precision, home, len(experts))[level]
            busy = self.traffic.busy(experts, option.cycles, option.load, option.start, SEARCH_BATCHES)
            self.made[key] = Part(precision, home, experts, level, option, busy, float(busy.sum()) / busy.shape[1])
        return self.made[key]

    def fill(self, parts: list[Part]) -> list[Part]:
        """Move experts from streams to the chip while they fit there.

        From the busiest stream to that of its width's engines which is busy least, their busiest experts first; that
        engine's mean cycles stay within those of the busiest of all.
        """
        weights = self.chip.shape.weights
        for _ in range(FILLS):
            before = parts
            for stream in sorted((p for p in parts if p.home == "stream"), key=lambda p: -p.cycles):
                chips = [p for p in parts if p.home == "chip" and p.precision == stream.precision]
                home = min(chips, key=lambda p: p.cycles, default=None)
                if home is None:
                    continue
                spare = self.chip.limits[3] - self.chip.need([p.option.counts for p in parts])[3]
                most = spare * BRAM18_BITS // (weights * stream.precision.weight_bits) + 1
                number = min(most, len(stream.experts) - 1, SETS_MAX - len(home.experts))
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
            if parts is before:
                break
        return parts

    def cycles(self, parts: Sequence[Part]) -> float:
        """Expected cycles of a batch through all layers: the mean over the sampled batches of the slowest engine's."""
        words = self.chip.shape.d_model // 8
        launch = np.max(
            [self.traffic.busy(p.experts, p.option.cycles, p.option.load, p.option.start) for p in parts], axis=0
        )
        fetched = sum(self.traffic.busy(p.experts, 0, p.option.load, 0.0) for p in parts if p.option.load)
        vectors = self.traffic.counts.sum(axis=1)[0] / self.traffic.layers
        target = self.chip.target
        per_cycle = target.ddr_bytes_per_s / ((target.clock_mhz or 1.0) * 1e6)
        ddr = (8 * fetched + vectors * 8 * (2 * words + 1)) / per_cycle
        total = float(np.maximum(np.maximum(launch, self.port), ddr).mean(axis=1, dtype=np.float64).sum())
        return total + self.traffic.layers * overhead(words, self.chip.port)
