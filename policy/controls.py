"""What every policy is compared with, beside uniform widths: linear in frequency, greedy, random of the same budget."""

import heapq

import numpy as np

from wattbit.errors import WattbitError
from wattbit.policy.problem import Choice, Problem
from wattbit.policy.sampling import draw


def linear_in_frequency(problem: Problem) -> Choice:
    """Widths linear in the rank of an expert's frequency within its layer: the busiest gets most.

    The expert of rank r of E (0 is the rarest) aims at budget_bits + (r / (E - 1) - 1/2) * span, where span is the
    widest that stays within the widths on both sides, so the mean is the budget. It gets the nearest width; then the
    rarest experts give up bits while the budget is exceeded, and the busiest take what is left.
    """
    narrowest, widest = int(problem.widths[0]), int(problem.widths[-1])
    mean = min(problem.budget_bits, widest)
    span = 2 * min(mean - narrowest, widest - mean)
    place = np.zeros(len(problem.experts))  # 0 rarest .. 1 busiest of its layer
    for layer in np.unique(problem.layer):
        members = np.flatnonzero(problem.layer == layer)
        order = members[np.argsort(problem.frequency[members], kind="stable")]
        place[order] = np.arange(len(order)) / max(len(order) - 1, 1)
    aim = mean + (place - 0.5) * span
    choice: Choice = np.abs(problem.widths[None, :] - aim[:, None]).argmin(axis=1)
    rarest_first = np.lexsort((problem.frequency, place))
    while not problem.fits(choice):
        _step_each(problem, choice, rarest_first, -1)
    while _step_each(problem, choice, rarest_first[::-1], 1):
        pass
    return choice


def _step_each(problem: Problem, choice: Choice, order: Choice, sign: int) -> bool:
    """Move experts one width in place, in this order: down until the choice fits, or up where it still fits."""
    ladder = np.unique(problem.widths, return_index=True)[1].tolist()  # the first action of each width
    moved = False
    for i in order:
        if sign < 0 and problem.fits(choice):
            break
        rung = ladder.index(choice[i]) + sign
        if 0 <= rung < len(ladder):
            stepped = choice.copy()
            stepped[i] = ladder[rung]
            if sign < 0 or problem.fits(stepped):
                choice[i] = stepped[i]
                moved = True
    return moved


def greedy(problem: Problem) -> Choice:
    """From the narrowest widths up: whichever wider width lowers damage most per bit is taken while it fits."""
    experts, _ = problem.size
    choice = np.zeros(experts, dtype=np.int64)
    left = problem.budget - int(problem.bits(choice))
    if left < 0:
        raise WattbitError(f"a budget of {problem.budget} bits is below {experts} experts at {problem.widths[0]}")
    gains: list[tuple[float, int, int, int]] = []  # (-nats a bit, expert, from, to)

    def offer(i: int) -> None:
        here = int(choice[i])
        for k in np.flatnonzero(problem.widths > problem.widths[here]).tolist():
            gain = (problem.damage[i, here] - problem.damage[i, k]) / int(problem.widths[k] - problem.widths[here])
            if gain > 0:
                heapq.heappush(gains, (-float(gain), i, here, k))

    for i in range(experts):
        offer(i)
    while gains:
        _, i, here, k = heapq.heappop(gains)
        bits = int(problem.widths[k] - problem.widths[here])
        if choice[i] == here and bits <= left:
            choice[i] = k
            left -= bits
            offer(i)
    return choice


def random_allocation(problem: Problem, seed: int) -> Choice:
    """A choice drawn uniformly from all choices that spend the budget as far as widths allow; see `policy.sampling`."""
    return draw(len(problem.experts), problem.widths, problem.budget, seed)
