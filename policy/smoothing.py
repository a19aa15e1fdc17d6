"""Damage tables without their sampling noise, which an optimiser would take for savings.

An optimum over a raw table collects lucky errors (winner's curse). Damage as a divergence has few; with 64 experts a
layer, whose tokens are few, the optimum still diverges less with this (results/damage.md). It was made for damage as
the rise of the loss, which at 4 bits and more is smaller than what the sample of text adds or takes.

Rounding weights changes the loss by a term of first order, which is zero on average over texts and grows with the step
size, and one of second order, the lasting damage, which grows with its square: the noise's variance is proportional to
the damage. Where experts differ by a factor, d_i(b) = c_i m(b), least squares weighted by 1 / m(b) is every expert's
share of every width's total:

    d_i(b) = sum_b' d_i(b') * sum_i' d_i'(b) / sum_i' sum_b' d_i'(b')

A total below 0 counts as 0, and a width's total as no more than that of the next narrower one.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wattbit.errors import WattbitError
from wattbit.plan import ExpertStats


def smoothed(stats: Sequence[ExpertStats]) -> tuple[ExpertStats, ...]:
    """The statistics, ordered by expert, with the damage that is expected on other text.

    Raises WattbitError if there are none, or if they have damage at different widths.
    """
    ordered = sorted(stats, key=lambda s: s.expert)
    widths = {tuple(bits for bits, _ in s.damage) for s in ordered}
    if len(widths) != 1:
        raise WattbitError(f"experts must all have damage at the same widths, not {sorted(widths)}; run stats again")
    damage = np.array([[rise for _, rise in s.damage] for s in ordered])  # [N, K]
    by_expert = np.maximum(damage.sum(axis=1), 0.0)  # [N]
    by_width = np.maximum(np.minimum.accumulate(damage.sum(axis=0)), 0.0)  # [K]
    table = np.outer(by_expert, by_width) / (float(by_expert.sum()) or 1.0)
    return tuple(
        replace(s, damage=tuple((bits, float(d)) for (bits, _), d in zip(s.damage, row, strict=True)))
        for s, row in zip(ordered, table, strict=True)
    )
