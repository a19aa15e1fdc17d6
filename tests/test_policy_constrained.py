"""A search under a limit keeps it, and comes close to the best that enumeration finds."""

from itertools import product

import numpy as np
import pytest

from tests.policy_fakes import AdditiveMeter, SharedChipMeter, make_problem, make_stats
from wattbit.errors import WattbitError
from wattbit.policy.agent import AgentSettings
from wattbit.policy.constrained import Limits, best
from wattbit.policy.problem import Problem

QUICK = AgentSettings(iterations=30)


def enumerate_all(problem: Problem) -> list[tuple[float, float]]:
    """Damage and latency share of every choice within the budget."""
    found = []
    for one in product(range(problem.size[1]), repeat=problem.size[0]):
        choice = np.array(one)
        if problem.fits(choice):
            latency = problem.meter.cost(problem.allocation(choice), problem.workload).latency_s
            found.append((float(problem.damages(choice).sum()), latency / problem.reference.latency_s))
    return found


def small() -> Problem:
    return make_problem(make_stats(3, layers=2), SharedChipMeter(), budget_bits=4.0)


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_least_damage_within_a_time(share: float) -> None:
    problem = small()
    points = enumerate_all(problem)
    found = best(problem, "damage", Limits(latency=share), settings=QUICK)
    optimum = min(damage for damage, latency in points if latency <= share)
    assert found.latency <= share
    assert problem.fits(found.choice)
    assert optimum - 1e-12 <= found.damage <= optimum * 1.1 + 1e-3


def test_least_time_at_a_damage() -> None:
    problem = small()
    points = enumerate_all(problem)
    limit = 1.5 * min(damage for damage, _ in points)
    found = best(problem, "latency", Limits(damage=limit), settings=QUICK)
    optimum = min(latency for damage, latency in points if damage <= limit)
    assert found.damage <= limit
    assert optimum - 1e-12 <= found.latency <= optimum * 1.05
    again = best(small(), "latency", Limits(damage=limit), settings=QUICK)
    assert (found.choice == again.choice).all()


@pytest.mark.parametrize(
    ("objective", "limits", "message"),
    [
        ("latency", Limits(damage=1e-9), "no allocation within the memory budget meets the limits"),
        ("latency", Limits(), "set one"),
        ("latency", Limits(latency=0.5, damage=0.1), "cannot both"),
        ("energy", Limits(damage=0.1), "the meter prices no energy"),
    ],
)
def test_what_cannot_be_met_is_said(objective: str, limits: Limits, message: str) -> None:
    problem = make_problem(make_stats(3), AdditiveMeter())
    with pytest.raises(WattbitError, match=message):
        best(problem, objective, limits, settings=AgentSettings(iterations=4), rounds=2)  # type: ignore[arg-type]


def test_a_limit_is_positive() -> None:
    with pytest.raises(WattbitError, match="must be above 0, not -1"):
        Limits(damage=-1)
