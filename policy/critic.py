"""What each expert's action adds to the hardware's cost, learned from the draws that were priced.

Engines and ports are shared, so that the meter's H(a) is joint; but while few experts change, it follows how much
traffic and how many experts each action has. A ridge regression over the last draws, of H on both within a gate
setting, which leaves out what opening a class costs, gives

    H(a) = sum_i g_i(a_i) + what is left,     g_i(k) = traffic_k f_i + count_k

with f_i the expert's share of its layer's traffic: a difference reward for every expert (Wolpert and Tumer, Advances in
Complex Systems 4, 2001) instead of one number for all. What is left stays joint credit, so a critic that has learned
nothing changes nothing.
"""

from dataclasses import dataclass, field

import numpy as np

from wattbit.policy.problem import Choice, Floats, Problem

REMEMBERED = 24  # batches of draws
RIDGE = 1e-2  # of the features' mean square


@dataclass(eq=False)
class Critic:
    """The regression of one problem. shares: g [N, K] in nats, 0 before anything was learned."""

    problem: Problem
    shares: Floats = field(init=False)
    _rows: list[Floats] = field(init=False, default_factory=list)  # of each batch, features and H [S, 2 K + 1]

    def __post_init__(self) -> None:
        self.shares = np.zeros(self.problem.size)

    def learn(self, choices: Choice, hardware: Floats) -> None:
        """Take in priced choices [G, S, N] and their H [G, S], in nats."""
        taken = np.concatenate([self.features(choices), hardware[..., None]], axis=-1)  # [G, S, 2 K + 1]
        taken -= taken.mean(axis=1, keepdims=True)
        self._rows = [*self._rows[1 - REMEMBERED :], taken.reshape(-1, taken.shape[-1])]
        rows = np.concatenate(self._rows)
        x, y = rows[:, :-1], rows[:, -1]
        gram = x.T @ x
        pull = RIDGE * float(np.trace(gram)) / len(gram) + 1e-12
        weights = np.linalg.solve(gram + pull * np.eye(len(gram)), x.T @ y)
        K = self.problem.size[1]
        self.shares = self.problem.frequency[:, None] * weights[:K] + weights[K:] / len(self.problem.experts)

    def features(self, choices: Choice) -> Floats:
        """Traffic and share of the experts of each action, [..., 2 K] of choices [..., N]."""
        own = choices[..., None] == np.arange(self.problem.size[1])  # [..., N, K]
        traffic = np.einsum("...nk,n->...k", own, self.problem.frequency)
        return np.concatenate([traffic, own.mean(axis=-2)], axis=-1)
