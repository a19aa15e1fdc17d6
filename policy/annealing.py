"""Simulated annealing on the true reward: what a policy must beat with the same number of evaluations.

Moves keep the choice within the budget (`Problem.shrink` repairs it): one expert to another width, two experts trade
widths, or all experts of one width go to another, which is how a class of hardware opens or closes. A worse choice is
taken with probability exp(-loss / T); T falls geometrically from the standard deviation of the first losses to a
thousandth of it (Kirkpatrick, Gelatt and Vecchi, Science 220, 1983).
"""

import numpy as np

from wattbit.policy.problem import Choice, Problem

WARM_UP = 32  # moves whose losses set the first temperature
COOLING = 1e-3


def anneal(problem: Problem, start: Choice, evaluations: int, seed: int) -> Choice:
    """The best choice [N] of `evaluations` rewards, beginning at `start`. Deterministic in the seed."""
    random = np.random.default_rng(seed)
    here = problem.shrink(start)
    value = problem.reward(here)
    best, best_value = here, value
    first = [abs(value - problem.reward(_move(problem, here, random))) for _ in range(min(WARM_UP, evaluations // 4))]
    heat = float(np.std(first)) or float(np.mean(first)) or 1.0
    moves = evaluations - 1 - len(first)
    for step in range(moves):
        temperature = heat * COOLING ** (step / max(moves - 1, 1))
        candidate = _move(problem, here, random)
        reward = problem.reward(candidate)
        if reward >= value or random.random() < np.exp((reward - value) / temperature):
            here, value = candidate, reward
        if value > best_value:
            best, best_value = here, value
    return best


def _move(problem: Problem, choice: Choice, random: np.random.Generator) -> Choice:
    """A neighbour of a choice, repaired to the budget."""
    experts, widths = problem.size
    moved = choice.copy()
    kind = random.integers(3)
    if kind == 0:
        moved[random.integers(experts)] = random.integers(widths)
    elif kind == 1:
        i, j = random.integers(experts, size=2)
        moved[[i, j]] = moved[[j, i]]
    else:
        moved[moved == random.choice(moved)] = random.integers(widths)
    return problem.shrink(moved)
