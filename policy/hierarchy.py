"""Large models in two steps: widths of groups of like experts first, then of every expert.

A policy's evaluations pay for all experts at once, so with thousands of them the meter's answer says little about each.
Groups make the first step's problem as small as one that is known to be learned: the experts of a layer, ordered by
their damage at the narrowest width, are cut into runs of about the same length; a run is one expert, whose damage and
frequency are the sums of its members', and the meter prices the whole allocation. The second step starts from there, or
from the table's solution where that is better.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from wattbit.plan import Allocation, Cost, ExpertId, ExpertStats, Meter, Placement, Workload
from wattbit.policy.agent import AgentSettings, Trained, train
from wattbit.policy.environment import AllocationEnv
from wattbit.policy.exact import solve_shared
from wattbit.policy.problem import Choice, Problem
from wattbit.progress import Progress, silent

GROUPS = 128  # about as many experts as one step learns well
LARGE = 512  # experts from which on a search takes two steps
REFINE = 1 / 3  # of the iterations are the second step's


@dataclass(frozen=True)
class GroupMeter:
    """Prices the allocation that gives every expert its group's placement, for the whole workload."""

    meter: Meter
    workload: Workload
    members: dict[ExpertId, tuple[ExpertId, ...]]

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        """workload: of the groups, which says nothing that the experts' does not."""
        whole = [
            Placement(expert, placement.engine, placement.precision)
            for placement in allocation.placements
            for expert in self.members[placement.expert]
        ]
        return self.meter.cost(Allocation(tuple(whole)), self.workload)


def grouped(problem: Problem, number: int) -> NDArray[np.int64]:
    """The group [N] of each expert, from 0, `number` of them or, where layers ask for it, a few more."""
    layers, place = np.unique(problem.layer, return_inverse=True)
    each = -(-number // len(layers))
    group = np.zeros(len(problem.experts), dtype=np.int64)
    for layer in range(len(layers)):
        mine = np.flatnonzero(place == layer)
        order = mine[np.argsort(problem.damage[mine, 0], kind="stable")]
        group[order] = layer * each + np.arange(len(order)) * each // len(order)
    return np.unique(group, return_inverse=True)[1]


def coarse(problem: Problem, group: NDArray[np.int64]) -> Problem:
    """The problem with a group [N] as one expert, named after its first member."""
    members = [np.flatnonzero(group == g) for g in range(int(group.max()) + 1)]
    rounds = [sorted(one, key=lambda s: s.expert) for one in (*problem.history, problem.stats)]
    *history, stats = [[_sum([one[i] for i in own.tolist()]) for own in members] for one in rounds]
    names = {stat.expert: tuple(problem.experts[i] for i in own) for stat, own in zip(stats, members, strict=True)}
    frequency = tuple((stat.expert, stat.frequency) for stat in stats)
    return replace(
        problem,
        stats=stats,
        history=history,
        meter=GroupMeter(problem.meter, problem.workload, names),
        workload=replace(problem.workload, frequency=frequency),
    )


def learn(problem: Problem, seed: int, settings: AgentSettings, progress: Progress = silent) -> Trained:
    """A policy for a problem of any size: trained on its experts, from `LARGE` of them on in groups first."""
    if problem.size[0] < LARGE:
        return train(AllocationEnv(problem), seed, settings, progress)
    return train_in_groups(problem, seed, settings, progress=progress)


def train_in_groups(
    problem: Problem, seed: int, settings: AgentSettings, number: int = GROUPS, progress: Progress = silent
) -> Trained:
    """A policy for a large problem: most iterations on `number` groups, REFINE of them on its experts."""
    group = grouped(problem, number)
    small = coarse(problem, group)
    order = {expert: g for g, expert in enumerate(small.experts)}  # groups are sorted by their first member
    firsts = [order[problem.experts[int(np.flatnonzero(group == g)[0])]] for g in range(len(order))]
    own = max(1, round(settings.iterations * REFINE))
    found = train(AllocationEnv(small), seed, replace(settings, iterations=max(1, settings.iterations - own)), progress)
    spread: Choice = found.choice[np.array(firsts)[group]]
    start = max(problem.shrink(spread), problem.fit(spread), solve_shared(problem), key=problem.reward)
    refined = train(AllocationEnv(problem), seed, replace(settings, iterations=own), progress, start=start)
    return replace(refined, curve=(*found.curve, *refined.curve))


def _sum(own: Sequence[ExpertStats]) -> ExpertStats:
    """A group's statistics; the gradient norm is that of all its weights together."""
    return ExpertStats(
        expert=own[0].expert,
        frequency=sum(s.frequency for s in own),
        contribution=sum(s.contribution for s in own),
        gradient_norm=hypot(*(s.gradient_norm for s in own)),
        router_change=fmean(s.router_change for s in own),
        max_variance=max(s.max_variance for s in own),
        kurtosis=fmean(s.kurtosis for s in own),
        damage=tuple((bits, sum(s.damage_at(bits) for s in own)) for bits, _ in own[0].damage),
        tokens=sum(s.tokens for s in own),
    )
