"""What retraining repairs is found again where it is known, and corrects the table's choice."""

from pathlib import Path

import numpy as np
import pytest

from tests.policy_fakes import AdditiveMeter, FakeLearner, make_problem, make_stats
from wattbit.errors import WattbitError
from wattbit.plan import Allocation
from wattbit.policy.controls import random_allocation
from wattbit.policy.exact import solve
from wattbit.policy.repair import Repair, learn, shortlist

LEFT = {2: 0.2, 3: 0.5, 4: 0.8, 6: 1.0, 8: 1.0}


def rise(stats: tuple, allocation: Allocation) -> float:  # type: ignore[type-arg]
    bits = {p.expert: p.precision.weight_bits for p in allocation.placements}
    return float(sum(LEFT[bits[s.expert]] * s.damage_at(bits[s.expert]) for s in stats))


def test_known_shares_are_found_and_change_the_choice() -> None:
    stats = make_stats(16, noise=0.0)
    problem = make_problem(stats, AdditiveMeter(), budget_bits=3.0, latency_nats=0.0)
    tried = [problem.allocation(problem.uniform(b)) for b in (2, 3, 4)]
    tried += [problem.allocation(random_allocation(problem, seed)) for seed in range(6)]
    repair = Repair.fit(stats, [(allocation, rise(stats, allocation)) for allocation in tried])
    assert repair.left[2] == pytest.approx(LEFT[2], abs=0.03)
    assert repair.left[2] < repair.left[3] < repair.left[4]
    corrected = make_problem(repair.of(stats), AdditiveMeter(), budget_bits=3.0, latency_nats=0.0)
    before, after = (problem.allocation(solve(one)) for one in (problem, corrected))
    assert rise(stats, after) < rise(stats, before)


def test_noise_of_one_allocation_pulls_every_width_alike() -> None:
    stats = make_stats(16, noise=0.0)
    allocation = make_problem(stats, AdditiveMeter()).allocation(np.zeros(32, dtype=np.int64))
    damage = sum(s.damage_at(2) for s in stats)
    left = Repair.fit(stats, [(allocation, 0.4 * damage)]).left
    assert all(share == pytest.approx(0.4, abs=0.01) for share in left.values())


def test_a_learner_is_fine_tuned_and_put_back(tmp_path: Path) -> None:
    stats = make_stats(8, noise=0.0)
    problem = make_problem(stats, AdditiveMeter(), budget_bits=3.0)
    learner = FakeLearner(stats)
    learner.save(tmp_path / "float.json")
    before = learner.perplexity(None)
    repair, record = learn(problem, learner, tmp_path / "float.json", 20, seed=0)
    assert learner.perplexity(None) == before and not learner.state
    assert record["steps"] == 20 and len(record["perplexity_after"]) == 1 + 4 + 2
    assert repair.left[2] == pytest.approx(0.97**20, rel=0.05)
    candidates = {name: problem.allocation(problem.uniform(b)) for name, b in (("two", 2), ("three", 3))}
    name, after = shortlist(learner, tmp_path / "float.json", candidates, 20, seed=0)
    assert name == "three" and after["three"] < after["two"]


def test_rises_that_are_no_numbers_are_refused() -> None:
    stats = make_stats(2)
    with pytest.raises(WattbitError, match="rises of the loss that are numbers"):
        Repair.fit(stats, [(Allocation.of({s.expert: 4 for s in stats}), float("nan"))])
    with pytest.raises(WattbitError, match="rises of the loss that are numbers"):
        Repair.fit(stats, [])
