"""What methods ask first: checked statistics, the widths that they may use, experts by layer, tables to solve.

Experts that saw no calibration token have frequency, contribution, reconstruction error and damage 0, so every method
that goes by those gives them its narrowest width. `router-norm` goes by weights alone and does not. GPTQ falls back to
round to nearest for them (`wattbit.models`), whatever their width.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.plan import Allocation, Cost, ExpertId, ExpertStats, Workload
from wattbit.policy.problem import Choice, Floats, Problem
from wattbit.policy.smoothing import smoothed
from wattbit.recipe import Budget, Quantizer, Recipe, Subject


def statistics(
    subject: Subject, weight_bits: tuple[int, ...] = (), quantizer: Quantizer = "rtn"
) -> tuple[ExpertStats, ...]:
    """The experts' statistics, ordered, with damage at these widths only; WattbitError names one that is no number."""
    found = tuple(sorted(subject.stats(weight_bits, quantizer), key=lambda s: s.expert))
    for s in found:
        values = {f.name: getattr(s, f.name) for f in fields(s) if f.name not in ("expert", "damage")}
        values |= {f"damage at {bits} bits": rise for bits, rise in s.damage}
        for name, value in values.items():
            if not isfinite(value):
                raise WattbitError(f"the {name} of {s.expert} is {value}; look at its weights and run stats again")
    return found


def reconstruction(
    subject: Subject, experts: Sequence[ExpertId], widths: Sequence[int], quantizer: Quantizer
) -> Floats:
    """`Subject.reconstruction` as a table [N, K]; WattbitError names an expert whose error is no number."""
    errors = subject.reconstruction(tuple(widths), quantizer)
    table = np.array([[errors[expert][bits] for bits in widths] for expert in experts])
    for i, k in np.argwhere(~np.isfinite(table)):
        raise WattbitError(
            f"the reconstruction error of {experts[i]} at {widths[k]} bits is {table[i, k]}; look at its weights"
        )
    return table


def open_widths(method: str, budget: Budget, own: Sequence[int] | None = None) -> tuple[int, ...]:
    """The budget's widths, ascending, less those that the method does not have.

    Raises WattbitError where none is left, or where the narrowest one left is above the budget.
    """
    widths = tuple(sorted(set(budget.weight_bits)))
    if own is not None:
        widths = tuple(bits for bits in widths if bits in own)
        if not widths:
            raise WattbitError(f"{method} has the widths {_listed(own)}, the budget {_listed(budget.weight_bits)}")
    if budget.mean_bits < widths[0]:
        raise WattbitError(
            f"{method} needs a budget of at least {widths[0]} mean bits, the narrowest of its widths "
            f"{_listed(widths)}, not {budget.mean_bits}"
        )
    return widths


def bits_for(budget: Budget, experts: int) -> int:
    """Weight bits that so many experts may have, summed; no more than they can use."""
    return int(min(budget.mean_bits, max(budget.weight_bits)) * experts + 1e-9)


def by_layer(experts: Sequence[ExpertId]) -> list[NDArray[np.int64]]:
    """Places of each layer's experts, layers in order."""
    layer = np.array([e.layer for e in experts])
    return [np.flatnonzero(layer == one) for one in np.unique(layer)]


def recipe(
    method: str, experts: Sequence[ExpertId], weight_bits: Sequence[int], quantizer: Quantizer, budget: Budget
) -> Recipe:
    """Widths [N] as a recipe with the budget's activation width and group size."""
    widths = dict(zip(experts, (int(bits) for bits in weight_bits), strict=True))
    return Recipe(method, Allocation.of(widths, budget.act_bits), quantizer, budget.group_size)


class _NoHardware:
    """The meter of a table that prices damage alone."""

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        return Cost(1.0, None, 1, "modelled")


def problem(stats: Sequence[ExpertStats], widths: Sequence[int], mean_bits: float, act_bits: int = 8) -> Problem:
    """Damage against bits, without hardware; the damage is smoothed as the policy's own search has it."""
    frequency = tuple((s.expert, s.frequency) for s in stats)
    return Problem(smoothed(stats), _NoHardware(), Workload(1, 1, frequency), widths, mean_bits, act_bits, 0.0)


def blank(stats: Sequence[ExpertStats], widths: Sequence[int]) -> tuple[ExpertStats, ...]:
    """The statistics with damage 0 at every width, for what needs a `Problem` but looks at no damage."""
    return tuple(replace(s, damage=tuple((bits, 0.0) for bits in widths)) for s in stats)


def step_to(choice: Choice, order: NDArray[np.int64], widths: NDArray[np.int64], bits: int) -> Choice:
    """Widths [N] (indices) stepped until their sum is as near below `bits` as steps along an order allow.

    Over the budget, the first in the order step down one width each until the sum fits, again and again; under it, the
    last step up where that still fits. A choice that rises along the order still does afterwards.
    """
    stepped = choice.copy()
    over = int(widths[stepped].sum()) - bits
    while over > 0 and stepped.any():
        for i in order[stepped[order] > 0]:
            if over <= 0:
                break
            over -= int(widths[stepped[i]] - widths[stepped[i] - 1])
            stepped[i] -= 1
    moved = True
    while moved and over < 0:
        moved = False
        for i in order[::-1][stepped[order[::-1]] < len(widths) - 1]:
            rise = int(widths[stepped[i] + 1] - widths[stepped[i]])
            if rise <= -over:
                over += rise
                stepped[i] += 1
                moved = True
    return stepped


def _listed(widths: Sequence[int]) -> str:
    return ", ".join(str(bits) for bits in widths)
