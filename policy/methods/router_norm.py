"""Router-norm change with intra-neuron variance (Chowdhury et al., "Efficient Quantization of Mixture-of-Experts with
Theoretical Generalization Guarantees", ICLR 2026, arXiv 2604.06515).

In every layer experts are ranked by Lambda_s = |w_s(T)| - |w_s(0)|, the change of the L2 norm of their router row in
training, smallest first: those have learned rare features, and rare features bear less noise. An expert whose MaxVar_s,
the largest variance within a neuron's input weights, is more than zeta = 3 times that of one ranked above it moves
above that one. The first ones get most bits:

- two levels b_h > b_l: the first (b_avg - b_l) / (b_h - b_l) of the experts get b_h, the others b_l;
- three levels b_h > b_m > b_l: from the two-level split around b_m, experts at b_m are traded for one at b_h and the
  fewest at b_l that pay for it, as long as no more are at b_l than at b_m.

This gives *infrequent* experts more bits, where `mcmoe` gives frequent ones more; the two cannot both be right for one
model, and the comparison runs both. Experts that no token reaches have hardly changed their router row: they get most.

Chosen where the paper is silent: b_l is the budget's widest width within the mean and b_h the next one, so a mean that
is a width is uniform with two levels; b_m is the width nearest to the mean that has a neighbour on both sides. Ranks
are per layer, and so is the budget; what rounding down leaves of it stays unspent. Where w(0) is unknown `ExpertStats`
has the final norm itself, the paper's own substitute. It quantizes Mixtral by GPTQ, Switch Transformer by HQQ.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.policy.methods.inputs import bits_for, by_layer, open_widths, recipe, statistics
from wattbit.policy.problem import Floats
from wattbit.recipe import Budget, Quantizer, Recipe, Subject

ZETA = 3.0


@dataclass(frozen=True)
class RouterNorm:
    levels: Literal[2, 3] = 2
    quantizer: Quantizer = "gptq"

    @property
    def name(self) -> str:
        return f"router-norm-{self.levels}"

    def decide(self, subject: Subject, budget: Budget, seed: int) -> Recipe:
        """As `Method.decide`; asks for statistics without damage. Three levels need three widths."""
        widths = open_widths(self.name, budget)
        stats = statistics(subject)
        change = np.array([s.router_change for s in stats])
        variance = np.array([s.max_variance for s in stats])
        bits = np.zeros(len(stats), dtype=np.int64)
        for members in by_layer([s.expert for s in stats]):
            order = members[ranked(change[members], variance[members])]
            bits[order] = self._widths(len(members), bits_for(budget, len(members)), widths, budget.mean_bits)
        return recipe(self.name, [s.expert for s in stats], bits.tolist(), self.quantizer, budget)

    def _widths(self, experts: int, bits: int, widths: tuple[int, ...], mean: float) -> list[int]:
        """Widths for one layer's ranks, first to last."""
        if self.levels == 2:
            low = max(b for b in widths if b <= mean)
            high = min((b for b in widths if b > mean), default=low)
            return two_levels(experts, bits, low, high)
        if len(widths) < 3:
            raise WattbitError(f"{self.name} needs three widths, not {widths}; add one or take router-norm-2")
        middle = min(range(1, len(widths) - 1), key=lambda k: abs(widths[k] - mean))
        return three_levels(experts, bits, *widths[middle - 1 : middle + 2])


def ranked(change: Floats, variance: Floats) -> NDArray[np.int64]:
    """Experts of a layer, those that shall have most bits first.

    By change ascending; then each, from the last to the first, moves before the first one whose variance times zeta is
    below its own. No such pair is left after that.
    """
    order = np.argsort(change, kind="stable")
    for expert in order[::-1].copy():
        place = int(np.flatnonzero(order == expert)[0])
        smaller = np.flatnonzero(ZETA * variance[order[:place]] < variance[expert])
        if len(smaller):
            first = int(smaller[0])
            order[first + 1 : place + 1] = order[first:place].copy()
            order[first] = expert
    return order


def two_levels(experts: int, bits: int, low: int, high: int) -> list[int]:
    """Widths of ranks first to last: as many `high` as `bits` in all allow."""
    wide = 0 if high == low else min((bits - experts * low) // (high - low), experts)
    return [high] * wide + [low] * (experts - wide)


def three_levels(experts: int, bits: int, low: int, middle: int, high: int) -> list[int]:
    """The same with three widths: as many `high` as `bits` allow without more at `low` than at `middle`."""
    if bits >= experts * middle:
        wide = min((bits - experts * middle) // (high - middle), experts)
        narrow, medium = 0, experts - wide
    else:
        wide, medium = 0, (bits - experts * low) // (middle - low)
        narrow = experts - medium
    pay = -((middle - high) // (middle - low))  # experts that go down for one that goes up
    while medium - pay - 1 >= narrow + pay:
        narrow, medium, wide = narrow + pay, medium - pay - 1, wide + 1
    return [high] * wide + [middle] * medium + [low] * narrow
