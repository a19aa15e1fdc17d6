"""A random allocation of the same budget, the control that a method must beat to have decided anything."""

from dataclasses import dataclass

import numpy as np

from wattbit.policy.methods.inputs import bits_for, open_widths, recipe
from wattbit.policy.sampling import draw
from wattbit.recipe import Budget, Quantizer, Recipe, Subject


@dataclass(frozen=True)
class Random:
    quantizer: Quantizer = "gptq"
    name = "random"

    def decide(self, subject: Subject, budget: Budget, seed: int) -> Recipe:
        """As `Method.decide`; another seed is another allocation."""
        experts, widths = subject.experts, np.array(open_widths(self.name, budget))
        drawn = draw(len(experts), widths, bits_for(budget, len(experts)), seed)
        return recipe(self.name, experts, widths[drawn].tolist(), self.quantizer, budget)
