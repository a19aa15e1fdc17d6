"""Where a target has several engines an action is a width and an engine, and what an engine can't run is no action."""

from pathlib import Path

import numpy as np
import pytest

from tests.policy_fakes import WIDTHS, AdditiveMeter, make_problem, make_stats, make_workload
from wattbit.errors import WattbitError
from wattbit.plan import Allocation, Cost, Engine, Workload
from wattbit.policy.agent import AgentSettings, Policy, train
from wattbit.policy.annealing import anneal
from wattbit.policy.constrained import Limits, best
from wattbit.policy.controls import greedy, linear_in_frequency, random_allocation
from wattbit.policy.environment import AllocationEnv, observe
from wattbit.policy.exact import solve, solve_shared
from wattbit.policy.problem import Problem

BOTH: dict[Engine, tuple[int, ...]] = {"fpga": WIDTHS, "arm": (4, 8)}


class TwoEngines:
    """Both engines work side by side; the FPGA's time is its bits', the cores' their experts'; the slower counts."""

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        share = dict(workload.frequency)
        time = {"fpga": 0.0, "arm": 0.0}
        for p in allocation.placements:
            time[p.engine] += share[p.expert] * (p.precision.weight_bits if p.engine == "fpga" else 8)
        return Cost(max(time.values()), None, 1, "modelled")


def both(experts: int = 8, **settings: float) -> Problem:
    stats = make_stats(experts)
    return Problem(stats, TwoEngines(), make_workload(stats), WIDTHS, engines=BOTH, **settings)  # type: ignore[arg-type]


def test_actions_are_what_the_engines_run() -> None:
    problem = both()
    assert problem.actions == (
        "2 bits on fpga",
        "3 bits on fpga",
        "4 bits on fpga",
        "4 bits on arm",
        "6 bits on fpga",
        "8 bits on fpga",
        "8 bits on arm",
    )
    choice = np.random.default_rng(0).integers(0, 7, 16)
    allocation = problem.allocation(choice)
    assert (problem.choice(allocation) == choice).all()
    for placement in allocation.placements:
        assert placement.precision.weight_bits in BOTH[placement.engine]
    assert observe(problem).shape[0] == 16 and np.isfinite(observe(problem)).all()


def test_controls_keep_the_budget_and_equal_those_of_one_engine_in_damage() -> None:
    problem, single = both(budget_bits=3.5), make_problem(make_stats(8), AdditiveMeter(), budget_bits=3.5)
    for control in (solve, greedy, linear_in_frequency):
        choice = control(problem)
        assert problem.fits(choice)
        assert problem.damages(choice).sum() == pytest.approx(single.damages(control(single)).sum())
    assert problem.fits(random_allocation(problem, 0))
    assert problem.fits(anneal(problem, solve(problem), 60, seed=0))


def test_the_policy_uses_both_engines_where_that_is_faster() -> None:
    problem = both(latency_nats=0.3, budget_bits=4.0)
    alone = make_problem(make_stats(8), TwoEngines(), latency_nats=0.3, budget_bits=4.0)
    trained = train(AllocationEnv(problem), 0, AgentSettings(iterations=80))
    used = {placement.engine for placement in problem.allocation(trained.choice).placements}
    assert used == {"fpga", "arm"}
    one = train(AllocationEnv(alone), 0, AgentSettings(iterations=80))
    assert trained.reward > one.reward + 0.02
    assert trained.reward >= problem.reward(solve_shared(problem))


def test_limits_hold_with_two_engines() -> None:
    problem = both(budget_bits=4.0)
    found = best(problem, "damage", Limits(latency=0.3), settings=AgentSettings(iterations=30), rounds=3)
    assert found.latency <= 0.3


@pytest.mark.parametrize("engines", [{"fpga": (2, 4, 8)}, {"arm": (4, 8), "fpga": (2,)}])
def test_a_width_that_no_engine_runs_is_named(engines: dict[Engine, tuple[int, ...]]) -> None:
    stats = make_stats(4)
    with pytest.raises(WattbitError, match=r"the target cannot run 3 bits \((fpga|arm): .*\); drop that width"):
        Problem(stats, TwoEngines(), make_workload(stats), WIDTHS, engines=engines)


def test_a_policy_of_other_actions_is_refused(tmp_path: Path) -> None:
    trained = train(AllocationEnv(both()), 0, AgentSettings(iterations=2))
    trained.policy.save(tmp_path / "policy.safetensors")
    policy = Policy.load(tmp_path / "policy.safetensors")
    assert (policy.choose(both(12)) == trained.policy.choose(both(12))).all()
    with pytest.raises(WattbitError, match=r"the policy chooses among 2 bits on fpga, .* train another one"):
        policy.choose(make_problem(make_stats(4), AdditiveMeter()))


def test_statistics_of_another_model_are_refused() -> None:
    with pytest.raises(WattbitError, match="of another model than the workload: only one of them has L0E4"):
        Problem(make_stats(8), AdditiveMeter(), make_workload(make_stats(4)), WIDTHS)


class Breaks(AdditiveMeter):
    """Prices that stop being numbers after the first hundred."""

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        cost = super().cost(allocation, workload)
        return cost if self.calls <= 100 else Cost(float("nan"), None, 1, "measured")


def test_a_reward_that_is_no_number_is_named_with_step_and_source() -> None:
    env = AllocationEnv(make_problem(make_stats(8), Breaks()))
    with pytest.raises(WattbitError, match=r"policy seed 0, iteration [2-9]: the meter's measured latency of nan s"):
        train(env, 0, AgentSettings(iterations=20))
