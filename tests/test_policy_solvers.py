"""The exact, greedy and annealing solvers, against enumeration where a problem is small enough."""

from itertools import product

import numpy as np
import pytest

from tests.policy_fakes import WIDTHS, AdditiveMeter, SharedChipMeter, make_problem, make_stats
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.plan import Allocation, Cost, Workload
from wattbit.policy.annealing import anneal
from wattbit.policy.controls import greedy
from wattbit.policy.exact import solve, solve_shared
from wattbit.policy.problem import Choice, Problem


def every_fitting(problem: Problem) -> list[Choice]:
    experts, widths = problem.size
    choices = (np.array(one) for one in product(range(widths), repeat=experts))
    return [choice for choice in choices if problem.fits(choice)]


def test_a_subset_of_widths_is_solved_exactly() -> None:
    problem = make_problem(make_stats(3, layers=2), AdditiveMeter())
    opened = np.array([True, False, True, False, True])
    inside = [c for c in every_fitting(problem) if opened[c].all()]
    least = min(problem.damages(c).sum() for c in inside)
    assert problem.damages(solve(problem, opened)).sum() == pytest.approx(least)
    with pytest.raises(WattbitError, match="the smallest feasible one is 36"):
        solve(problem, np.array([False, False, False, True, True]))


def test_sharing_is_seen_only_by_pricing_every_set_of_widths() -> None:
    """On a chip whose classes compete, the table's optimum loses to that of a smaller set of widths."""
    problem = make_problem(make_stats(3, layers=2), SharedChipMeter(), latency_nats=0.2)
    best = max(problem.reward(c) for c in every_fitting(problem))
    table, shared = problem.reward(solve(problem)), problem.reward(solve_shared(problem))
    assert table < shared <= best


@pytest.mark.parametrize("seed", range(4))
def test_greedy_fits_and_is_close_to_the_optimum(seed: int) -> None:
    problem = make_problem(make_stats(16, seed=seed, noise=0.0), AdditiveMeter(), latency_nats=0.0)
    choice = greedy(problem)
    assert problem.fits(choice)
    exact, nearest = (float(problem.damages(c).sum()) for c in (solve(problem), choice))
    narrowest = float(problem.damage[:, 0].sum())
    assert exact <= nearest <= exact + 0.05 * (narrowest - exact)


def test_annealing_never_ends_below_its_start_and_finds_a_small_optimum() -> None:
    problem = make_problem(make_stats(3, layers=2), SharedChipMeter(), latency_nats=0.2)
    start = solve(problem)
    found = anneal(problem, start, 1500, seed=0)
    assert problem.fits(found)
    best = max(problem.reward(c) for c in every_fitting(problem))
    assert problem.reward(start) <= problem.reward(found)
    assert problem.reward(found) == pytest.approx(best)
    assert (anneal(problem, start, 200, seed=3) == anneal(problem, start, 200, seed=3)).all()


class SmallChip:
    """Holds no more than two width classes."""

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        if len(allocation.classes) > 2:
            raise InfeasibleError(f"{len(allocation.classes)} classes do not fit; use at most 2")
        return Cost(1e-3, None, 1, "modelled")


def test_what_the_hardware_cannot_hold_is_avoided_not_fatal() -> None:
    problem = make_problem(make_stats(8), SmallChip())
    wide = np.arange(16) % len(WIDTHS)
    narrow = np.zeros(16, dtype=np.int64)
    assert problem.reward(wide) < problem.reward(narrow)
    with pytest.raises(InfeasibleError, match="at most 2"):
        problem.cost(wide)
    assert [c.tolist() for c in problem.priced] == [narrow.tolist()]
    assert len(problem.allocation(solve_shared(problem)).classes) <= 2
    assert len(problem.allocation(anneal(problem, wide, 400, seed=0)).classes) <= 2
