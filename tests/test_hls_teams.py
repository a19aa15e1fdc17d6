"""Teams of engines: what they are expected to take is what draws take, choices fit, experts are shared by layer."""

from itertools import product

import numpy as np
import pytest

from wattbit.hls.shares import divide
from wattbit.hls.teams import LARGEST, MOST, Pace, Table, choices, exchanges, members, smallest, streaming

PACES = 5
CYCLES = np.repeat(1024.0 / 2 ** np.arange(PACES), 2)  # of each level: two a pace, the fastest last


def table(seed: int, vectors: float = 100.0) -> Table:
    """All teams of up to three engines, with random prices that grow with the pace."""
    teams, sizes = members(PACES, 3)
    pace = Pace.of(teams, sizes, CYCLES, np.zeros(len(CYCLES)))
    each = (np.random.default_rng(seed).uniform(0.5, 1.5, (len(CYCLES), 4)) * 1e5 / CYCLES[:, None]).astype(np.int64)
    counts = np.where(teams[..., None] >= 0, each[teams], 0).sum(axis=1)
    return Table(teams, counts, pace.time(vectors), (2000, 2000, 2000, 2000), pace)


def test_teams_are_distinct_and_of_the_size_asked_for() -> None:
    for most in (1, 2, 4, MOST):
        teams, sizes = members(PACES, most)
        assert len(np.unique(teams, axis=0)) == len(teams) and set(sizes.tolist()) == set(range(1, most + 1))
    for number in (1, 2, 3, 6):
        teams, sizes = streaming(PACES, number)
        assert len(np.unique(teams, axis=0)) == len(teams) and set(sizes.tolist()) == {number}
        assert (teams >= 0).all()


def test_the_largest_of_normal_draws() -> None:
    draws = np.random.default_rng(0).normal(size=(200_000, MOST))
    for number in range(1, MOST + 1):
        assert draws[:, :number].max(axis=1).mean() == pytest.approx(LARGEST[number], abs=0.01)


@pytest.mark.parametrize("levels", [(9, 9), (8, 9, 9), (4, 6, 8, 9), (7, 7, 7, 7)])
def test_the_slowest_engine_takes_what_is_expected(levels: tuple[int, ...]) -> None:
    """Vectors fall on engines at random, each as likely as it is fast."""
    teams, sizes = members(PACES, MOST)
    (at,) = np.flatnonzero((teams[:, : len(levels)] == levels).all(axis=1) & (sizes == len(levels)))
    pace = Pace.of(teams, sizes, CYCLES, np.zeros(len(CYCLES)))
    cycles = CYCLES[list(levels)]
    share = 1 / cycles / (1 / cycles).sum()
    for vectors in (32, 512):
        drawn = np.random.default_rng(1).multinomial(vectors, share, 4000) * cycles
        assert pace.time(vectors)[at] == pytest.approx(drawn.max(axis=1).mean(), rel=0.06)
        assert pace.expected(at, np.array([0.0, vectors])).tolist() == [0.0, pytest.approx(pace.time(vectors)[at])]


@pytest.mark.parametrize("seed", range(5))
def test_choices_fit_and_what_is_left_makes_them_no_slower(seed: int) -> None:
    tables, scales = [table(3 * seed + i) for i in range(3)], (1.0, 0.4, 2.0)
    room = np.array([9000, 12000, 9000, 15000])
    found = choices(tables, scales, room)
    assert found
    for lean, full in found.items():
        for some in (lean, full):
            assert (sum(one.counts[at] for one, at in zip(tables, some, strict=True)) <= room).all()
        assert all(one.time[b] <= one.time[a] for one, a, b in zip(tables, lean, full, strict=True))
    assert not choices(tables, scales, np.array([1, 1, 1, 1]))


@pytest.mark.parametrize("seed", range(5))
def test_an_exchange_makes_one_team_faster_and_another_slower_and_fits(seed: int) -> None:
    tables, scales = [table(3 * seed + i) for i in range(3)], (1.0, 0.4, 2.0)
    room = np.array([9000, 12000, 9000, 15000])
    (team, *_) = choices(tables, scales, room).values()
    found = [exchanges(tables, scales, team, i, room) for i in range(3)]
    assert any(found)
    for i, others in enumerate(found):
        times = [[one.time[at] * s for one, s, at in zip(tables, scales, other, strict=True)] for other in others]
        before = [one.time[at] * s for one, s, at in zip(tables, scales, team, strict=True)]
        for other, after in zip(others, times, strict=True):
            assert (sum(one.counts[at] for one, at in zip(tables, other, strict=True)) <= room).all()
            assert after[i] < before[i] and sum(a > b for a, b in zip(after, before, strict=True)) == 1
            assert sum(a != b for a, b in zip(other, team, strict=True)) == 2
        assert [max(after) for after in times] == sorted(max(after) for after in times)


@pytest.mark.parametrize("seed", range(40))
def test_of_each_table_a_row_is_found_where_any_fit_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables = [rng.integers(1, 20, (rng.integers(1, 9), 4)) for _ in range(rng.integers(1, 4))]
    room = rng.integers(8, 40, 4)
    every = [sum(rows) for rows in product(*tables)]
    found = smallest(tables, room)
    assert (found is not None) == any((one <= room).all() for one in every)
    assert found is None or (sum(one[at] for one, at in zip(tables, found, strict=True)) <= room).all()


def test_experts_are_shared_by_layer() -> None:
    """Equal totals would let each engine wait for the other in one of two layers."""
    load = [10.0, 10.0, 9.0, 9.0]
    layer = [0, 1, 0, 1]
    assert divide((0, 1, 2, 3), layer, [load, load], (5, 5)) == (((0, 3), 5), ((1, 2), 5))
    shares = divide((0, 1, 2, 3), layer, [load, [4 * time for time in load]], (6, 2))
    assert shares == (((0, 1, 2, 3), 6),)  # one that is four times as slow would be last with any


def test_experts_that_take_no_time_are_spread() -> None:
    assert {len(ids) for ids, _ in divide((0, 1, 2, 3), [0] * 4, [[0.0] * 4] * 2, (1, 1))} == {2}
