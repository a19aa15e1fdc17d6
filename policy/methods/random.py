"""A random allocation of the same budget, the control that a method must beat to have decided anything.

Drawn uniformly from all allocations that spend the budget as far as the widths allow. Exact and without a table of
counts: experts drawn independently with probabilities p_k proportional to exp(t b_k) give every allocation of one sum
the same probability, so those draws whose sum is the wanted one are uniform. With t at which the mean width is the
budget's, one draw in about sqrt(2 pi N) standard deviations hits it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wattbit.policy.methods.inputs import bits_for, open_widths, recipe
from wattbit.policy.problem import Choice, Floats
from wattbit.recipe import Budget, Quantizer, Recipe, Subject

BLOCK = 64  # draws at a time


@dataclass(frozen=True)
class Random:
    quantizer: Quantizer = "gptq"
    name = "random"

    def decide(self, subject: Subject, budget: Budget, seed: int) -> Recipe:
        """As `Method.decide`; another seed is another allocation."""
        experts, widths = subject.experts, np.array(open_widths(self.name, budget))
        drawn = draw(len(experts), widths, bits_for(budget, len(experts)), seed)
        return recipe(self.name, experts, widths[drawn].tolist(), self.quantizer, budget)


def draw(experts: int, widths: NDArray[np.int64], bits: int, seed: int) -> Choice:
    """Index of each expert's width [experts], uniform among all choices with the greatest sum that is within `bits`.

    widths: [K], ascending.
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
    steps = [int(b - options[0]) for b in options]
    room = bits - experts * int(options[0])
    mask = (1 << (room + 1)) - 1
    sums = 1
    for _ in range(experts):
        wider = 0
        for step in steps:
            wider |= sums << step
        sums = wider & mask
    return experts * int(options[0]) + sums.bit_length() - 1


def _tilted(options: NDArray[np.int64], mean: float) -> Floats:
    """Probabilities proportional to exp(t b) with this mean, by bisection on t."""

    def at(tilt: float) -> Floats:
        weights = np.exp(tilt * (options - (options[-1] if tilt > 0 else options[0])))
        shares: Floats = weights / weights.sum()
        return shares

    low, high = -60.0, 60.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float(at(middle) @ options) < mean else (low, middle)
    return at(high)
