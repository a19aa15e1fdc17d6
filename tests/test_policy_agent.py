"""The environment keeps Gymnasium's rules; the policy finds the optimum where one is known and beats it elsewhere."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from tests.policy_fakes import WIDTHS, AdditiveMeter, SharedChipMeter, make_problem, make_stats, make_workload
from wattbit.errors import WattbitError
from wattbit.policy.a2c import A2C
from wattbit.policy.agent import AgentSettings, Policy, train, train_on
from wattbit.policy.controls import linear_in_frequency, random_allocation
from wattbit.policy.critic import Critic
from wattbit.policy.environment import AllocationEnv, observe
from wattbit.policy.exact import solve, solve_shared
from wattbit.policy.network import PolicyNet
from wattbit.policy.problem import Problem
from wattbit.policy.rollout import Batch, Prices, draw


def test_environment_passes_gymnasiums_checker() -> None:
    env = AllocationEnv(make_problem(make_stats(4), AdditiveMeter()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # features have no bounds, and the environment is in no registry
        check_env(env, skip_render_check=True)
    assert env.action_space.contains(env.action_space.sample())


def test_one_step_is_the_reward_and_its_parts() -> None:
    problem = make_problem(make_stats(4), SharedChipMeter())
    env = AllocationEnv(problem)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(np.full(8, 2))
    assert (reward, terminated, truncated) == (problem.reward(np.full(8, 2)), True, False)
    assert reward == pytest.approx(-info["damage_nats"] - info["hardware_nats"])
    assert info["fits"]
    assert not env.step(np.full(8, 3))[-1]["fits"]


def test_one_network_serves_any_number_of_experts() -> None:
    small = torch.from_numpy(observe(make_problem(make_stats(4), AdditiveMeter())))
    large = torch.from_numpy(observe(make_problem(make_stats(256), AdditiveMeter())))
    net = PolicyNet(small.shape[1], 5, 64)
    gates = torch.tensor([[1.0, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    for observation in (small, large):
        probs = net.experts(observation, gates).exp()
        assert probs.shape == (3, len(observation), 5)
        assert torch.allclose(probs.sum(dim=-1), torch.ones(()))
        assert (probs[1][:, [0, 2, 4]] == 0).all()  # closed
        assert (probs[2] > 0).all()  # none open means all open
    order = torch.randperm(len(large), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(net.experts(large[order], gates), net.experts(large, gates)[:, order], atol=1e-5)


def sampled(problem: Problem, critic: Critic, seed: int = 0, sure: float = 0.0) -> Batch:
    """Draws of a new policy. sure: what its logit of the middle width is raised by."""
    env, generator = AllocationEnv(problem), torch.Generator().manual_seed(seed)
    net = PolicyNet(env.observation.shape[1], 5, 16)
    net.start(generator)
    net.expert[-1].bias.data[2] = sure
    return draw(net, env, Prices(problem, 0.3), critic, 4, 6, generator)


def test_a_baseline_is_learned_from_former_draws_alone() -> None:
    problem = make_problem(make_stats(8), AdditiveMeter(), latency_nats=0.1)
    fresh, deaf = Critic(problem), Critic(problem)
    deaf.learn = lambda choices, hardware: None  # type: ignore[method-assign]
    assert torch.equal(sampled(problem, fresh).advantage, sampled(problem, deaf).advantage)
    assert fresh.shares.any() and not deaf.shares.any()
    assert not torch.equal(sampled(problem, fresh, 1).advantage, sampled(problem, deaf, 1).advantage)


@pytest.mark.parametrize("sure", [0.0, 8.0])
def test_advantages_are_of_one_size_even_where_all_draws_agree(sure: float) -> None:
    problem = make_problem(make_stats(8), SharedChipMeter(), latency_nats=0.0)
    batch = sampled(problem, Critic(problem), sure=sure)
    assert (sure > 0) == bool((batch.actions[batch.gates[:, 2] > 0] == 2).all())
    size = batch.advantage.square().mean(dim=(0, 1))  # [N]
    torch.testing.assert_close(size, torch.ones_like(size), rtol=1e-3, atol=0)


def test_changes_of_damage_over_the_rounds_are_observed() -> None:
    first, second, third = (make_stats(4, noise=0.0, seed=seed) for seed in (0, 1, 2))
    workload = make_workload(third)
    known = [
        observe(Problem(third, AdditiveMeter(), workload, WIDTHS, history=history))
        for history in ((), (third,), (second,), (first, second), (second[::-1],))
    ]
    W, own = len(WIDTHS), 6 + 3 * len(WIDTHS) - 1
    drift = [one[:, own - W : own] for one in known]
    assert not drift[0].any() and not drift[1].any() and drift[2].any()
    assert (known[2] == known[4]).all() and (known[2][:, : own - W] == known[0][:, : own - W]).all()
    assert (drift[3] != drift[2]).any()
    with pytest.raises(WattbitError, match="of another model than the history: only one of them has L0E4"):
        Problem(third, AdditiveMeter(), workload, WIDTHS, history=(make_stats(5),))


def test_a_policys_expectation_is_rounded_to_open_widths_within_the_budget() -> None:
    problem = make_problem(make_stats(16), AdditiveMeter(), latency_nats=0.0)
    trained = train(AllocationEnv(problem), 0, AgentSettings(iterations=6))
    choice = trained.policy.expected(problem)
    assert problem.fits(choice) and set(choice) <= set(range(len(WIDTHS)))
    assert (choice == trained.policy.expected(problem)).all()
    certain = trained.policy.net
    with torch.no_grad():  # a policy of one width is its own expectation
        certain.expert[-1].weight.zero_()
        certain.expert[-1].bias.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0, 0.0]))
        certain.gate[-1].bias.fill_(50.0)
    assert (Policy(certain, problem.actions).expected(problem) == 2).all()
    other = Policy(type(certain)(7, 5, 8), problem.actions)
    with pytest.raises(WattbitError, match="the policy reads 7 features of an expert, this version has"):
        other.choose(problem)


def test_training_is_deterministic_in_the_seed_alone() -> None:
    def run(seed: int) -> tuple[list[int], tuple[float, ...]]:
        problem = make_problem(make_stats(8), SharedChipMeter())
        trained = train(AllocationEnv(problem), seed, AgentSettings(iterations=10))
        return trained.choice.tolist(), trained.curve

    threads = torch.get_num_threads()
    first = run(1)
    torch.manual_seed(99)
    assert run(1) == first
    assert run(2)[1] != first[1]
    assert torch.get_num_threads() == threads


def random_rewards(problem: Problem, draws: int) -> list[float]:
    return [problem.reward(random_allocation(problem, seed)) for seed in range(draws)]


@pytest.mark.parametrize("world", range(2))
def test_additive_cost_policy_comes_within_one_percent_of_the_optimum(world: int) -> None:
    problem = make_problem(make_stats(16, seed=world), AdditiveMeter(), latency_nats=0.0)
    optimum = problem.reward(solve(problem))
    trained = [train(AllocationEnv(problem), seed, AgentSettings()) for seed in range(2)]
    for policy in trained:
        assert problem.fits(policy.choice)
        assert policy.reward == problem.reward(policy.choice)
        assert optimum * 1.01 <= policy.reward <= optimum + 1e-12  # rewards are negative
        assert policy.reward > max(random_rewards(problem, 100))
        assert np.mean(policy.curve[-10:]) > np.mean(policy.curve[:10])
        # the network itself has learned it: its likeliest choice hardly needs the repair
        assert (problem.fit(policy.mode) != policy.mode).sum() <= 4
        assert problem.reward(problem.fit(policy.mode)) > 1.06 * optimum
    assert max(problem.reward(problem.fit(policy.mode)) for policy in trained) > 1.02 * optimum


def test_the_same_settings_learn_512_experts() -> None:
    problem = make_problem(make_stats(256), AdditiveMeter(), latency_nats=0.0)
    trained = train(AllocationEnv(problem), 0, AgentSettings(iterations=60))
    assert trained.reward >= 1.02 * problem.reward(solve(problem))


@pytest.mark.parametrize("world", range(2))
def test_shared_chip_policy_beats_the_additive_optimum(world: int) -> None:
    problem = make_problem(make_stats(16, seed=world), SharedChipMeter(), latency_nats=0.05)
    exact = solve(problem)
    others = max(random_rewards(problem, 100))
    for seed in range(2):
        trained = train(AllocationEnv(problem), seed, AgentSettings())
        assert problem.fits(trained.choice)
        assert trained.reward > 0.97 * problem.reward(exact) > others
        assert problem.hardware(trained.choice) < 0.85 * problem.hardware(exact)


def test_actor_critic_learns_the_same_problem() -> None:
    problem = make_problem(make_stats(16), SharedChipMeter(), latency_nats=0.05)
    trained = train(AllocationEnv(problem), 0, AgentSettings(algorithm=A2C(), warm=False))
    assert trained.reward > 0.97 * problem.reward(solve(problem))


def test_a_warm_start_is_never_worse_than_what_it_starts_from() -> None:
    problem = make_problem(make_stats(16), SharedChipMeter(), latency_nats=0.05)
    trained = train(AllocationEnv(problem), 0, AgentSettings(iterations=1))
    assert trained.reward >= problem.reward(solve_shared(problem))


def test_a_policy_serves_other_numbers_of_experts_layers_and_budgets_without_training(tmp_path: Path) -> None:
    """Learned on 16-expert layers at three budgets, asked for 3 layers of 40 experts at budgets between."""
    worlds = [make_problem(make_stats(16, seed=s), AdditiveMeter(), budget_bits=b) for s, b in enumerate((2.5, 3, 4))]
    trained = train_on([AllocationEnv(world) for world in worlds], 0, AgentSettings(iterations=180))
    trained[0].policy.save(tmp_path / "policy.safetensors")
    policy = Policy.load(tmp_path / "policy.safetensors")
    for budget in (2.75, 3.5):
        problem = make_problem(make_stats(40, layers=3, seed=9), AdditiveMeter(), budget_bits=budget)
        choice = policy.choose(problem)
        assert (choice == trained[0].policy.choose(problem)).all()
        assert problem.fits(choice)
        reward, optimum = problem.reward(choice), problem.reward(solve(problem))
        assert reward > problem.reward(linear_in_frequency(problem))
        assert reward > 1.08 * optimum  # 1.00 to 1.07 over three seeds
        assert problem.reward(policy.choose(problem, draws=16)) >= reward


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.safetensors").write_bytes(b"x" * 64)
    with pytest.raises(WattbitError, match="holds no policy"):
        Policy.load(tmp_path / "policy.safetensors")
