"""How experts of one width are shared out over engines."""

from collections.abc import Sequence
from functools import cache
from itertools import product

from wattbit.hls.engine_class import SETS_MAX

Shares = tuple[tuple[tuple[int, ...], int], ...]
"""Experts of each engine and its level."""


@cache
def ways(groups: int, total: int) -> tuple[tuple[int, ...], ...]:
    """All ways to give each of `groups` at least one of at most `total`."""
    return tuple(some for some in product(range(1, total + 1), repeat=groups) if sum(some) <= total)


def divide(
    experts: tuple[int, ...], layer: Sequence[int], times: Sequence[Sequence[float]], levels: tuple[int, ...]
) -> Shares:
    """Experts of each engine. layer: every expert's. times: every expert's on each engine.

    A launch is one layer: each expert, the busiest first, goes to the engine with room that is done first with it and
    those of its layer; of several, to that with the fewest experts.
    """
    if len(levels) == 1:
        return ((experts, levels[0]),)
    ids: list[list[int]] = [[] for _ in levels]
    load: dict[int, list[float]] = {}
    roomy = list(enumerate(times))
    for expert in experts:
        mine = load.setdefault(layer[expert], [0.0] * len(levels))
        end, _, at = min((mine[i] + time[expert], len(ids[i]), i) for i, time in roomy)
        ids[at].append(expert)
        mine[at] = end
        if len(ids[at]) == SETS_MAX:
            roomy = [(i, time) for i, time in roomy if i != at]
    return tuple((tuple(own), level) for own, level in zip(ids, levels, strict=True) if own)
