"""The exact optimum of the additive damage table, the control that says what a table can know.

Damage of each expert alone at each width by the recipe's own quantizer (KL from the float model in nats a token,
smoothed by `policy.smoothing`), summed over the experts, least within the budget, by an integer program
(`methods.knapsack`): the same as `policy.exact`'s dynamic programming, whose time and memory grow with the square of
the experts. What experts do to each other is not in the table, nor is the hardware.
"""

from dataclasses import dataclass

from wattbit.policy.methods.inputs import open_widths, problem, recipe, statistics
from wattbit.policy.methods.knapsack import cheapest
from wattbit.recipe import Budget, Quantizer, Recipe, Subject


@dataclass(frozen=True)
class Exact:
    quantizer: Quantizer = "gptq"
    name = "exact"

    def decide(self, subject: Subject, budget: Budget, seed: int) -> Recipe:
        """As `Method.decide`; asks for the damage at every width of the budget."""
        widths = open_widths(self.name, budget)
        table = problem(statistics(subject, widths, self.quantizer), widths, budget.mean_bits)
        choice = cheapest(table.damage, table.widths, table.budget)
        return recipe(self.name, table.experts, table.widths[choice].tolist(), self.quantizer, budget)
