"""The multiple-choice knapsack with side constraints, as an integer program for HiGHS (scipy's `milp`).

    min sum_ik c_ik x_ik   s.t.  sum_k x_ik = 1,  sum_ik b_k x_ik <= B,  sum_i x_ik >= m_k,  x binary

`policy.exact` solves the case without side constraints by dynamic programming. An option that costs no less than a
narrower one of the same expert is left out, unless a side constraint asks for its width: an expert whose cost is the
same at all widths gets the narrowest.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

from wattbit.errors import WattbitError
from wattbit.policy.problem import Choice, Floats

SCALE = 1e6  # HiGHS stops at an absolute gap of 1e-6: costs are scaled so that this is 1e-12 of the greatest


def cheapest(costs: Floats, widths: NDArray[np.int64], bits: int, at_least: Mapping[int, int] | None = None) -> Choice:
    """Index of each expert's width [N] at the least total cost.

    costs: [N, K], finite. widths: [K], ascending. bits: B. at_least: m_k by index of the width.
    Raises WattbitError naming the smallest feasible budget when nothing fits.
    """
    experts = len(costs)
    needed = dict(at_least or {})
    least = _least(experts, widths, needed)
    if bits < least:
        raise WattbitError(
            f"{experts} experts cannot have {bits} bits in all with the widths {widths.tolist()}; "
            f"the smallest feasible mean is {least / experts:g} bits"
        )
    keep = np.ones_like(costs, dtype=np.bool_)
    keep[:, 1:] = costs[:, 1:] < np.minimum.accumulate(costs, axis=1)[:, :-1]
    keep[:, list(needed)] = True
    expert, option = np.nonzero(keep)  # of each variable
    cost, column = costs[expert, option], np.arange(len(expert))
    one_each = csr_array((np.ones(len(cost)), (expert, column)), (experts, len(cost)))
    spent = csr_array(widths[option][None].astype(float))
    asked = [csr_array((option == k)[None].astype(float)) for k in needed]
    lower = np.concatenate([np.ones(experts), [0], list(needed.values())])
    upper = np.concatenate([np.ones(experts), [bits], np.full(len(needed), np.inf)])
    scale = float(np.abs(cost).max()) or 1.0
    found = milp(
        cost * (SCALE / scale),
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(vstack([one_each, spent, *asked]), lower, upper),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise WattbitError(f"HiGHS found no widths for {experts} experts in {bits} bits: {found.message}")
    chosen = found.x > 0.5
    choice = np.zeros(experts, dtype=np.int64)
    choice[expert[chosen]] = option[chosen]
    return choice


def _least(experts: int, widths: NDArray[np.int64], needed: Mapping[int, int]) -> int:
    """The fewest bits that satisfy the side constraints."""
    asked = sum(needed.values())
    if asked > experts:
        raise WattbitError(f"{experts} experts cannot fill {asked} places at given widths; ask for fewer")
    return sum(count * int(widths[k]) for k, count in needed.items()) + (experts - asked) * int(widths[0])
