"""MC-MoE / Mixture Compressor: PMQ, and with ODP (Huang et al., ICLR 2025, arXiv 2410.06270).

PMQ (section 3.2.2, equation 4), for each layer of n experts and a mean width k:

    min sum_ij phi_i^a w_i^b (eps_ij x_ij)^g   s.t.  sum_ij j x_ij = n k,  sum_j x_ij = 1,  at least one expert at the
                                                     widest and one at the second widest width,  x binary

phi_i is the expert's access frequency and w_i its mean gate weight (section 3.2.1), eps_ij the Frobenius norm of the
change of the layer's output with expert i alone at j bits (equation 3); a = b = 1, g = 2. Solved exactly, per layer, by
HiGHS. Frequent experts get more bits here; `router_norm` gives them fewer.

ODP (section 3.3, equations 5 and 6): a token drops its second expert where the second gate is below mu times the
first's, mu the median of that ratio over the layer's calibration tokens, unless the token is among the 2 % that matter
most.

Chosen where the paper is silent or cannot be followed:
- Its widths are 1, 2 and 3; those of them that the budget offers are used (wattbit has no 1 bit). It has no means of 3
  and above: there the budget's wider ones are added, up to the first one above the mean.
- "at least one at 3 and one at 2 bits" becomes the two widest widths in use, which is the same for its own; the
  narrowest needs no such guarantee. Where the budget is too small for them they fall, the wider one first.
- The budget is "<=", as in the authors' code: with gaps between widths "=" need not have a solution.
- Equation 3 speaks of the model's output, the text before it of each layer's; here it is the layer's.
"""

from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.policy.methods.inputs import bits_for, by_layer, open_widths, recipe, reconstruction, statistics
from wattbit.policy.methods.knapsack import cheapest
from wattbit.recipe import Budget, Pruning, Quantizer, Recipe, Subject

WIDEST = 3  # of the paper's own widths
EXPONENT = 2  # g


@dataclass(frozen=True)
class MCMoE:
    """prune: with ODP."""

    prune: bool = False
    quantizer: Quantizer = "gptq"

    @property
    def name(self) -> str:
        return "mcmoe-odp" if self.prune else "mcmoe"

    def decide(self, subject: Subject, budget: Budget, seed: int) -> Recipe:
        """As `Method.decide`; WattbitError for ODP on a model that sends a token to one expert only."""
        pruning = self._pruning(subject) if self.prune else None
        widths = np.array(self._widths(budget))
        stats = statistics(subject)
        experts = [s.expert for s in stats]
        error = reconstruction(subject, experts, widths.tolist(), self.quantizer)
        significance = np.array([s.frequency * s.contribution for s in stats])
        costs = significance[:, None] * error**EXPONENT
        chosen = np.zeros(len(experts), dtype=np.int64)
        for members in by_layer(experts):
            bits = bits_for(budget, len(members))
            chosen[members] = cheapest(costs[members], widths, bits, _guaranteed(len(members), widths, bits))
        made = recipe(self.name, experts, widths[chosen].tolist(), self.quantizer, budget)
        return replace(made, pruning=pruning)

    def _widths(self, budget: Budget) -> tuple[int, ...]:
        above = min((bits for bits in budget.weight_bits if bits > budget.mean_bits), default=max(budget.weight_bits))
        return open_widths(self.name, budget, range(1, max(WIDEST, above) + 1))

    def _pruning(self, subject: Subject) -> Pruning:
        if subject.top_k < 2:
            raise WattbitError(
                f"{self.name} drops a token's second expert, and this model has top_k {subject.top_k}; use mcmoe"
            )
        ratios = subject.gate_ratios()
        for layer, ratio in enumerate(ratios):
            if not isfinite(ratio):
                raise WattbitError(f"the gate ratio of layer {layer} is {ratio}; calibrate on more text")
        return Pruning(tuple(ratios))


def _guaranteed(experts: int, widths: NDArray[np.int64], bits: int) -> dict[int, int]:
    """One expert at each of the two widest widths (by index), as far as the budget allows."""
    room = bits - experts * int(widths[0])
    held: dict[int, int] = {}
    for k in range(max(len(widths) - 2, 1), len(widths)):
        extra = int(widths[k] - widths[0])
        if extra <= room and len(held) < experts:
            held[k] = 1
            room -= extra
    return held
