"""Fuzzy c-means of numbers (Bezdek, "Pattern Recognition with Fuzzy Objective Function Algorithms", 1981)."""

import numpy as np

from wattbit.policy.problem import Floats

FUZZIFIER = 2.0  # m
TOLERANCE = 1e-9  # of the memberships' greatest change
TURNS = 1000


def fuzzy_means(values: Floats, clusters: int) -> tuple[Floats, Floats]:
    """Centres [C], ascending, and memberships [N, C] of values [N]; memberships of one value sum to 1.

    v_k = sum_i u_ik^m x_i / sum_i u_ik^m and u_ik = 1 / sum_j (|x_i - v_k| / |x_i - v_j|)^(2 / (m - 1)) in turn. It
    starts at the values' quantiles, not at random, so it is deterministic and blind to the values' order.
    """
    centres = np.quantile(values, (np.arange(clusters) + 0.5) / clusters)
    memberships = _memberships(values, centres)
    for _ in range(TURNS):
        weights = memberships**FUZZIFIER
        mass = weights.sum(axis=0)
        centres = np.where(mass > 0, (weights * values[:, None]).sum(axis=0) / np.where(mass > 0, mass, 1.0), centres)
        before, memberships = memberships, _memberships(values, centres)
        if float(np.abs(memberships - before).max()) < TOLERANCE:
            break
    order = centres.argsort(kind="stable")
    return centres[order], memberships[:, order]


def _memberships(values: Floats, centres: Floats) -> Floats:
    """A value that lies on centres belongs to them alone, in equal parts."""
    distance = np.abs(values[:, None] - centres)  # [N, C]
    on = distance == 0
    hit = on.any(axis=1, keepdims=True)
    near = np.where(hit, 1.0, distance).min(axis=1, keepdims=True)
    closeness = np.where(hit, on, (near / np.where(on, 1.0, distance)) ** (2 / (FUZZIFIER - 1)))
    shares: Floats = closeness / closeness.sum(axis=1, keepdims=True)
    return shares
