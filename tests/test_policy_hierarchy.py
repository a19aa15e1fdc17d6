"""Groups first, then experts: every expert is in one group, and two steps come as far as the table's optimum."""

import numpy as np
import pytest

from tests.policy_fakes import WIDTHS, AdditiveMeter, SharedChipMeter, make_problem, make_stats
from wattbit.policy.agent import AgentSettings
from wattbit.policy.controls import random_allocation
from wattbit.policy.exact import relaxed, solve
from wattbit.policy.hierarchy import coarse, grouped, train_in_groups


@pytest.mark.parametrize("number", [1, 6, 16, 64])
def test_groups_are_of_one_layer_and_of_like_damage(number: int) -> None:
    problem = make_problem(make_stats(24, layers=3), AdditiveMeter())
    group = grouped(problem, number)
    assert set(group) == set(range(group.max() + 1))
    assert number <= len(set(group)) <= number + 3
    for g in set(group):
        mine = group == g
        assert len(set(problem.layer[mine])) == 1
        others = (problem.layer == problem.layer[mine][0]) & ~mine
        low, high = problem.damage[mine, 0].min(), problem.damage[mine, 0].max()
        assert not ((problem.damage[others, 0] > low) & (problem.damage[others, 0] < high)).any()


def test_a_group_costs_and_damages_what_its_members_do() -> None:
    problem = make_problem(make_stats(12), SharedChipMeter(), latency_nats=0.1)
    group = grouped(problem, 6)
    small = coarse(problem, group)
    order = {expert: g for g, expert in enumerate(small.experts)}
    for draw in np.random.default_rng(0).integers(0, len(WIDTHS), (5, small.size[0])):
        firsts = [order[problem.experts[int(np.flatnonzero(group == g)[0])]] for g in range(small.size[0])]
        whole = draw[np.array(firsts)[group]]
        assert small.damages(draw).sum() == pytest.approx(problem.damages(whole).sum())
        assert small.hardware(draw) == pytest.approx(problem.hardware(whole))


def test_two_steps_end_close_to_the_optimum_and_within_the_budget() -> None:
    problem = make_problem(make_stats(128), AdditiveMeter(), latency_nats=0.0, budget_bits=3.3)
    trained = train_in_groups(problem, 0, AgentSettings(iterations=30), number=32)
    assert problem.fits(trained.choice)
    assert trained.reward == problem.reward(trained.choice)
    assert trained.reward >= 1.001 * problem.reward(solve(problem))  # rewards are negative; it starts from there
    assert len(trained.curve) == 30


def test_the_relaxed_solution_is_nearly_the_exact_one() -> None:
    for budget in (2.3, 3.0, 4.5):
        problem = make_problem(make_stats(64), AdditiveMeter(), budget_bits=budget, latency_nats=0.0)
        choice = relaxed(problem, np.ones(len(WIDTHS), dtype=np.bool_))
        assert problem.fits(choice)
        exact = float(problem.damages(solve(problem)).sum())
        assert exact <= float(problem.damages(choice).sum()) <= exact * 1.01


def test_random_allocations_of_many_experts_spend_the_budget() -> None:
    problem = make_problem(make_stats(512), AdditiveMeter(), budget_bits=3.1)
    drawn = [random_allocation(problem, seed) for seed in range(3)]
    for choice in drawn:
        assert problem.budget - int(problem.bits(choice)) < 1
    assert not (drawn[0] == drawn[1]).all()
    small = make_problem(make_stats(64), AdditiveMeter(), budget_bits=3.1)
    shares = [np.bincount(c, minlength=5) / len(c) for c in (drawn[0], random_allocation(small, 0))]
    assert np.abs(shares[0] - shares[1]).max() < 0.15  # as drawn exactly for fewer
