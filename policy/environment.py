"""The problem as a Gymnasium environment: one step, one joint action, one reward.

Every expert's width is chosen at once (a contextual bandit): widths have no order in time, and a joint action lets the
meter price the whole allocation once. The observation describes each expert by its own features, the mean of those of
its layer, the mean of all, and the budget, so a network applied to one row works for any number of experts.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, MultiDiscrete
from numpy.typing import NDArray

from wattbit.policy.problem import Choice, Floats, Problem

Observation = NDArray[np.float32]  # [N, 3 F + 1 + K]
Reset = tuple[Observation, dict[str, Any]]
Step = tuple[Observation, float, bool, bool, dict[str, Any]]


class AllocationEnv(gymnasium.Env[Observation, Choice]):
    """One episode is one choice [N] of width indices; its reward is `Problem.reward`, in nats a token.

    The allocation is taken as it is, over the budget or not: the reward pays for it.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.observation = observe(problem)
        experts, widths = problem.size
        self.observation_space = Box(-np.inf, np.inf, self.observation.shape, np.float32)
        self.action_space = MultiDiscrete([widths] * experts)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        return self.observation.copy(), {}

    def step(self, action: Choice) -> Step:
        choice = np.asarray(action, dtype=np.int64)
        reward = self.problem.reward(choice)
        info = {
            "damage_nats": float(self.problem.damages(choice).sum()),
            "hardware_nats": self.problem.hardware(choice),
            "fits": self.problem.fits(choice),
        }
        return self.observation.copy(), reward, True, False, info


def observe(problem: Problem) -> Observation:
    """Features [N, 3 F + 1 + K] of every expert: own [F], layer mean [F], global mean [F], budget [1], hardware [K].

    Own features are logarithms where a quantity spans magnitudes, each column standardised over the experts, so that
    they mean the same for 8 and for 512 experts. Damage is taken as asinh(d / median |d|) at every width, and by how
    much it falls from each width to the next on the same scale. With a history of former rounds, what changed at every
    width from each round to the next is there too, a change counting half as much as the one after it; else it is 0.
    The layer and global pools are of the unstandardised columns. The budget is (budget - narrowest) / (widest -
    narrowest), hardware the latency of all experts at each action, relative to uniform 8 bit's.
    """
    raw = _own_features(problem)  # [N, F]
    own = (raw - raw.mean(axis=0)) / (raw.std(axis=0) + 1e-6)
    _, place = np.unique(problem.layer, return_inverse=True)
    layer_pool = np.stack([own[place == layer].mean(axis=0) for layer in range(place.max() + 1)])[place]
    global_pool = np.broadcast_to(np.tanh(raw.mean(axis=0)), own.shape)
    narrowest, widest = int(problem.widths[0]), int(problem.widths[-1])
    budget = (problem.budget_bits - narrowest) / max(widest - narrowest, 1)
    shared = np.broadcast_to([budget, *problem.uniform_latency()], (len(own), 1 + problem.size[1]))
    return np.concatenate([own, layer_pool, global_pool, shared], axis=1).astype(np.float32)


def _own_features(problem: Problem) -> Floats:
    """Unstandardised features [N, F]."""
    experts = problem.stats
    scale = float(np.median(np.abs(problem.damage))) or 1.0
    columns = [_log([s.frequency for s in experts]), _log([s.contribution for s in experts])]
    columns += [_log([s.gradient_norm for s in experts]), _log([s.max_variance for s in experts])]
    columns += [np.array([s.router_change for s in experts]), np.array([s.kurtosis for s in experts])]
    widths, first = np.unique(problem.widths, return_index=True)  # W of them, whatever runs them
    damage = np.arcsinh(problem.damage[:, first] / scale)  # [N, W]
    fall = np.arcsinh(-np.diff(problem.damage[:, first], axis=1) / np.diff(widths) / scale)  # [N, W - 1]
    return np.concatenate([np.stack(columns, axis=1), damage, fall, _drift(problem, first, scale)], axis=1)


def _drift(problem: Problem, first: Choice, scale: float) -> Floats:
    """How damage [N, W] at the widths that begin at the actions `first` [W] changed over the rounds so far."""
    rounds = np.arcsinh(np.concatenate([problem.damage_before, problem.damage[None]])[..., first] / scale)  # [R, N, W]
    weights = 0.5 ** np.arange(len(rounds) - 1)[::-1]  # of the changes
    drift: Floats = np.einsum("r,rnw->nw", weights, np.diff(rounds, axis=0))
    return drift


def _log(values: list[float]) -> Floats:
    """Logarithms relative to the mean; a zero (an expert that saw no token) counts as a thousandth of it."""
    array = np.array(values)
    mean = float(np.abs(array).mean()) or 1.0
    logs: Floats = np.log(np.maximum(array / mean, 1e-3))
    return logs
