"""Random widths of one budget, uniform among all allocations that spend it as far as the widths allow.

Exact and without a table of counts: experts drawn independently with probabilities p_k proportional to exp(t b_k) give
every allocation of one sum the same probability, so those draws whose sum is the wanted one are uniform. With t at
which the mean width is the budget's, one draw in about sqrt(2 pi N) standard deviations hits it.
"""

import numpy as np
from numpy.typing import NDArray

from wattbit.policy.problem import Choice, Floats

BLOCK = 64  # draws at a time


def draw(experts: int, widths: NDArray[np.int64], bits: int, seed: int) -> Choice:
    """Index of each expert's width [experts], uniform among all choices with the greatest sum that is within `bits`.

    widths: [K], one an action, in any order; the narrowest must fit.
    """
    total = _reachable(experts, widths, bits)
    probabilities = _tilted(widths, total / experts)
    random = np.random.default_rng(seed)
    while True:
        drawn = random.choice(len(widths), size=(BLOCK, experts), p=probabilities)
        hits = np.flatnonzero(widths[drawn].sum(axis=1) == total)
        if len(hits):
            first: Choice = drawn[hits[0]]
            return first


def _reachable(experts: int, options: NDArray[np.int64], bits: int) -> int:
    """The greatest sum of `experts` widths that is not above `bits`; bit s of `sums` says that s is a sum."""
    narrowest = int(options.min())
    steps = {int(b) - narrowest for b in options}
    room = bits - experts * narrowest
    mask = (1 << (room + 1)) - 1
    sums = 1
    for _ in range(experts):
        wider = 0
        for step in steps:
            wider |= sums << step
        sums = wider & mask
    return experts * narrowest + sums.bit_length() - 1


def _tilted(options: NDArray[np.int64], mean: float) -> Floats:
    """Probabilities proportional to exp(t b) with this mean, by bisection on t."""

    def at(tilt: float) -> Floats:
        weights = np.exp(tilt * (options - (options.max() if tilt > 0 else options.min())))
        shares: Floats = weights / weights.sum()
        return shares

    low, high = -60.0, 60.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float(at(middle) @ options) < mean else (low, middle)
    return at(high)
