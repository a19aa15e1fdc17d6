"""How experts of one width are shared out over engines."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from math import inf

from wattbit.hls.datapaths import Chip
from wattbit.hls.engine_class import SETS_MAX, Home
from wattbit.hls.traffic import Traffic
from wattbit.plan import Precision

Shares = tuple[tuple[tuple[int, ...], int], ...]
"""Experts of each engine and its level."""


@cache
def ways(groups: int, total: int) -> tuple[tuple[int, ...], ...]:
    """All ways to give each of `groups` at least one of at most `total`."""
    return tuple(some for some in product(range(1, total + 1), repeat=groups) if sum(some) <= total)


def divide(experts: tuple[int, ...], times: Sequence[Sequence[float]], levels: tuple[int, ...]) -> tuple[Shares, float]:
    """Experts of each engine, and the cycles of the slowest. times: every expert's on each engine."""
    if len(levels) == 1:
        return ((experts, levels[0]),), sum(map(times[0].__getitem__, experts))
    ids: list[list[int]] = [[] for _ in levels]
    load = [0.0] * len(levels)
    roomy = list(enumerate(times))
    for expert in experts:
        first, at = inf, 0
        for i, time in roomy:
            end = load[i] + time[expert]
            if end < first:
                first, at = end, i
        ids[at].append(expert)
        load[at] = first
        if len(ids[at]) == SETS_MAX:
            roomy = [(i, time) for i, time in roomy if i != at]
    return tuple((tuple(own), level) for own, level in zip(ids, levels, strict=True) if own), max(load)


@dataclass(frozen=True, eq=False)
class Sharing:
    """How a chip's engines share experts under some traffic; what it has tried it remembers."""

    chip: Chip
    traffic: Traffic
    _divided: dict[tuple[Precision, Home, tuple[int, ...], tuple[int, ...]], tuple[Shares, float]] = field(
        init=False, default_factory=dict
    )
    _totals: dict[tuple[tuple[int, ...], int, float], float] = field(init=False, default_factory=dict)

    def shares(
        self, precision: Precision, home: Home, experts: tuple[int, ...], levels: tuple[int, ...], wanted: float
    ) -> Shares | None:
        """Experts for engines at `levels`, those without any left out; None if these cannot hold the experts or the
        slowest would take more cycles a batch than wanted.

        Each expert, the busiest first, goes to the engine with room that is done with it first.
        """
        if len(experts) > SETS_MAX * len(levels):
            return None
        key = (precision, home, experts, levels)
        if key not in self._divided:
            chain = self.chip.chain(precision, home, 1)
            options = [(chain[level].cycles, chain[level].load) for level in levels]
            totals = [self._total(experts, option) for option in options]
            if all(totals) and 1 / sum(1 / total for total in totals) > wanted:
                return None
            self._divided[key] = divide(experts, [self.traffic.mean(*option) for option in options], levels)
        shares, longest = self._divided[key]
        return None if longest > wanted else shares

    def _total(self, experts: tuple[int, ...], option: tuple[int, float]) -> float:
        """Cycles a batch that these experts keep an engine of so many cycles a vector and a load busy."""
        key = (experts, *option)
        if key not in self._totals:
            self._totals[key] = sum(map(self.traffic.mean(*option).__getitem__, experts))
        return self._totals[key]
