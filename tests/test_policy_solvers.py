"""The exact, greedy and annealing solvers, against enumeration where a problem is small enough."""

from itertools import product

import numpy as np
import pytest

from tests.policy_fakes import WIDTHS, AdditiveMeter, SharedChipMeter, make_problem, make_stats
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.plan import Allocation, Cost, Workload
from wattbit.policy.annealing import Move, anneal, improve, shift, step
from wattbit.policy.controls import greedy
from wattbit.policy.critic import Critic
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


@pytest.mark.parametrize("move", [step, shift])
def test_moves_keep_the_budget_and_leave_the_choice_alone(move: Move) -> None:
    problem = make_problem(make_stats(16), AdditiveMeter(), budget_bits=3.1)
    random = np.random.default_rng(0)
    choice = solve(problem)
    before, seen = choice.copy(), []
    for _ in range(200):
        moved = move(problem, choice, random)
        assert problem.fits(moved) and (choice == before).all()
        seen.append(int((moved != choice).sum()))
    assert max(seen) > 5 and len(set(seen)) > 5, "small moves and large ones"


def test_a_shift_moves_those_that_lose_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattbit.policy.annealing.SCATTER", 0.0)
    problem = make_problem(make_stats(16, noise=0.0), AdditiveMeter(), budget_bits=8.0)
    choice = np.full(32, 3)
    rank = {"nats": problem.damage[:, 0] - problem.damage[:, 3]}
    rank["nats a share"] = rank["nats"] / problem.frequency
    seen = set()
    for seed in range(60):
        after = shift(problem, choice, np.random.default_rng(seed))
        moved = after != choice
        if set(after[moved]) == {0}:
            seen |= {name for name, one in rank.items() if moved[np.argsort(one)][: moved.sum()].all()} or {"neither"}
    assert seen == set(rank)


def test_evaluations_are_new_prices() -> None:
    for search in (anneal, improve):
        meter = AdditiveMeter()
        problem = make_problem(make_stats(32), meter, budget_bits=3.0)
        calls = meter.calls
        search(problem, solve(problem), 150, 0)
        assert 100 <= meter.calls - calls <= 152 and problem.asked == meter.calls - 1
        search(problem, solve(problem), 150, 0)
        assert meter.calls - calls < 2 * 152, "what is known costs nothing"
        tiny = make_problem(make_stats(1), AdditiveMeter())
        search(tiny, solve(tiny), 500, 0)  # of 25 choices: it ends


def test_annealing_keeps_what_its_first_moves_found() -> None:
    problem = make_problem(make_stats(32), AdditiveMeter(), budget_bits=3.0)
    worse, better = problem.uniform(2), solve(problem)
    tries = iter([better])  # which the first temperature is set by
    assert (anneal(problem, worse, 4, 0, lambda *_: next(tries, worse)) == better).all()


def test_a_critic_learns_what_is_each_experts() -> None:
    problem = make_problem(make_stats(16), AdditiveMeter(), latency_nats=0.1)
    critic, random = Critic(problem), np.random.default_rng(0)
    assert not critic.shares.any()
    for _ in range(8):
        choices = random.integers(0, 5, (4, 6, 32))
        hardware = np.array([[problem.hardware(choice) for choice in row] for row in choices])
        critic.learn(choices, hardware)
    choices = random.integers(0, 5, (50, 32))
    left = np.array([problem.hardware(c) - critic.shares[np.arange(32), c].sum() for c in choices])
    joint = np.array([problem.hardware(c) for c in choices])
    assert left.std() < 0.05 * joint.std()
