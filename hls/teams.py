"""Teams: the engines, like and unlike, that a class of experts may get, what they take and how long they need.

A team shares its experts well where it has few engines or many vectors. With V vectors in a launch on engines of
c_1, ..., c_k cycles a vector, each gets a share p_i = 1/(c_i R) of them, R = sum 1/c_i, give or take
sqrt(V p_i (1 - p_i)), and the slowest is expected to take

    V / R + e_k mean_i c_i sqrt(V p_i (1 - p_i))

cycles, e_k being the expected largest of k normal draws. That is near enough to choose the teams worth a full price.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations_with_replacement, product

import numpy as np
from numpy.typing import NDArray

LARGEST = (0.0, 0.0, 0.5642, 0.8463, 1.0294, 1.163, 1.2672, 1.3522, 1.4236)
"""Expected largest of so many normal draws."""
UNLIKE = 4  # engines of a team that may all differ
PACES = 4  # the fastest, of which engines of a team may be
MOST = 8  # engines of a team
LOOKED_AT = 100  # teams of a table, the fastest, in an exchange
EXCHANGES = 6  # with each other table that are proposed
SLOWER = 1.2  # times the slowest team's cycles, which the one that is to be slower may be expected to take
# What LUTs (and flip-flops), DSPs and block RAM may be worth beside each other.
PRICES = tuple((lut, 0.1 * lut, 1 - lut, ram) for lut, ram in product((0.03, 0.25, 0.5, 0.75, 0.97), (0.05, 1.0)))

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]


@cache
def members(paces: int, most: int) -> tuple[Ints, Ints]:
    """Levels [J, K] of the engines of every team of at most `most`, -1 for none, and how many they are.

    Two levels a pace, the fastest last. Any one engine is a team; several are of the fastest paces; of more than
    UNLIKE all but one are of the fastest.
    """
    levels = range(2 * paces)
    fast = levels[-2 * PACES :]
    found: list[tuple[int, ...]] = [(level,) for level in levels]
    for number in range(2, min(most, UNLIKE) + 1):
        found += combinations_with_replacement(fast, number)
    for number in range(UNLIKE + 1, most + 1):
        many = [((levels[-2],) * (number - 1 - n) + (levels[-1],) * n) for n in range(number)]
        found += sorted({tuple(sorted((*team, one))) for team in many for one in fast})
    return _array(found)


@cache
def streaming(paces: int, number: int) -> tuple[Ints, Ints]:
    """As `members`, teams of so many engines: one or two of any pace, more of one pace or of the fastest."""
    if number <= 2:
        return _array(list(combinations_with_replacement(range(2 * paces), number)))
    alike = {tuple(2 * pace + (i < n) for i in range(number)) for pace in range(paces) for n in range(number + 1)}
    unlike = combinations_with_replacement(range(2 * paces)[-2 * PACES :], min(number, UNLIKE))
    teams = {tuple(sorted(team)) for team in alike} | {(*team[:1] * (number - len(team)), *team) for team in unlike}
    return _array(sorted(teams))


def _array(teams: Sequence[tuple[int, ...]]) -> tuple[Ints, Ints]:
    sizes = np.array([len(team) for team in teams])
    return np.array([(*team, *(-1,) * (int(sizes.max()) - len(team))) for team in teams]), sizes


@dataclass(frozen=True, eq=False)
class Pace:
    """Of teams: a launch of V vectors is expected to take V * each + sqrt(V) * spread + start cycles."""

    each: Floats
    spread: Floats
    start: Floats

    @classmethod
    def of(cls, teams: Ints, sizes: Ints, cycles: Floats, start: Floats) -> "Pace":
        """cycles: a vector's, by level; start: before the first."""
        used = teams >= 0
        c = np.where(used, cycles[teams], np.inf)
        each = 1 / (1 / c).sum(axis=1)
        inside = np.where(used, c * each[:, None] - each[:, None] ** 2, 0.0).clip(0)
        return cls(
            each,
            np.array(LARGEST)[sizes] * np.sqrt(inside).sum(axis=1) / sizes,
            np.where(used, start[teams], 0).max(axis=1),
        )

    def time(self, vectors: float) -> Floats:
        """Cycles [teams] of a launch of so many vectors."""
        return vectors * self.each + vectors**0.5 * self.spread + self.start

    def expected(self, team: int, vectors: Vectors | Floats) -> Floats:
        """Cycles of one team in launches of so many vectors."""
        return vectors * self.each[team] + np.sqrt(vectors) * self.spread[team] + (vectors > 0) * self.start[team]


@dataclass(frozen=True, eq=False)
class Table:
    """Teams [J, K] of levels, -1 for none, for experts of one width and home.

    counts [J, 4]: LUT, FF, DSP and BRAM18. time [J]: cycles of a launch. limits: of the chip.
    """

    teams: Ints
    counts: Ints
    time: Floats
    limits: tuple[int, int, int, int]
    pace: Pace

    def levels(self, team: int) -> tuple[int, ...]:
        """Of a team's engines, the slowest first."""
        return tuple(level for level in self.teams[team].tolist() if level >= 0)

    @cached_property
    def stairs(self) -> list[tuple[Ints, Floats, Ints]]:
        """For each of PRICES the teams than which none as fast costs less, the fastest first; their time and counts."""
        order = np.argsort(self.time, kind="stable")
        share = self.counts[order] / np.maximum(self.limits, 1)
        cost = share @ np.array(PRICES).T
        least = np.minimum.accumulate(cost, axis=0)
        first = np.ones(cost.shape, bool)
        first[1:] = cost[1:] < least[:-1]
        found = (order[first[:, i]] for i in range(cost.shape[1]))
        return [(teams, self.time[teams], self.counts[teams]) for teams in found]


