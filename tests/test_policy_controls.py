"""The exact optimum equals brute force; the controls are what they are called."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from tests.policy_fakes import AdditiveMeter, SharedChipMeter, make_problem, make_stats, make_workload
from wattbit.errors import WattbitError
from wattbit.policy.controls import linear_in_frequency, random_allocation
from wattbit.policy.exact import solve
from wattbit.policy.problem import Problem


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget_bits", [2.0, 2.4, 3.7, 4.0, 8.0, 10.0])
def test_exact_equals_brute_force(seed: int, budget_bits: float) -> None:
    stats = make_stats(5, layers=1, seed=seed, noise=0.02)  # noise makes damage negative and not monotonic
    problem = make_problem(stats, AdditiveMeter(), budget_bits=budget_bits)
    every = np.array(list(product(range(5), repeat=5)))
    fitting = every[problem.bits(every) <= problem.budget]
    least = problem.damages(fitting).sum(axis=1).min()
    found = solve(problem)
    assert problem.fits(found)
    assert problem.damages(found).sum() == pytest.approx(least, abs=1e-12)


def test_exact_ignores_the_hardware() -> None:
    stats = make_stats(8)
    additive = make_problem(stats, AdditiveMeter(), latency_nats=1.0)
    shared = make_problem(stats, SharedChipMeter(), latency_nats=1.0)
    assert (solve(additive) == solve(shared)).all()


def test_uniform_has_one_width_which_must_exist() -> None:
    problem = make_problem(make_stats(4), AdditiveMeter())
    assert problem.allocation(problem.uniform(4)).mean_bits == 4
    with pytest.raises(WattbitError, match="uniform 5 bit needs that width"):
        problem.uniform(5)


@pytest.mark.parametrize("budget_bits", [2.0, 2.5, 4.0, 5.3, 8.0])
@pytest.mark.parametrize("seed", range(3))
def test_linear_gives_the_busier_expert_no_less(seed: int, budget_bits: float) -> None:
    problem = make_problem(make_stats(16, seed=seed), AdditiveMeter(), budget_bits=budget_bits)
    bits = problem.widths[linear_in_frequency(problem)]
    assert problem.budget - 2 < bits.sum() <= problem.budget
    spread = budget_bits not in (2.0, 8.0)
    for layer in range(2):
        members = problem.layer == layer
        ordered = bits[members][np.argsort(problem.frequency[members])]
        if budget_bits == 4.0:
            assert (np.diff(ordered) >= 0).all()
        assert (ordered[-1] > ordered[0]) == spread


def test_random_spends_exactly_the_budget() -> None:
    for experts, budget_bits in ((16, 4.0), (16, 3.1), (3, 5.5), (128, 2.7)):
        problem = make_problem(make_stats(experts), AdditiveMeter(), budget_bits=budget_bits)
        for seed in range(3):
            assert int(problem.bits(random_allocation(problem, seed))) == problem.budget
    stats = make_stats(3, layers=1)
    even = Problem(stats, AdditiveMeter(), make_workload(stats), (2, 4, 6, 8), budget_bits=3.7)  # 11 bits
    assert int(even.bits(random_allocation(even, 0))) == 10


def test_random_is_uniform_and_seeded() -> None:
    problem = make_problem(make_stats(4, layers=1), AdditiveMeter())
    every = np.array(list(product(range(5), repeat=4)))
    possible = {tuple(c) for c in every[problem.bits(every) == problem.budget].tolist()}
    draws = 200 * len(possible)
    seen = Counter(tuple(random_allocation(problem, seed).tolist()) for seed in range(draws))
    assert set(seen) == possible
    chi2 = sum((n - 200) ** 2 / 200 for n in seen.values())
    freedom = len(possible) - 1
    assert abs(chi2 - freedom) < 4 * (2 * freedom) ** 0.5
    assert (random_allocation(problem, 7) == random_allocation(problem, 7)).all()
