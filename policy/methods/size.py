"""Bytes that a budget stands for, so that what a method adds to the weights (compensators, float columns) is paid."""

from wattbit.plan import Allocation
from wattbit.recipe import Budget, Quantizer, Recipe, Subject


def budget_bytes(subject: Subject, budget: Budget, quantizer: Quantizer) -> float:
    """Bytes of experts at the budget's mean width and group size by this quantizer, with nothing added.

    A mean between two widths lies on the line through both, which is where a mix of the two is.
    """
    widths = sorted(set(budget.weight_bits))
    below = max(bits for bits in widths if bits <= budget.mean_bits)
    above = min((bits for bits in widths if bits > budget.mean_bits), default=below)
    low = uniform_bytes(subject, budget, below, quantizer)
    if above == below:
        return low
    share = (budget.mean_bits - below) / (above - below)
    return low + share * (uniform_bytes(subject, budget, above, quantizer) - low)


def uniform_bytes(subject: Subject, budget: Budget, weight_bits: int, quantizer: Quantizer) -> int:
    """Bytes of all experts at one width."""
    widths = dict.fromkeys(subject.experts, weight_bits)
    return subject.memory_bytes(Recipe("uniform", Allocation.of(widths, budget.act_bits), quantizer, budget.group_size))
