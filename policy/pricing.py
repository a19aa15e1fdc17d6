"""Prices of several allocations at once, where the meter can: boards measure what a policy draws side by side."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from wattbit.errors import InfeasibleError
from wattbit.plan import Allocation, Cost, Meter, Workload

Price = Cost | InfeasibleError
"""What an allocation costs, or why the hardware cannot hold it."""


@runtime_checkable
class SideBySide(Protocol):
    """A meter that prices several allocations at a time.

    width: how many.
    """

    @property
    def width(self) -> int: ...

    def cost(self, allocation: Allocation, workload: Workload) -> Cost: ...

    def costs(self, allocations: Sequence[Allocation], workload: Workload) -> list[Price]:
        """The price of each; raises WattbitError, as `cost` does, when the meter fails."""
        ...


def prices(meter: Meter, allocations: Sequence[Allocation], workload: Workload) -> list[Price]:
    """The price of each allocation, side by side where the meter can, else one after the other."""
    if isinstance(meter, SideBySide):
        return meter.costs(allocations, workload)
    return [price(meter, allocation, workload) for allocation in allocations]


def width(meter: Meter) -> int:
    return meter.width if isinstance(meter, SideBySide) else 1


def only(found: Sequence[Price]) -> Cost:
    """The price of the one allocation that was priced; raises what says that it does not fit."""
    (price,) = found
    if isinstance(price, InfeasibleError):
        raise price
    return price


def price(meter: Meter, allocation: Allocation, workload: Workload) -> Price:
    """The price of one allocation."""
    try:
        return meter.cost(allocation, workload)
    except InfeasibleError as error:
        return error
