"""MiLo: HQQ and low-rank compensators of its error (Huang et al., MLSys 2025, arXiv 2504.02658).

Every expert has one width; what differs is the rank of the compensators U V that are added to its dequantized weights,
stored at 3 bits in groups of 64 (section 3, "mixed-precision compensators"; the turns of HQQ and truncated SVD are in
`wattbit.models.quantizers.low_rank`). Two rank policies (section 3, "adaptive rank selection"):

- kurtosis: from the excess kurtosis k of the expert's weights, 0 where k < 1, 1024 where k > 9, else 2^(round(k) + 2),
  at most 1024 (the paper has 2 or 3 in the exponent, by model; 2 reaches 1024 where its upper bound does);
- frequency: round(f_i / sum f * r * E) for a mean rank r of a layer's E experts.

The paper is at 3 bits with a few percent of memory on top. Here methods are compared at equal bytes, compensators
included: the width is the widest of the budget's that does not exceed its mean, and the ranks take what it leaves, r as
large as fits, the kurtosis ranks times one factor of at most 1. At a mean that is itself a width nothing is left and
MiLo is HQQ. The kurtosis policy may leave bytes unspent (experts with Gaussian weights have k = 0, and rank 0).

Chosen where the paper is silent or cannot be followed: one rank for all matrices of an expert; the group size is the
budget's, for all methods the same (the paper's is 64: `Budget(group_size=64)`); ranks are capped by a matrix's smaller
side when the compensators are made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from wattbit.plan import ExpertStats
from wattbit.policy.methods.inputs import open_widths, recipe, statistics
from wattbit.policy.methods.size import budget_bytes
from wattbit.policy.problem import Floats
from wattbit.recipe import Budget, Recipe, Subject

GREATEST_RANK = 1024
EXPONENT_OFFSET = 2
HALVINGS = 24  # of the interval that the ranks' factor is sought in


@dataclass(frozen=True)
class MiLo:
    policy: Literal["kurtosis", "frequency"] = "kurtosis"

    @property
    def name(self) -> str:
        return f"milo-{self.policy}"

    def decide(self, subject: Subject, budget: Budget, seed: int) -> Recipe:
        """As `Method.decide`; its bytes, compensators included, are at most those of the budget without any."""
        stats = statistics(subject)
        experts = [s.expert for s in stats]
        bits = max(b for b in open_widths(self.name, budget) if b <= budget.mean_bits)
        base = recipe(self.name, experts, [bits] * len(experts), "hqq", budget)
        allowed = budget_bytes(subject, budget, "hqq")

        def ranked(factor: float) -> Recipe:
            ranks = np.rint(wanted * factor).astype(int).tolist()
            return replace(base, ranks={e: rank for e, rank in zip(experts, ranks, strict=True) if rank})

        def fits(factor: float) -> bool:
            return subject.memory_bytes(ranked(factor)) <= allowed

        if self.policy == "kurtosis":
            wanted, high = np.array([kurtosis_rank(s.kurtosis) for s in stats], dtype=float), 1.0
        else:
            wanted, high = _relative_frequency(stats), float(GREATEST_RANK)
        if not wanted.any() or fits(high):
            return ranked(high)
        low = 0.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return ranked(low)


def kurtosis_rank(kurtosis: float) -> int:
    """The rank that an excess kurtosis asks for."""
    if kurtosis < 1:
        return 0
    if kurtosis > 9:
        return GREATEST_RANK
    return min(int(2 ** (round(kurtosis) + EXPONENT_OFFSET)), GREATEST_RANK)


def _relative_frequency(stats: Sequence[ExpertStats]) -> Floats:
    """f_i E / sum f of each expert's layer [N]: its rank where the mean rank is 1."""
    layer = np.array([s.expert.layer for s in stats])
    frequency = np.array([s.frequency for s in stats])
    means = {one: float(frequency[layer == one].mean()) or 1.0 for one in np.unique(layer).tolist()}
    relative: Floats = frequency / np.array([means[one] for one in layer.tolist()])
    return relative