def choices(tables: Sequence[Table], scales: Sequence[float], room: Ints) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Teams of each table that fit the room [4] together, one choice for each of PRICES.

    scales: of the tables' times. A key has none that is faster than the slowest asks for; its value those that are, by
    what is left of the room.
    """
    found = {}
    for at in range(len(PRICES)):
        teams, times, counts = zip(*(table.stairs[at] for table in tables), strict=True)
        if (sum(one[-1] for one in counts) > room).any():
            continue
        times = tuple(time * scale for time, scale in zip(times, scales, strict=True))
        grid = np.sort(np.concatenate(times))
        grid = grid[grid.searchsorted(max(time[0] for time in times)) :]
        steps = [time.searchsorted(grid, "right") - 1 for time in times]
        need = sum(one[step] for one, step in zip(counts, steps, strict=True))
        first = int((need <= room).all(axis=1).argmax())
        lean = [int(step[first]) for step in steps]
        full, spare = lean.copy(), room - need[first]
        for g in sorted(range(len(tables)), key=lambda g: -times[g][lean[g]]):
            more = counts[g][: lean[g] + 1] - counts[g][lean[g]]
            full[g] = int((more <= spare).all(axis=1).argmax())
            spare = spare - more[full[g]]
        key, value = (tuple(int(one[step]) for one, step in zip(teams, some, strict=True)) for some in (lean, full))
        found[key] = value
    return found


def exchanges(
    tables: Sequence[Table], scales: Sequence[float], team: Sequence[int], faster: int, room: Ints
) -> list[tuple[int, ...]]:
    """`team` with a faster one of table `faster` and a slower one of another, which fit the room [4] together.

    For each other the EXCHANGES that are expected to take least; in all, those first. scales: as for `choices`.
    """
    times = [table.time * scale for table, scale in zip(tables, scales, strict=True)]
    before = [float(time[at]) for time, at in zip(times, team, strict=True)]
    spare = room - sum(table.counts[at] for table, at in zip(tables, team, strict=True))
    found = []
    for slower in (g for g in range(len(tables)) if g != faster):
        left = spare + tables[faster].counts[team[faster]] + tables[slower].counts[team[slower]]
        least = max((before[g] for g in range(len(tables)) if g not in (faster, slower)), default=0.0)
        some = []
        for g, low, high in ((faster, 0.0, before[faster]), (slower, before[slower], SLOWER * max(before))):
            fits = (tables[g].counts <= left).all(axis=1) & (times[g] > low) & (times[g] < high)
            at = np.flatnonzero(fits)
            some.append(at[np.argsort(times[g][at], kind="stable")[:LOOKED_AT]])
        one, two = some
        fits = (tables[faster].counts[one][:, None] + tables[slower].counts[two] <= left).all(axis=2)
        time = np.where(fits, np.maximum(times[faster][one][:, None], times[slower][two]), np.inf)
        for at in np.argsort(time, axis=None, kind="stable")[: min(EXCHANGES, int(fits.sum()))].tolist():
            i, j = divmod(at, two.size)
            other = list(team)
            other[faster], other[slower] = int(one[i]), int(two[j])
            found.append((max(float(time[i, j]), least), tuple(other)))
    return [other for _, other in sorted(found)]


def smallest(counts: Sequence[Ints], room: Ints) -> tuple[int, ...] | None:
    """A row of each table [J, 4] that fit the room [4] together; None only where no such rows are.

    The first of each if those fit. Else, table by table, of the sums that leave room for the others those are kept than
    which none is less in everything.
    """
    if (sum(one[0] for one in counts) <= room).all():
        return (0,) * len(counts)
    sums, rows = np.zeros((1, 4), np.int64), np.zeros((1, 0), np.int64)
    left = room - sum(one.min(axis=0) for one in counts)
    for one in counts:
        left = left + one.min(axis=0)
        every = (sums[:, None] + one).reshape(-1, 4)
        fitting = np.flatnonzero((every <= left).all(axis=1))
        kept = fitting[_least(every[fitting])]
        sums, rows = every[kept], np.column_stack((rows[kept // len(one)], kept % len(one)))
    return tuple(rows[0].tolist()) if len(rows) else None


def _least(points: Ints) -> Ints:
    """Which of the points [N, 4] are kept, if each goes that is nowhere less than one of these."""
    left = np.unique(points, axis=0, return_index=True)[1]  # in order, so that none is less than one before it
    found = []
    while left.size:
        found.append(left[0])
        left = left[(points[left] < points[left[0]]).any(axis=1)]
    return np.array(found, np.int64)
