"""How experts of one width are shared out over engines."""

from collections.abc import Sequence
from functools import cache
from itertools import product
from math import inf

from wattbit.hls.engine_class import SETS_MAX

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
