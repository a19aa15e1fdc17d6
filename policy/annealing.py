"""Simulated annealing on the true reward: what a policy must beat with the same number of evaluations.

Moves keep the choice within the budget (`Problem.shrink` repairs it): one expert to another width, two experts trade
widths, or all experts of one width go to another, which is how a class of hardware opens or closes. A worse choice is
taken with probability exp(-loss / T); T falls geometrically from the standard deviation of the first losses to a
thousandth of it (Kirkpatrick, Gelatt and Vecchi, Science 220, 1983).

Where hundreds of experts share engines, single moves change little, and moves of a whole class too much. `shift`, which
the policy's own local search makes half of the time, moves some experts of one width at once: those whose damage rises
least, or least for the traffic that changes sides.
"""

from collections.abc import Callable

import numpy as np

from wattbit.policy.problem import Choice, Problem

WARM_UP = 32  # moves whose losses set the first temperature
COOLING = 1e-3
PATIENCE = 16  # moves for each evaluation; on small problems most are of what was priced before
SHIFTS = 0.5  # of the local search's moves
SCATTER = 0.3  # relative, of the order in which experts are moved

Move = Callable[[Problem, Choice, np.random.Generator], Choice]
"""A neighbour of a choice, repaired to the budget."""


def step(problem: Problem, choice: Choice, random: np.random.Generator) -> Choice:
    """One expert to another action, two trade theirs, or all of one action go to another."""
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


def shift(problem: Problem, choice: Choice, random: np.random.Generator) -> Choice:
    """Some experts of one action to another, those that lose least by it; what is left of the budget may be spent."""
    source, target = random.choice(choice), random.integers(problem.size[1])
    own = np.flatnonzero(choice == source)
    number = int(np.ceil(len(own) ** random.random()))  # one as likely as all
    loss = problem.damage[own, target] - problem.damage[own, source]
    if random.random() < 0.5:
        loss = loss / np.maximum(problem.frequency[own], 1e-3 * problem.frequency.mean())
    order = np.argsort(loss * (1 + SCATTER * random.standard_normal(len(own))))
    moved = choice.copy()
    moved[own[order[:number]]] = target
    return problem.fit(moved) if random.random() < 0.5 else problem.shrink(moved)


def anneal(problem: Problem, start: Choice, evaluations: int, seed: int, move: Move = step) -> Choice:
    """The best choice [N] among so many new allocations priced, beginning at `start`. Deterministic in the seed.

    What was priced before costs nothing, so it does not count; but there are no more than PATIENCE moves for each
    evaluation.
    """
    random = np.random.default_rng(seed)
    before = problem.asked
    here = problem.shrink(start)
    value = problem.reward(here)
    tried = [move(problem, here, random) for _ in range(min(WARM_UP, evaluations // 4))]
    rewards = [problem.reward(candidate) for candidate in tried]
    best, best_value = max([(here, value), *zip(tried, rewards, strict=True)], key=lambda pair: pair[1])
    first = [abs(value - reward) for reward in rewards]
    heat = float(np.std(first)) or float(np.mean(first)) or 1.0
    for moves in range(PATIENCE * evaluations):
        done = max((problem.asked - before) / evaluations, moves / (PATIENCE * evaluations))
        if done >= 1:
            break
        candidate = move(problem, here, random)
        reward = problem.reward(candidate)
        if reward >= value or random.random() < np.exp((reward - value) / (heat * COOLING**done)):
            here, value = candidate, reward
        if value > best_value:
            best, best_value = here, value
    return best


def improve(problem: Problem, start: Choice, evaluations: int, seed: int) -> Choice:
    """The policy's local search: `anneal` with shifts among its moves."""

    def move(problem: Problem, choice: Choice, random: np.random.Generator) -> Choice:
        kind = shift if random.random() < SHIFTS else step
        return kind(problem, choice, random)

    return anneal(problem, start, evaluations, seed, move)
