"""What retraining repairs, so that a later round is rewarded for damage after retraining, not before.

Damage measured before retraining is the wrong table: retraining repairs some of it, and not equally at every width.
Statistics taken again at the retrained weights show the repair only for the width that each expert was retrained at;
at its other widths they show weights that were never adapted to them. So, for an expert i retrained at width a_i,

    d_i(k) = d_now_i(k)               if k = a_i: measured after retraining
           = r_k d_float_i(k)         else: measured at the float weights, times what retraining left at that width
    r_k    = clip( sum d_now_i(k) / sum d_float_i(k), 0, 1 ), over the experts retrained at k

A width that no expert was retrained at takes the same ratio over all experts at their own widths.
"""

from collections.abc import Sequence
from dataclasses import replace

from wattbit.errors import WattbitError
from wattbit.plan import Allocation, ExpertStats

Pairs = list[tuple[float, float]]  # (damage at the float weights, damage now)


def retrained_damage(
    at_float: Sequence[ExpertStats], now: Sequence[ExpertStats], retrained_at: Allocation
) -> tuple[ExpertStats, ...]:
    """The statistics `now`, with each damage as it is expected after retraining at that width.

    retrained_at: the widths that the weights of `now` were last retrained at.
    """
    before = {s.expert: s for s in at_float}
    if set(before) != {s.expert for s in now}:
        raise WattbitError("the two sets of expert statistics are of different models; run stats again")
    width = {s.expert: retrained_at.precision(s.expert).weight_bits for s in now}
    pairs: dict[int, Pairs] = {}
    for s in now:
        own = width[s.expert]
        pairs.setdefault(own, []).append((before[s.expert].damage_at(own), s.damage_at(own)))
    overall = _left([pair for group in pairs.values() for pair in group])
    left = {bits: _left(group) for bits, group in pairs.items()}
    return tuple(
        replace(
            s,
            damage=tuple(
                (bits, rise if bits == width[s.expert] else left.get(bits, overall) * before[s.expert].damage_at(bits))
                for bits, rise in s.damage
            ),
        )
        for s in now
    )


def _left(pairs: Pairs) -> float:
    """The share of the damage that retraining left, within 0..1; 1 where there was none to repair."""
    before, now = sum(b for b, _ in pairs), sum(n for _, n in pairs)
    return min(max(now / before, 0.0), 1.0) if before > 0 else 1.0
