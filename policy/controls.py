"""What every policy is compared with, beside uniform widths: linear in frequency, greedy, random of the same budget."""

import heapq
import random

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.policy.exact import EXACT_STATES
from wattbit.policy.problem import Choice, Floats, Problem


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
    """A choice drawn uniformly from all choices that spend the budget as far as widths allow.

    Exact: ways[n][b] counts the choices of the first n experts that take b bits, in unbounded integers; experts are
    then drawn from the last to the first, each width with the share of the choices that it leaves. Where that is too
    much (`exact.EXACT_STATES`), every expert is drawn alone with probabilities exp(-t bits) whose mean is the budget,
    which is nearly the same for many experts, and random experts take a step until the budget is spent.
    """
    experts, _ = problem.size
    if experts * problem.budget > EXACT_STATES:
        return _nearly_random(problem, np.random.default_rng(seed))
    widths = [int(b) for b in problem.widths]
    ways = [np.zeros(problem.budget + 1, dtype=object)]
    ways[0][0] = 1
    for _ in range(experts):
        after = np.zeros(problem.budget + 1, dtype=object)
        for width in widths:
            after[width:] += ways[-1][: problem.budget + 1 - width]
        ways.append(after)
    left = int(np.flatnonzero(ways[-1])[-1])
    draw = random.Random(seed)
    choice = np.zeros(experts, dtype=np.int64)
    for i in reversed(range(experts)):
        shares = [int(ways[i][left - width]) if width <= left else 0 for width in widths]
        ticket = draw.randrange(sum(shares))
        while ticket >= shares[choice[i]]:
            ticket -= shares[choice[i]]
            choice[i] += 1
        left -= widths[choice[i]]
    return choice


def _nearly_random(problem: Problem, draw: np.random.Generator) -> Choice:
    experts, actions = problem.size
    bits = problem.widths.astype(float)

    def shares(tilt: float) -> Floats:
        odds: Floats = np.exp(-tilt * (bits - bits[0 if tilt >= 0 else -1]))
        odds /= odds.sum()
        return odds

    low, high = -50.0, 50.0
    for _ in range(60):
        tilt = (low + high) / 2
        low, high = (tilt, high) if shares(tilt) @ bits > problem.budget_bits else (low, tilt)
    choice = draw.choice(actions, size=experts, p=shares(high))
    while (room := problem.budget - int(problem.bits(choice))) < 0 or _steps(problem, choice, room).any():
        expert, action = draw.choice(np.argwhere(_steps(problem, choice, room)))
        choice[expert] = action
    return choice


def _steps(problem: Problem, choice: Choice, room: int) -> NDArray[np.bool_]:
    """Which [N, K] of the actions one width away, narrower if there is no room, wider by at most the room else."""
    ladder = np.unique(problem.widths)
    at = np.searchsorted(ladder, problem.widths[choice])
    beside = ladder[np.clip(at + (1 if room >= 0 else -1), 0, len(ladder) - 1)]
    more = beside - problem.widths[choice]
    possible = (more != 0) & (more <= max(room, 0))
    reached: NDArray[np.bool_] = possible[:, None] & (problem.widths[None, :] == beside[:, None])
    return reached
