"""Searches with a limit instead of a price: the fastest allocation at a perplexity, or the best one within a time.

One quantity is minimised (damage, latency or energy) and others have limits; the memory budget is the problem's own.
The policy learns the Lagrangian, damage + lambda * latency + mu * energy, whose multipliers are the problem's prices
`latency_nats` and `energy_nats`. After each round of training they move (dual ascent, on their logarithms):

- a latency (or energy) over its limit raises its price, one below lowers it;
- where latency (or energy) is what is minimised, damage below its limit raises the price, damage above lowers it.

The answer is the best allocation within the limits among all that were priced on the way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from wattbit.errors import WattbitError
from wattbit.policy.agent import AgentSettings, train
from wattbit.policy.environment import AllocationEnv
from wattbit.policy.problem import Choice, Problem
from wattbit.progress import Progress, silent

Quantity = Literal["damage", "latency", "energy"]
STEP = 4.0  # a multiplier moves by at most this factor a round


@dataclass(frozen=True)
class Limits:
    """The most that is allowed; None is no limit.

    damage: nats a token, ln(1.01) for a perplexity 1 % higher. latency, energy: shares of uniform 8 bit's.
    """

    damage: float | None = None
    latency: float | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        for name in ("damage", "latency", "energy"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise WattbitError(f"a limit on {name} must be above 0, not {value}")


@dataclass(frozen=True)
class Constrained:
    """The allocation found, with its damage (nats a token), latency and energy (shares of uniform 8 bit's)."""

    choice: Choice
    damage: float
    latency: float
    energy: float | None


def best(
    problem: Problem,
    objective: Quantity,
    limits: Limits,
    seed: int = 0,
    settings: AgentSettings | None = None,
    rounds: int = 6,
    progress: Progress = silent,
) -> Constrained:
    """The allocation of least `objective` within the limits and the problem's memory budget.

    Raises WattbitError when nothing that was priced is within the limits, with the closest value, when the objective
    itself has a limit, and when the meter prices no energy but energy counts.
    """
    if getattr(limits, objective) is not None:
        raise WattbitError(f"{objective} cannot both be minimised and have a limit; drop one")
    if problem.reference.energy_j is None and (objective == "energy" or limits.energy is not None):
        raise WattbitError("the meter prices no energy; limit or minimise latency, or take another meter")
    if objective != "damage" and limits.damage is None:
        raise WattbitError(f"the least {objective} without a limit on damage is that of the narrowest width; set one")
    counts = {name for name in ("latency", "energy") if name == objective or getattr(limits, name) is not None}
    scale = limits.damage or float(problem.damages(problem.uniform(problem.widths[0])).sum()) / 10
    prices = {name: scale if name in counts else 0.0 for name in ("latency", "energy")}
    settings = settings or AgentSettings(iterations=60)
    for turn in range(rounds):
        priced = problem.repriced(prices["latency"], prices["energy"])
        found = weigh(problem, train(AllocationEnv(priced), seed + turn, settings).choice)
        for name in counts:
            prices[name] *= _pull(name, found, objective, limits)
        progress("constrained search", turn + 1, rounds)
    seen = [weigh(problem, choice) for choice in problem.priced if problem.fits(choice)]
    inside = [one for one in seen if all(value <= 1 + 1e-12 for value in _shares(one, limits).values())]
    if not inside:
        closest = min(seen, key=lambda one: max(_shares(one, limits).values()))
        name, share = max(_shares(closest, limits).items(), key=lambda pair: pair[1])
        raise WattbitError(
            f"no allocation within the memory budget meets the limits; the closest has {name} "
            f"{share * getattr(limits, name):.4g}, not {getattr(limits, name):.4g}: raise that limit or the budget"
        )
    return min(inside, key=lambda one: getattr(one, objective))


def weigh(problem: Problem, choice: Choice) -> Constrained:
    """A choice with what limits are about; raises InfeasibleError when the hardware cannot hold it."""
    cost, reference = problem.cost(choice), problem.reference
    energy = cost.energy_j / reference.energy_j if cost.energy_j is not None and reference.energy_j else None
    return Constrained(choice, float(problem.damages(choice).sum()), cost.latency_s / reference.latency_s, energy)


def _shares(one: Constrained, limits: Limits) -> Mapping[str, float]:
    """What each limited quantity takes of its limit."""
    found: dict[str, float] = {}
    for name in ("damage", "latency", "energy"):
        limit, value = getattr(limits, name), getattr(one, name)
        if limit is not None:
            found[name] = value / limit
    return found


def _pull(name: str, found: Constrained, objective: Quantity, limits: Limits) -> float:
    """The factor by which the price of latency or energy moves."""
    shares = _shares(found, limits)
    ratio = 1 / max(shares["damage"], 1e-3) if name == objective else shares[name]
    return min(max(ratio**2, 1 / STEP), STEP)
