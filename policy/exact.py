"""The exact optimum of the additive part: a multiple-choice knapsack, solved by dynamic programming.

min sum_i d_i(a_i) subject to sum_i b(a_i) <= B, one width an expert. Widths are integers, so the table over the bits
spent is exact: O(N B K). It ignores the meter: latency and energy are not additive over experts.
"""

import numpy as np

from wattbit.policy.problem import Choice, Problem


def solve(problem: Problem) -> Choice:
    """The choice [N] of least damage within the budget; of equal ones, one with the fewest bits."""
    experts, _ = problem.size
    best = np.zeros(problem.budget + 1)  # least damage of the experts so far within b bits
    taken = np.zeros((experts, problem.budget + 1), dtype=np.int64)
    for i, damage in enumerate(problem.damage):
        options = np.full((len(problem.widths), len(best)), np.inf)  # [K, B + 1]
        for k, width in enumerate(problem.widths.tolist()):
            options[k, width:] = best[: len(best) - width] + damage[k]
        taken[i] = options.argmin(axis=0)
        best = options.min(axis=0)
    choice = np.zeros(experts, dtype=np.int64)
    left = int(best.argmin())
    for i in reversed(range(experts)):
        choice[i] = taken[i, left]
        left -= int(problem.widths[choice[i]])
    return choice
