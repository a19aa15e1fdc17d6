"""One width for every expert: round to nearest, GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323) or HQQ (Badri and
Shaji, "Half-quadratic quantization of large machine learning models", 2023).

The width is the widest of the budget's that does not exceed its mean: at 2.5 bits and widths 2, 3, 4 it is 2, and the
rest of the budget stays unspent, as it would for a user of these quantizers.
"""

from dataclasses import dataclass

from wattbit.policy.methods.inputs import open_widths, recipe
from wattbit.recipe import Budget, Quantizer, Recipe, Subject


@dataclass(frozen=True)
class Uniform:
    """Registered once for each quantizer, by its name."""

    quantizer: Quantizer = "rtn"

    @property
    def name(self) -> str:
        return self.quantizer

    def decide(self, subject: Subject, budget: Budget, seed: int) -> Recipe:
        """As `Method.decide`; looks at nothing of the subject but its experts."""
        bits = max(b for b in open_widths(self.name, budget) if b <= budget.mean_bits)
        return recipe(self.name, subject.experts, [bits] * len(subject.experts), self.quantizer, budget)
