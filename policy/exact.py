"""The exact optimum of the additive part: a multiple-choice knapsack, solved by dynamic programming.

min sum_i d_i(a_i) subject to sum_i b(a_i) <= B, one width an expert. Widths are integers, so the table over the bits
spent is exact: O(N B K). It ignores the meter: latency and energy are not additive over experts. `solve_shared` is
the strongest that a table can do about them: what the experts share is mostly which widths have hardware at all, so it
solves the table for every set of widths (2^K - 1 of them, or more where widths have a choice of engines) and lets the
meter price each solution. Where O(N B K) is too much, for it is quadratic in the experts, the sets are solved by
Lagrange's multiplier, off by less than one expert's step.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.policy.problem import Choice, Floats, Problem

EXACT_STATES = 2**20  # experts times bits of the budget that the exact solution of every set of widths may take


def solve(problem: Problem, opened: NDArray[np.bool_] | None = None) -> Choice:
    """The choice [N] of least damage within the budget; of equal ones, one with the fewest bits.

    opened: the actions [K] that may be used, by default all. Raises WattbitError when even the narrowest of them
    exceeds the budget.
    """
    allowed = np.arange(len(problem.widths)) if opened is None else np.flatnonzero(opened)
    choice: Choice = allowed[cheapest_choice(problem.damage[:, allowed], problem.widths[allowed], problem.budget)]
    return choice


def cheapest_choice(costs: Floats, widths: NDArray[np.int64], bits: int) -> Choice:
    """The same for any costs [N, K] of options of these widths [K], ascending, within so many bits."""
    experts, options = costs.shape
    if int(widths[0]) * experts > bits:
        raise WattbitError(
            f"{experts} experts of at least {widths[0]} bits exceed the budget of {bits} bits; "
            f"the smallest feasible one is {int(widths[0]) * experts}"
        )
    steps = [(k, int(width)) for k, width in enumerate(widths) if width <= bits]
    best = np.zeros(bits + 1)  # least cost of the experts so far within b bits
    taken = np.zeros((experts, bits + 1), dtype=np.int8)
    for i, cost in enumerate(costs):
        sums = np.full((options, bits + 1), np.inf)  # [K, B + 1]
        for k, width in steps:
            sums[k, width:] = best[: bits + 1 - width] + cost[k]
        taken[i] = sums.argmin(axis=0)
        best = sums.min(axis=0)
    choice = np.zeros(experts, dtype=np.int64)
    left = int(best.argmin())
    for i in reversed(range(experts)):
        choice[i] = taken[i, left]
        left -= int(widths[choice[i]])
    return choice


def solve_shared(problem: Problem) -> Choice:
    """Of the least-damage choices of every set of widths, the one [N] with the highest reward."""
    experts, actions = problem.size
    solver = solve if experts * problem.budget <= EXACT_STATES else relaxed
    found: dict[bytes, Choice] = {}
    for one in (one for size in range(1, actions + 1) for one in combinations(range(actions), size)):
        opened = np.isin(np.arange(actions), one)
        widths = problem.widths[opened]
        if len(np.unique(widths)) == len(widths) and int(widths[0]) * experts <= problem.budget:
            choice = solver(problem, opened)
            found[choice.tobytes()] = choice
    return max(found.values(), key=problem.reward)


def relaxed(problem: Problem, opened: NDArray[np.bool_]) -> Choice:
    """Nearly `solve` in O(N K): every expert's best under the price of a bit, then what is left of the budget spent."""
    allowed = np.flatnonzero(opened)
    price = problem.price(opened)
    choice: Choice = allowed[(problem.damage[:, allowed] + price * problem.widths[allowed]).argmin(axis=1)]
    return problem.fit(choice)
