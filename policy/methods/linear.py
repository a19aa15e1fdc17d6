"""Linear in frequency, a control: the rank of an expert's frequency in its layer says its width.

No paper's: the plainest reading of "busy experts matter more". See `policy.controls.linear_in_frequency`.
"""

from dataclasses import dataclass

from wattbit.policy.controls import linear_in_frequency
from wattbit.policy.methods.inputs import blank, open_widths, problem, recipe, statistics
from wattbit.recipe import Budget, Quantizer, Recipe, Subject


@dataclass(frozen=True)
class Linear:
    quantizer: Quantizer = "gptq"
    name = "linear"

    def decide(self, subject: Subject, budget: Budget, seed: int) -> Recipe:
        """As `Method.decide`; asks for statistics without damage."""
        widths = open_widths(self.name, budget)
        table = problem(blank(statistics(subject), widths), widths, budget.mean_bits)
        return recipe(
            self.name, table.experts, table.widths[linear_in_frequency(table)].tolist(), self.quantizer, budget
        )
