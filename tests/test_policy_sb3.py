"""Stable-baselines3's PPO, on the same environment at a small number of experts, as a cross-check of ours."""

import numpy as np
import pytest
import torch

from tests.policy_fakes import SharedChipMeter, make_problem, make_stats
from wattbit.policy.agent import AgentSettings, train
from wattbit.policy.controls import random_allocation
from wattbit.policy.environment import AllocationEnv

sb3 = pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed; it comes with `.[dev]`")

STEPS = 3072


def test_both_learn_the_same_problem_and_ours_is_not_behind() -> None:
    torch.set_num_threads(1)  # more threads only wait for each other
    problem = make_problem(make_stats(4), SharedChipMeter(), latency_nats=0.05)
    random = np.mean([problem.reward(random_allocation(problem, seed)) for seed in range(50)])
    peer = sb3.PPO(
        "MlpPolicy", AllocationEnv(problem), n_steps=256, batch_size=64, gamma=0.0, seed=0, learning_rate=3e-3
    )
    peer.set_logger(sb3.common.logger.Logger(None, []))  # its own one leaves a folder behind
    peer.learn(STEPS)
    choice, _ = peer.predict(AllocationEnv(problem).observation, deterministic=True)
    theirs = max(problem.reward(problem.fit(choice)), problem.reward(problem.shrink(choice)))
    settings = AgentSettings(warm=False)
    iterations = STEPS // (settings.gate_draws * settings.choice_draws)
    ours = train(AllocationEnv(problem), 0, AgentSettings(warm=False, iterations=iterations)).reward
    assert theirs > random
    assert ours >= theirs
