"""What retraining repairs: damage measured before it is the wrong table for the model that will be retrained.

Two forms of a reward that sees retraining:

- `shortlist`: candidates are fine-tuned for a few steps each and ranked by the perplexity that they have then. It sees
  everything, and pays a fine-tuning for every candidate.
- `Repair`: the share of an expert's damage that is left after retraining, one number a width, fitted once to a few
  fine-tuned allocations. The loss of fine-tuned allocation m over that of uniform 8 bit fine-tuned as long is taken as

      rise_m = sum_b left_b D_mb,   D_mb = sum of d_i(b) over the experts i at width b,

  by least squares with left_b >= 0 and a pull towards one share for all widths (a Gaussian prior around it of standard
  deviation SPREAD, where a rise is known to NOISE_NATS): a width whose damage is all noise takes what the others say.
  One number a width, because single experts' changes after few steps are all noise (`policy.cotrain`). The corrected
  table then costs a policy nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy.optimize import nnls

from wattbit.errors import WattbitError
from wattbit.plan import Allocation, ExpertStats, Learner
from wattbit.policy.controls import random_allocation
from wattbit.policy.problem import Choice, Problem
from wattbit.progress import Progress, silent

NOISE_NATS = 1e-3  # of the loss after a short fine-tuning
SPREAD = 0.5  # of the shares that are left, between widths


@dataclass(frozen=True)
class Repair:
    """left: share of the damage that is left after retraining, by width in bits."""

    left: Mapping[int, float]

    @classmethod
    def fit(cls, stats: Sequence[ExpertStats], rises: Sequence[tuple[Allocation, float]]) -> Self:
        """From the rise of the loss (nats a token, over uniform 8 bit's) of allocations after fine-tuning.

        Raises WattbitError without any, and for a rise that is no number.
        """
        values = np.array([rise for _, rise in rises])
        if not len(values) or not np.isfinite(values).all():
            raise WattbitError(f"a repair is fitted to rises of the loss that are numbers, not {values.tolist()}")
        widths = [bits for bits, _ in stats[0].damage]
        known = {s.expert: s for s in stats}
        table = np.zeros((len(rises), len(widths)))  # D_mb
        for row, (allocation, _) in zip(table, rises, strict=True):
            for placement in allocation.placements:
                bits = placement.precision.weight_bits
                row[widths.index(bits)] += known[placement.expert].damage_at(bits)
        total = table.sum(axis=1)
        common = max(float(total @ values) / (float(total @ total) or 1.0), 0.0)
        pull = NOISE_NATS / SPREAD
        rows = np.concatenate([table, pull * np.eye(len(widths))])
        left, _ = nnls(rows, np.concatenate([values, np.full(len(widths), pull * common)]))
        return cls(dict(zip(widths, left.tolist(), strict=True)))

    def of(self, stats: Sequence[ExpertStats]) -> tuple[ExpertStats, ...]:
        """The statistics with the damage that is left after retraining."""
        return tuple(replace(s, damage=tuple((b, d * self.left[b]) for b, d in s.damage)) for s in stats)


def learn(
    problem: Problem, learner: Learner, start: Path, steps: int, seed: int, progress: Progress = silent
) -> tuple[Repair, dict[str, Any]]:
    """A repair, fitted to fine-tuned allocations: every uniform width below 8 and two random ones of the budget.

    start: the float weights, which the learner holds again afterwards. steps: of each fine-tuning. Returns with it a
    record: perplexities by allocation.
    """
    tried: dict[str, Choice] = {f"uniform {b}": problem.uniform(b) for b in problem.widths.tolist() if b < 8}
    tried |= {f"random {n}": random_allocation(problem, seed + n) for n in range(2)}
    allocations = {"uniform 8": Allocation.of(dict.fromkeys(problem.experts, 8), problem.act_bits)}
    allocations |= {name: problem.allocation(choice) for name, choice in tried.items()}
    after = tuned(learner, start, allocations, steps, seed, progress)
    rises = [(allocations[name], log(after[name] / after["uniform 8"])) for name in tried]
    return Repair.fit(problem.stats, rises), {"steps": steps, "perplexity_after": after}


def shortlist(
    learner: Learner,
    start: Path,
    candidates: Mapping[str, Allocation],
    steps: int,
    seed: int,
    progress: Progress = silent,
) -> tuple[str, dict[str, float]]:
    """The candidate of lowest perplexity after `steps` of fine-tuning from `start`, and every one's perplexity."""
    after = tuned(learner, start, candidates, steps, seed, progress)
    return min(after, key=lambda name: after[name]), after


def tuned(
    learner: Learner,
    start: Path,
    allocations: Mapping[str, Allocation],
    steps: int,
    seed: int,
    progress: Progress = silent,
) -> dict[str, float]:
    """Perplexity of each allocation after its own fine-tuning from the weights at `start`, which are loaded again."""
    after = {}
    for number, (name, allocation) in enumerate(allocations.items()):
        learner.load(start)
        learner.finetune(allocation, steps, seed)
        after[name] = learner.perplexity(allocation)
        progress("short retraining", number + 1, len(allocations))
    learner.load(start)
    return after
