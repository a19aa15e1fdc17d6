"""A cost model is a meter: what an allocation asks of a target, times calibrated constants.

Energy, where it was measured, is

    joules = static_w * seconds + sum of joules each * how many (bytes, products, products of single bits)

with the seconds that were measured when it is fitted and those that the model predicts when it prices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot
from typing import Any, Protocol

import numpy as np

from wattbit.plan import Allocation, Cost, Meter, Workload
from wattbit.policy.cost.fitting import Fitted, Floats, Work
from wattbit.policy.pricing import Price, SideBySide, price, width

STATIC_W = "static power, W"


class Demand(Protocol):
    """What a kind of target is asked for; it knows no constants.

    names: the constants of its seconds, each with its unit. energy_names: those of its joules beside the static power.
    variants: the forms that it may have, the plainest first; which one it has is found by fitting. settings: what tells
    them apart, JSON.
    """

    @property
    def variants(self) -> "Sequence[Demand]": ...
    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def energy_names(self) -> tuple[str, ...]: ...

    def work(self, allocation: Allocation, workload: Workload) -> Work:
        """Amounts of `names` for the workload. Raises InfeasibleError when the target cannot hold the allocation."""
        ...

    def energy(self, allocation: Allocation, workload: Workload) -> Floats:
        """Amounts of `energy_names` for the workload."""
        ...

    def memory_bytes(self, allocation: Allocation) -> int:
        """Bytes of all experts."""
        ...


@dataclass(frozen=True)
class Prediction:
    """A price with half its 95 % interval, relative to it; energy's is None where there is no energy."""

    cost: Cost
    latency_relative: float
    energy_relative: float | None = None

    @property
    def cautious(self) -> Cost:
        """The price at the upper ends of its intervals."""
        energy = self.cost.energy_j
        if energy is not None:
            energy *= 1 + (self.energy_relative or 0.0)
        return replace(self.cost, latency_s=self.cost.latency_s * (1 + self.latency_relative), energy_j=energy)


class Predictor(Meter, Protocol):
    """A meter that knows how sure it is."""

    def predict(self, allocation: Allocation, workload: Workload) -> Prediction: ...


@dataclass(frozen=True)
class CostModel:
    """`wattbit.plan.Meter` by formula: always `modelled`, with an interval."""

    demand: Demand
    latency: Fitted
    joules: Fitted | None = None

    def predict(self, allocation: Allocation, workload: Workload) -> Prediction:
        """Raises InfeasibleError when the target cannot hold the allocation."""
        seconds, unsure = self.latency.predict(self.demand.work(allocation, workload))
        energy, energy_unsure = None, None
        if self.joules is not None:
            work = energy_work(seconds, self.demand.energy(allocation, workload))
            energy, own = self.joules.predict(work)
            static = float(self.joules.theta[0]) * seconds / energy  # what is as unsure as the seconds are
            energy_unsure = hypot(own, static * unsure)
        cost = Cost(seconds, energy, self.demand.memory_bytes(allocation), "modelled")
        return Prediction(cost, unsure, energy_unsure)

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        return self.predict(allocation, workload).cost


def energy_work(seconds: float, amounts: Floats) -> Work:
    return Work.total(np.concatenate(([seconds], amounts)))


@dataclass(frozen=True)
class CautiousMeter:
    """Prices at the upper ends of the predictor's intervals: what a search does not know counts against it."""

    predictor: Predictor

    @property
    def width(self) -> int:
        return width(self.predictor)

    def costs(self, allocations: Sequence[Allocation], workload: Workload) -> list[Price]:
        """Prices, taken side by side where the predictor can; it then knows what it predicts for each."""
        if isinstance(self.predictor, SideBySide):
            self.predictor.costs(allocations, workload)
        return [price(self, allocation, workload) for allocation in allocations]

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        return self.predictor.predict(allocation, workload).cautious
